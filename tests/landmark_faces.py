"""Hand-made faces for the landmark tests: no file, no detector."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.geometry import CanonicalFace, project, transform
from fye_pipeline.landmarks.sequence import LandmarkSequence


def canonical_face() -> CanonicalFace:
    """468 points on the front of a head of about 14 x 18 cm."""
    random = np.random.default_rng(0)
    flat = random.uniform(-1, 1, (468, 2)) * (7, 9)
    depth = 8 * np.sqrt(1 - (flat[:, 0] / 8) ** 2) - 4 + random.uniform(-0.5, 0.5, 468)
    return CanonicalFace(
        vertices=np.column_stack([flat, depth]),
        uv=random.uniform(0, 1, (468, 2)),
        triangles=random.integers(0, 468, (898, 3)),
        basis_ids=np.arange(0, 330, 10),
        basis_weights=random.uniform(0.005, 0.1, 33),
    )


def pose(turn: float = 0.0, place: tuple[float, float, float] = (0.0, 0.0, -45.0)) -> NDArray[np.float64]:
    """A head turned by `turn` degrees about the vertical, at `place` in cm before the camera."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("y", turn, degrees=True).as_matrix()
    matrix[:3, 3] = place
    return matrix


def face(
    shift: float = 0.0,
    *,
    turn: float = 0.0,
    distance: float = 45.0,
    width: int = 64,
    height: int = 64,
    score: float = 0,
) -> Face:
    """A face `shift` cm to the side; every blendshape is `score`."""
    mesh = canonical_face().vertices
    matrix = pose(turn, (shift, 0.0, -distance))
    points = project(transform(mesh, matrix), width, height)
    irises = np.repeat(points[[33, 263]], 5, axis=0) + np.linspace(-0.01, 0.01, 10)[:, None]
    return Face(
        landmarks=np.concatenate([points, irises]).astype(np.float32),
        mesh=mesh.astype(np.float32),
        transform=matrix,
        blendshapes=np.full(52, score, np.float32),
        width=width,
        height=height,
    )


def sequence(faces: list[Face], fps: Fraction | None = Fraction(25)) -> LandmarkSequence:
    return LandmarkSequence(
        landmarks=np.stack([one.landmarks for one in faces]),
        mesh=np.stack([one.mesh for one in faces]),
        transforms=np.stack([one.transform for one in faces]),
        blendshapes=np.stack([one.blendshapes for one in faces]),
        found=np.ones(len(faces), bool),
        width=faces[0].width,
        height=faces[0].height,
        fps=fps,
    )


def fixture_sequence(fixture: dict[str, NDArray], name: str) -> LandmarkSequence:
    """One picture's or the template's entries of `landmark_ref.npz` as a sequence."""
    landmarks = fixture[f"{name}.lmks"].reshape(-1, 478, 3)
    frames = len(landmarks)
    width, height = fixture[f"{name}.wh"].reshape(-1, 2)[0]
    blendshapes = np.zeros((frames, 52))
    blendshapes[:, 1:] = fixture[f"{name}.bs"].reshape(frames, 51)
    return LandmarkSequence(
        landmarks=landmarks,
        mesh=fixture[f"{name}.lmks3d"].reshape(frames, 468, 3),
        transforms=fixture[f"{name}.trans_mat"].reshape(frames, 4, 4),
        blendshapes=blendshapes,
        found=np.ones(frames, bool),
        width=int(width),
        height=int(height),
    )

"""The canonical face mesh, the metric mesh and pose re-derived from landmarks, and projection back to the picture.

Camera: 63 degrees vertical field of view, centimetres, y up, looking along -z (MediaPipe's face geometry).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import LEFT_EYE_POINTS, LEFT_IRIS, N_MESH, RIGHT_EYE_POINTS, RIGHT_IRIS

_CANONICAL_FACE = Path(__file__).parent.parent / "assets" / "canonical_face.npz"
HALF_FIELD = math.tan(math.radians(63.0) / 2)  # half the picture's height at distance 1
NEAR, FAR = 1.0, 10000.0
DEPTH_FACTOR = FAR / (FAR - NEAR)  # the official code uses its projection matrix transposed, which scales depth by this

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CanonicalFace:
    """MediaPipe's canonical face and the basis that fits it to a detected one.

    vertices [468, 3] in cm, uv [468, 2], triangles [898, 3] 0-based, basis_ids [33] vertex numbers with
    basis_weights [33] of the weighted Procrustes fit.
    """

    vertices: Array
    uv: Array
    triangles: NDArray[np.int64]
    basis_ids: NDArray[np.int64]
    basis_weights: Array

    @classmethod
    def load(cls) -> CanonicalFace:
        """The face as it stands in MediaPipe's `face_landmarker.task` (Apache-2.0), from our own copy of it."""
        with np.load(_CANONICAL_FACE, allow_pickle=False) as arrays:
            kinds = {"triangles": np.int64, "basis_ids": np.int64}
            return cls(**{name: arrays[name].astype(kinds.get(name, np.float64)) for name in arrays.files})


def weighted_similarity(source: Array, target: Array, weights: Array) -> Array:
    """The [4, 4] similarity (rotation, one scale, translation) that best maps source [P, 3] onto target [P, 3].

    Weighted orthogonal Procrustes (Umeyama 1991): minimises sum_p w_p |M source_p - target_p|^2, without reflection.
    """
    share = weights / weights.sum()
    source_centre, target_centre = share @ source, share @ target
    centred = source - source_centre
    covariance = (share[:, None] * (target - target_centre)).T @ centred
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = (singular * signs).sum() / (share @ (centred**2).sum(1))
    matrix = np.eye(4)
    matrix[:3, :3] = scale * (u * signs) @ vt
    matrix[:3, 3] = target_centre - matrix[:3, :3] @ source_centre
    return matrix


def metric_mesh(landmarks: NDArray, width: int, height: int, canonical: CanonicalFace) -> tuple[Array, Array]:
    """Detected landmarks [>= 468, 3] -> (mesh [468, 3] in cm without the pose, pose matrix [4, 4] canonical -> camera).

    MediaPipe's own face geometry, from the landmarks alone. The picture's size (pixels) gives the aspect ratio.
    """
    ids, weights = canonical.basis_ids, canonical.basis_weights
    source = canonical.vertices[ids]
    plane_height = 2 * HALF_FIELD
    plane_width = plane_height * width / height
    points = np.asarray(landmarks, np.float64)[:N_MESH, :3]
    x = (points[:, 0] - 0.5) * plane_width
    y = (0.5 - points[:, 1]) * plane_height
    z = points[:, 2] * plane_width
    mean_depth = z.mean()

    def unproject(scale: float) -> Array:
        depth = (z - mean_depth + 1) / scale
        return np.stack([x * depth, y * depth, -depth], axis=1)

    def fit(target: Array) -> Array:
        return weighted_similarity(source, target[ids], weights)

    def scale_of(matrix: Array) -> float:
        return float(np.linalg.norm(matrix[:3, 0]))

    first = scale_of(fit(np.stack([x, y, -z], axis=1)))
    second = scale_of(fit(unproject(first)))
    camera = unproject(first * second)
    matrix = fit(camera)
    inverse = np.linalg.inv(matrix)
    return camera @ inverse[:3, :3].T + inverse[:3, 3], matrix


def project(vertices: NDArray, width: int, height: int) -> Array:
    """Camera coordinates [..., P, 3] in cm -> landmarks [..., P, 3]: x, y in 0..1 of the picture, z on x's scale.

    z is the distance beyond the mean distance of the P points, in picture widths: nearer points are negative.
    """
    vertices = np.asarray(vertices, np.float64)
    focal = 1 / HALF_FIELD
    depth = -vertices[..., 2] * DEPTH_FACTOR
    mean_depth = depth.mean(axis=-1, keepdims=True)
    x = (vertices[..., 0] * focal / (width / height) / depth + 1) / 2
    y = (-vertices[..., 1] * focal / depth + 1) / 2
    z = (depth - mean_depth) * focal / (width / height) / (2 * mean_depth)
    return np.stack([x, y, z], axis=-1)


def transform(vertices: NDArray, matrix: NDArray) -> Array:
    """Apply [..., 4, 4] matrices (translation in the last column) to vertices [..., P, 3]."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(vertices, np.float64) @ np.swapaxes(matrix[..., :3, :3], -1, -2) + matrix[..., None, :3, 3]


_SMALLEST_EYE = 1e-9  # in picture widths: an eye seen exactly edge-on has no width to scale by


def align(
    reference: LandmarkSequence,
    driving: LandmarkSequence,
    width: int | None = None,
    height: int | None = None,
    *,
    neutral_frame: int | None = None,
) -> NDArray[np.float64]:
    """Landmarks [F, 478, 3] of the reference's face making the driver's expressions, normalised to width x height.

    `reference` has one frame, `driving` F. The mesh is the reference's plus the driver's offsets from its own neutral
    frame; the head turns as the driver's does and moves from the reference's place as the driver's moves from its own
    in frame 0; irises keep their place within the eye. All F frames are returned: the released code drops the first.

    width, height: the picture that the landmarks are projected on (default: the reference's); its aspect ratio must be
    the reference's. neutral_frame: the driver's frame without expression (default: the one whose blendshapes sum to
    the least). Raises `UserError` for a reference of several frames or without a face, and for an empty driver.
    """
    if len(reference) != 1 or not reference.found[0]:
        what = "no face" if len(reference) == 1 else f"{len(reference)} frames"
        raise UserError(f"The reference must be one picture with a face, got {what}; without it use --unaligned.")
    if len(driving) == 0:
        raise UserError("The driving sequence has no frames.")
    if neutral_frame is None:
        neutral_frame = int(np.argmin(driving.blendshapes[:, 1:].sum(axis=1)))  # `_neutral` itself does not count
    elif not 0 <= neutral_frame < len(driving):
        raise UserError(f"The neutral frame must be 0 to {len(driving) - 1}, got {neutral_frame}.")

    mesh = driving.mesh.astype(np.float64) - driving.mesh[neutral_frame] + reference.mesh[0]
    pose = np.tile(np.eye(4), (len(driving), 1, 1))
    # scipy returns the nearest rotation, which drops the scale that a pose matrix may hold.
    pose[:, :3, :3] = Rotation.from_matrix(driving.transforms[:, :3, :3]).as_matrix()
    place = driving.transforms[:, :3, 3].astype(np.float64)
    pose[:, :3, 3] = place - place[0] + reference.transforms[0, :3, 3]
    projected = project(transform(mesh, pose), width or reference.width, height or reference.height)

    irises = [
        _move_iris(driving.landmarks[:, iris], driving.landmarks[:, eye], projected[:, eye])
        for iris, eye in ((list(RIGHT_IRIS), list(RIGHT_EYE_POINTS)), (list(LEFT_IRIS), list(LEFT_EYE_POINTS)))
    ]
    return np.concatenate([projected, *irises], axis=1)


def _move_iris(iris: NDArray, eye: NDArray, target_eye: NDArray) -> NDArray[np.float64]:
    """Carry iris points [F, 5, 3] from the box around one eye [F, 16, 3] into that of another: linear in x and in y.

    z is the mean of the target eye: an iris has no measured depth there.
    """
    box_start, target_start = eye[..., :2].min(1, keepdims=True), target_eye[..., :2].min(1, keepdims=True)
    box_size = eye[..., :2].max(1, keepdims=True) - box_start
    target_size = target_eye[..., :2].max(1, keepdims=True) - target_start
    share = (iris[..., :2].astype(np.float64) - box_start) / np.maximum(box_size, _SMALLEST_EYE)
    depth = np.broadcast_to(target_eye[..., 2:].mean(1, keepdims=True), (*iris.shape[:2], 1))
    return np.concatenate([target_start + share * target_size, depth], axis=-1)

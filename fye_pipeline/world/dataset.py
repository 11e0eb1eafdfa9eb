"""Clips and portraits of the rendered world: a deterministic function of split, index and size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.landmarks.geometry import CanonicalFace, project, weighted_similarity
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.world.anatomy import EXPRESSIONS, Array, Head, Identity, sample_identity
from fye_pipeline.world.motion import Motion, demonstration_motion, sample_motion, sample_portrait_motion
from fye_pipeline.world.overlay import overlay_of
from fye_pipeline.world.render import Painter, Picture

WORLD_VERSION = 1  # what is measured on, and drawn unless another is asked for
WORLD_VERSIONS = (1, 2)
SPLITS = {"train": 0, "held": 1, "demo": 2}

# Where each of EXPRESSIONS stands among the face landmarker's 52 scores.
BLENDSHAPE_INDEX = (9, 10, 21, 22, 1, 2, 3, 4, 5, 6, 25, 24, 30, 31, 38, 44, 45, 48, 49, 50)
LOOK_DOWN, LOOK_UP, LOOK_RIGHT, LOOK_LEFT = (11, 12), (17, 18), (14, 15), (13, 16)


@dataclass(frozen=True)
class RenderedClip:
    """frames [F, size, size, 3] uint8 RGB, their exact landmarks, and who is seen."""

    frames: Picture
    sequence: LandmarkSequence
    identity: Identity


class World:
    """Heads by split and index. `canonical` is the skeleton of them all.

    Splits ("train", "held", "demo") draw from separate streams of seeds, so no identity is in two of them.
    version: 1, or 2 for heads with far more that must be copied (`overlay.py`); their identities differ too.
    """

    def __init__(
        self, canonical: CanonicalFace, *, size: int = 128, seed: int = 0, version: int = WORLD_VERSION
    ) -> None:
        if size < 16:
            raise ValueError(f"size must be >= 16 pixels, got {size}")
        if version not in WORLD_VERSIONS:
            raise ValueError(f"version must be one of {WORLD_VERSIONS}, got {version}")
        self.canonical, self.size, self.seed, self.version = canonical, size, seed, version

    def _key(self, split: str, index: int) -> tuple[int, int, int, int]:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return self.version, self.seed, SPLITS[split], index

    def head(self, split: str, index: int, *, style: str | None = None) -> Head:
        """The head number `index` of a split."""
        return Head(self.canonical.vertices, sample_identity(*self._key(split, index), style=style))

    def portrait(self, split: str, index: int, *, take: int = 0, style: str | None = None) -> RenderedClip:
        """One mild, almost frontal frame of a head; `take` chooses among many."""
        motion = sample_portrait_motion(*self._key(split, index), take)
        return self.render(self.head(split, index, style=style), motion, fps=None)

    def clip(
        self,
        split: str,
        index: int,
        *,
        take: int = 0,
        frames: int = 16,
        fps: Fraction | int = 12,
        strength: float = 1.0,
        style: str | None = None,
    ) -> RenderedClip:
        """A moving head; `take` chooses among its motions."""
        key = self._key(split, index)
        motion = sample_motion(*key, take, frames=frames, fps=float(fps), strength=strength)
        return self.render(self.head(split, index, style=style), motion, fps=Fraction(fps))

    def render(self, head: Head, motion: Motion, *, fps: Fraction | None) -> RenderedClip:
        """Paint a motion and write down its landmarks, metric mesh and pose as the detector would."""
        overlay = overlay_of(head, self.size) if self.version == 2 else None
        painter = Painter(head, self.canonical.triangles, self.size, overlay)
        turns = rotations(motion)
        images = [
            painter.paint(head.pose(motion.expression[k], motion.gaze[k]), turns[k], motion.translation[k])[0]
            for k in range(len(motion))
        ]
        return RenderedClip(np.stack(images), self.track(head, motion, self.size, fps=fps), head.identity)

    def track(self, head: Head, motion: Motion, size: int, *, fps: Fraction | None) -> LandmarkSequence:
        """What the detector would say of a motion in pictures of `size` pixels a side, exactly."""
        turns = rotations(motion)
        landmarks, meshes, transforms = [], [], []
        for k in range(len(motion)):
            points = head.pose(motion.expression[k], motion.gaze[k])
            camera = points @ turns[k].T + motion.translation[k]
            mesh, matrix = self._metric(camera[:468])
            landmarks.append(project(camera, 1, 1))
            meshes.append(mesh)
            transforms.append(matrix)
        return LandmarkSequence(
            landmarks=np.stack(landmarks),
            mesh=np.stack(meshes),
            transforms=np.stack(transforms),
            blendshapes=_blendshapes(motion),
            found=np.ones(len(motion), bool),
            width=size,
            height=size,
            fps=fps,
        )

    def _metric(self, camera: Array) -> tuple[Array, Array]:
        """Camera points [468, 3] -> (mesh [468, 3], matrix [4, 4]) at the detector's scale.

        A picture tells no head's size, so the detector calls every head as large as the canonical one: the points are
        scaled about the camera until the pose has scale 1.
        """
        ids, weights = self.canonical.basis_ids, self.canonical.basis_weights
        source = self.canonical.vertices[ids]
        scale = np.linalg.norm(weighted_similarity(source, camera[ids], weights)[:3, 0])
        camera = camera / scale
        matrix = weighted_similarity(source, camera[ids], weights)
        inverse = np.linalg.inv(matrix)
        return camera @ inverse[:3, :3].T + inverse[:3, 3], matrix


def rotations(motion: Motion) -> Array:
    """Turns of every frame as matrices [F, 3, 3]."""
    return Rotation.from_euler("xyz", motion.rotation * np.array([-1, 1, 1]), degrees=True).as_matrix()


def _blendshapes(motion: Motion) -> NDArray[np.float64]:
    """Expression and gaze as the landmarker's 52 scores. -> [F, 52]."""
    scores = np.zeros((len(motion), 52))
    scores[:, list(BLENDSHAPE_INDEX)] = np.clip(motion.expression[:, : len(EXPRESSIONS)], 0, 1)
    right, up = motion.gaze[:, :1], motion.gaze[:, 1:]
    for columns, value in ((LOOK_UP, up), (LOOK_DOWN, -up), (LOOK_RIGHT, right), (LOOK_LEFT, -right)):
        scores[:, list(columns)] = np.clip(value, 0, 1)
    return scores


def contact_sheet(world: World, *, split: str = "held", rows: int = 6, columns: int = 8, scale: int = 1) -> Picture:
    """One head a row: its portrait, then frames of its motion. -> uint8 RGB."""
    sheet = []
    for row in range(rows):
        clip = world.clip(split, row, frames=columns - 1, fps=3)
        sheet.append(np.concatenate([*world.portrait(split, row).frames, *clip.frames], axis=1))
    picture = np.concatenate(sheet)
    height, width = picture.shape[:2]
    return np.asarray(cv2.resize(picture, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC), np.uint8)


DRIVER_INDEX = 1  # of the "demo" split


def write_demo(canonical: CanonicalFace, folder: Path, *, size: int = 512, fps: int = 24) -> None:
    """Write the demo's `driving.npz`, the motion of a head; its portrait is a photograph (see `LICENCE.md` there)."""
    world = World(canonical, size=size)
    folder.mkdir(parents=True, exist_ok=True)
    motion = demonstration_motion(48, fps)
    world.render(world.head("demo", DRIVER_INDEX), motion, fps=Fraction(fps)).sequence.save(folder / "driving.npz")

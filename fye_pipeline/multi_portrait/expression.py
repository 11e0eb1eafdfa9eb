"""Implicit expression features: what a driver's face does, frame by frame, as four vectors without the driver's shape.

The interface of FantasyPortrait's driving signal; extractors plug in behind `ExpressionExtractor`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import box_of
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.storage.files import atomic_target, existing_file

FACTORS: tuple[str, ...] = ("head", "eye", "emotion", "lip")
SCHEMA = "fye.expression"
VERSION = 1

# Pupils, tip of the nose, corners of the mouth, left to right in the picture, and where they lie in a 0..1 square that
# PD-FGC's motion network takes.
FIVE_POINTS = (468, 473, 4, 61, 291)
TEMPLATE = ((0.384, 0.270), (0.620, 0.267), (0.503, 0.419), (0.406, 0.527), (0.598, 0.525))

# MediaPipe's blendshapes by part of the face.
_EYES = tuple(range(9, 23))
_BROWS, _CHEEKS, _NOSE = tuple(range(1, 6)), tuple(range(6, 9)), (50, 51)
_MOUTH = tuple(range(23, 50))  # jaw 4, mouth 23
_SMILE, _FROWN = (44, 45), (30, 31)
_CM = 10.0  # of the head's way that weigh as much as one radian of its turn


@dataclass(frozen=True, eq=False)
class ExpressionSequence:
    """Four vectors for each of T frames of one person, float32 [T, d].

    features: one array for each of `FACTORS`. boxes [T, 4]: where the face is, left, top, right, bottom in 0..1 of the
    frame. extractor, version: what made them; features of different extractors cannot be mixed. fps None for a picture.
    Raises `UserError` where shapes do not fit or numbers are not finite.
    """

    features: Mapping[str, NDArray[np.float32]]
    boxes: NDArray[np.float32]
    extractor: str
    version: int
    fps: Fraction | None = None

    def __post_init__(self) -> None:
        if set(self.features) != set(FACTORS):
            raise UserError(f"Expression sequence: there must be {', '.join(FACTORS)}, got {sorted(self.features)}.")
        for name, array in {**self.features, "boxes": self.boxes}.items():
            if array.ndim != 2 or len(array) != len(self.boxes) or (name == "boxes" and array.shape[1] != 4):
                raise UserError(f"Expression sequence: {name} has shape {array.shape} for {len(self.boxes)} frames.")
            if not np.isfinite(array).all():
                raise UserError(f"Expression sequence: {name} has values that are not finite.")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def dims(self) -> dict[str, int]:
        """How wide each factor is."""
        return {name: self.features[name].shape[1] for name in FACTORS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an `.npz`; no half file stays behind. Raises `UserError` where it cannot be written."""
        header = {
            "schema": SCHEMA,
            "version": VERSION,
            "extractor": self.extractor,
            "extractor_version": self.version,
            "fps": None if self.fps is None else str(self.fps),
        }
        arrays: dict[str, Any] = {"header": np.array(json.dumps(header)), "boxes": self.boxes, **self.features}
        try:
            with atomic_target(Path(path)) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExpressionSequence:
        """Read what `save` wrote; nothing in it is unpickled. Raises `UserError` for any other file."""
        path = existing_file(Path(path), "the expression sequence")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                content: dict[str, Any] = {name: archive[name] for name in archive.files}
            header = json.loads(str(content.pop("header")))
            known = header["schema"] == SCHEMA and header["version"] == VERSION
            extractor, version = str(header["extractor"]), int(header["extractor_version"])
            fps = None if header["fps"] is None else Fraction(header["fps"])
            boxes = np.asarray(content.pop("boxes"), np.float32)
            features = {name: np.asarray(array, np.float32) for name, array in content.items()}
        except Exception as error:  # a damaged zip or header fails in whatever way its bytes lead to
            raise UserError(f"{path} is no expression sequence ({type(error).__name__}: {error}).") from error
        if not known:
            raise UserError(f"{path} is no expression sequence of version {VERSION} of {SCHEMA!r}.")
        return cls(features, boxes, extractor, version, fps)


class ExpressionExtractor(Protocol):
    """Frames of one person, uint8 RGB [H, W, 3] each, and their landmarks -> features."""

    name: str
    version: int
    dims: Mapping[str, int]

    def __call__(self, frames: Iterable[NDArray[np.uint8]], landmarks: LandmarkSequence, /) -> ExpressionSequence: ...


class BlendshapeExtractor:
    """MediaPipe's own account of a face: explicit, made independent of identity by its model; no picture is needed.

    head: turn (rotation vector) and place (decimetres) of it; eye: 14 blendshapes of lids and gaze; emotion: 10 of
    brows, cheeks and nose, and the means of smile and frown; lip: 27 of jaw and mouth.
    """

    name = "blendshapes"
    version = 1
    dims: Mapping[str, int] = {"head": 6, "eye": 14, "emotion": 12, "lip": 27}

    def __call__(self, frames: Iterable[NDArray[np.uint8]], landmarks: LandmarkSequence, /) -> ExpressionSequence:
        del frames
        scores, poses = np.asarray(landmarks.blendshapes[:]), np.asarray(landmarks.transforms[:])
        means = [scores[:, list(pair)].mean(axis=1, keepdims=True) for pair in (_SMILE, _FROWN)]
        features = {
            "head": np.hstack([Rotation.from_matrix(poses[:, :3, :3]).as_rotvec(), poses[:, :3, 3] / _CM]),
            "eye": scores[:, list(_EYES)],
            "emotion": np.hstack([scores[:, [*_BROWS, *_CHEEKS, *_NOSE]], *means]),
            "lip": scores[:, list(_MOUTH)],
        }
        boxes = np.array([box_of(points) for points in landmarks.landmarks[:]], np.float32)
        made = {name: np.asarray(array, np.float32) for name, array in features.items()}
        return ExpressionSequence(made, boxes, self.name, self.version, landmarks.fps)


def aligned_face(picture: NDArray[np.uint8], landmarks: NDArray[np.floating], size: int) -> NDArray[np.uint8]:
    """The face as extractors that look at pixels take it: turned, scaled and moved so that five points fit a template.

    picture: uint8 RGB [H, W, 3]; landmarks [478, >= 2] in 0..1 of it. -> [size, size, 3].
    """
    height, width = picture.shape[:2]
    points = np.asarray(landmarks)[list(FIVE_POINTS), :2] * (width, height)
    matrix = similarity(points, np.array(TEMPLATE) * size)
    way = cv2.INTER_AREA if np.linalg.det(matrix[:, :2]) < 1 else cv2.INTER_CUBIC
    return np.asarray(
        cv2.warpAffine(picture, matrix, (size, size), flags=way, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def similarity(points: NDArray[np.floating], target: NDArray[np.floating]) -> NDArray[np.float64]:
    """The turn, scale and move [2, 3] that take points [n, 2] nearest to their targets (Umeyama 1991)."""
    middle, wanted = points.mean(axis=0), target.mean(axis=0)
    centred, aimed = points - middle, target - wanted
    left, values, right = np.linalg.svd(aimed.T @ centred)
    mirror = np.diag([1.0, np.sign(np.linalg.det(left @ right))])
    turn = left @ mirror @ right
    scale = (values * np.diag(mirror)).sum() / (centred**2).sum()
    return np.column_stack([scale * turn, wanted - scale * turn @ middle])

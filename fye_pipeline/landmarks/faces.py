"""One detected face, the choice among several, and the small protocol behind which any landmark detector plugs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace, metric_mesh
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import N_BLENDSHAPES, N_MESH, N_POINTS

Picture = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one picture; the arrays are one frame of a `LandmarkSequence`.

    landmarks [478, 3], mesh [468, 3] in cm, transform [4, 4], blendshapes [52], and the picture's size in pixels.
    """

    landmarks: NDArray[np.float32]
    mesh: NDArray[np.float32]
    transform: NDArray[np.float64]
    blendshapes: NDArray[np.float32]
    width: int
    height: int

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of the face mesh, in 0..1 of the picture."""
        return box_of(self.landmarks)

    @property
    def arrays(self) -> dict[str, NDArray]:
        """Its arrays under the names of a `LandmarkSequence`."""
        return {
            "landmarks": self.landmarks,
            "mesh": self.mesh,
            "transforms": self.transform,
            "blendshapes": self.blendshapes,
        }

    @property
    def size(self) -> float:
        """The longer side of the box, in pixels."""
        left, top, right, bottom = self.box
        return max((right - left) * self.width, (bottom - top) * self.height)

    def as_sequence(self) -> LandmarkSequence:
        """A sequence of this one frame, as `align` takes it for the reference."""
        arrays: dict[str, Any] = {name: values[None] for name, values in self.arrays.items()}
        return LandmarkSequence(**arrays, found=np.ones(1, bool), width=self.width, height=self.height)


class LandmarkModel(Protocol):
    """Any detector: uint8 RGB [H, W, 3] -> the landmarks [478, 3] of every face it sees, in MediaPipe's numbering.

    x, y in 0..1 of the picture, z on x's scale, smaller nearer. `faces_by` makes complete faces of its output.
    """

    def __call__(self, image: Picture, /) -> Sequence[NDArray]: ...


FindFaces = Callable[[Picture], list[Face]]


def faces_by(model: LandmarkModel, canonical: CanonicalFace) -> FindFaces:
    """Turn a plain landmark model into what `track` takes: mesh and pose are derived from the landmarks.

    Blendshapes are zero, so alignment takes the first frame as the neutral one unless told otherwise.
    """

    def find(image: Picture) -> list[Face]:
        blendshapes = np.zeros(N_BLENDSHAPES, np.float32)
        height, width = image.shape[:2]
        return [make_face(landmarks, blendshapes, width, height, canonical) for landmarks in model(image)]

    return find


def box_of(landmarks: NDArray) -> Box:
    """The box around the mesh of landmarks [478, 3]: left, top, right, bottom."""
    points = landmarks[:N_MESH, :2]
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def make_face(landmarks: NDArray, blendshapes: NDArray, width: int, height: int, canonical: CanonicalFace) -> Face:
    """A face from its landmarks [478, 3] in a picture of width x height pixels; `ValueError` for any other array."""
    if landmarks.shape != (N_POINTS, 3):
        raise ValueError(f"a landmark model must give [{N_POINTS}, 3] landmarks, got {list(landmarks.shape)}")
    if not np.isfinite(landmarks).all():
        raise ValueError("a landmark model must give finite landmarks")
    mesh, matrix = metric_mesh(landmarks, width, height, canonical)
    return Face(
        landmarks=landmarks.astype(np.float32),
        mesh=mesh.astype(np.float32),
        transform=matrix,
        blendshapes=blendshapes.astype(np.float32),
        width=width,
        height=height,
    )


def check_picture(image: NDArray) -> Picture:
    """The picture as MediaPipe needs it (contiguous); raises `ValueError` unless it is uint8 RGB [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 RGB [H, W, 3], got {image.dtype} {list(image.shape)}")
    return np.ascontiguousarray(image)


def choose(faces: Sequence[Face], *, face_index: int | None = None, last_box: Box | None = None) -> Face | None:
    """The face to animate by: the one that overlaps `last_box` most, else the largest, or the `face_index`-th.

    `face_index` counts from 0, left to right. None where there is no such face. Raises `UserError` for a negative one.
    """
    if face_index is not None and face_index < 0:
        raise UserError(f"The face index must be 0 or more (left to right), got {face_index}.")
    if not faces:
        return None
    if last_box is not None:
        nearest = max(faces, key=lambda face: _overlap(face.box, last_box))
        if _overlap(nearest.box, last_box) > 0:
            return nearest
    if face_index is None:
        return max(faces, key=lambda face: face.size)
    in_order = sorted(faces, key=lambda face: face.box[0] + face.box[2])
    return in_order[face_index] if face_index < len(faces) else None


def _overlap(box: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / (area + other_area - width * height)

"""Every face of a picture, also small ones side by side: overlapping windows are looked at one after the other.

MediaPipe's detector is short-range: in a picture much wider than its faces it sees none or some of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fye_pipeline.landmarks.faces import Box, Face, FindFaces, Picture, make_face
from fye_pipeline.landmarks.geometry import CanonicalFace

LEVELS = 3  # sides of the windows: the picture's shorter side, a half and a quarter of it
SMALLEST = 96  # pixels a side of a window
AROUND = 2.0  # side of a window around a face that was seen before, over the face's longer side
_EDGE = 0.02  # of a window's side: a face that comes nearer to an inner border is taken to be cut off there
_PEERS = 0.5  # of a face's size: what lies within a face and is smaller is a part of it, not somebody


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels in a picture."""

    left: int
    top: int
    width: int
    height: int


def windows_of(width: int, height: int, least: float = 0) -> list[Window]:
    """Overlapping squares over a picture, the largest first; neighbours share half. The first is the whole picture.

    least: pixels a side that a window must have.
    """
    windows = [Window(0, 0, width, height)]
    for level in range(LEVELS):
        side = min(width, height) >> level
        if side < least or side < min(SMALLEST, min(width, height)):
            break
        places = [(x, y) for y in _places(height, side) for x in _places(width, side)]
        windows += [Window(x, y, side, side) for x, y in places if (side, side) != (width, height)]
    return windows


def window_around(box: Box, width: int, height: int) -> Window:
    """The part of a picture around a face's box (0..1): a square of twice its longer side, less what lies outside."""
    across, down = (box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height
    half = max((box[2] - box[0]) * width, (box[3] - box[1]) * height) * AROUND / 2
    left, top = (max(math.floor(middle - half), 0) for middle in (across, down))
    right, bottom = min(math.ceil(across + half), width), min(math.ceil(down + half), height)
    return Window(left, top, max(right - left, 1), max(bottom - top, 1))


def find_in_windows(
    find_faces: FindFaces,
    picture: Picture,
    canonical: CanonicalFace,
    *,
    near: Sequence[Box] | None = None,
    least: float = 0,
) -> list[Face]:
    """Every face in a uint8 RGB [H, W, 3] picture, left to right.

    near: where faces were seen in the frame before; then only the whole picture and the places around them are looked
    at. None: all windows are, but those of fewer than `least` pixels a side.
    """
    height, width = picture.shape[:2]
    windows = windows_of(width, height, least)
    if near is not None:
        windows = windows[:1] + [window_around(box, width, height) for box in near]
    return distinct(face for window in windows for face in _faces_in(find_faces, picture, window, canonical))


def distinct(faces: Iterable[Face]) -> list[Face]:
    """Faces without those that are the same as, or a part of, one that comes before them; left to right."""
    kept: list[Face] = []
    for face in faces:
        if not any(is_same(face, other) for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: face.box[0] + face.box[2])


def is_same(face: Face, other: Face) -> bool:
    """Whether two faces of one picture are of one person: the centre of each lies in the other, or one is a part."""
    within = _holds(other.box, face.box), _holds(face.box, other.box)
    if all(within):
        return True
    small, large = sorted((face, other), key=lambda each: each.size)
    return any(within) and small.size < _PEERS * large.size


def _holds(box: Box, other: Box) -> bool:
    """Whether the centre of the other box lies in this one."""
    across, down = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
    return box[0] <= across <= box[2] and box[1] <= down <= box[3]


def _faces_in(find_faces: FindFaces, picture: Picture, window: Window, canonical: CanonicalFace) -> Iterator[Face]:
    """The faces that a window shows in full, as they stand in the picture."""
    height, width = picture.shape[:2]
    if (window.width, window.height) == (width, height):
        yield from find_faces(picture)
        return
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    for face in find_faces(np.ascontiguousarray(picture[rows, columns])):
        if not _is_cut(face.box, window, width, height):
            x, y, z = np.asarray(face.landmarks, np.float64).T
            moved = np.column_stack(
                [
                    (x * window.width + window.left) / width,
                    (y * window.height + window.top) / height,
                    z * window.width / width,
                ]
            )
            yield make_face(moved, face.blendshapes, width, height, canonical)


def _is_cut(box: Box, window: Window, width: int, height: int) -> bool:
    """Whether a face (box in 0..1 of the window) touches a border of the window that is none of the picture."""
    return (
        (box[0] < _EDGE and window.left > 0)
        or (box[1] < _EDGE and window.top > 0)
        or (box[2] > 1 - _EDGE and window.left + window.width < width)
        or (box[3] > 1 - _EDGE and window.top + window.height < height)
    )


def _places(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that cover `length`, at most half a side apart."""
    count = max(math.ceil((length - side) / (side / 2)), 0) + 1
    return [round(place) for place in np.linspace(0, length - side, count)]

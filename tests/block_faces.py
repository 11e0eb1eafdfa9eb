"""Faces for tests of several people: blocks of one brightness, found as a short-range detector finds faces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from landmark_faces import canonical_face, face
from numpy.typing import NDArray

from fye_pipeline.landmarks.faces import Face, Picture, box_of, make_face

REACH = 4  # a face is seen in a picture at most so many times as large
CANONICAL = canonical_face()
_POINTS = face().landmarks
_BOX = box_of(_POINTS)


def scene(places: Sequence[tuple[int, int] | None], side: int = 32, width: int = 256, height: int = 128) -> Picture:
    """A picture in which person n (brightness 60 + 40 n) has its upper left corner at places[n]; None is not there."""
    picture = np.zeros((height, width, 3), np.uint8)
    for number, place in enumerate(places):
        if place is not None:
            x, y = place
            picture[y : y + side, x : x + side] = 60 + 40 * number
    return picture


def find_blocks(picture: Picture) -> list[Face]:
    """A face for every block, right to left: a detector keeps no order. Those that are too small are overlooked."""
    height, width = picture.shape[:2]
    found = []
    for level in np.unique(picture[picture > 0]):
        rows, columns = np.nonzero(picture[..., 0] == level)
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        if max(box[2] - box[0], box[3] - box[1]) * REACH >= max(width, height):
            found.append(make_face(_in_box(box, width, height), np.full(52, level / 255), width, height, CANONICAL))
    return sorted(found, key=lambda each: -each.box[0])


def _in_box(box: tuple[int, int, int, int], width: int, height: int) -> NDArray[np.float64]:
    """Landmarks [478, 3] whose mesh fills a box in pixels."""
    points = np.asarray(_POINTS, np.float64).copy()
    across, down = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    points[:, 0] = (points[:, 0] - _BOX[0]) / (_BOX[2] - _BOX[0]) * across + box[0] / width
    points[:, 1] = (points[:, 1] - _BOX[1]) / (_BOX[3] - _BOX[1]) * down + box[1] / height
    points[:, 2] *= across / (_BOX[2] - _BOX[0])
    return points

"""Do two videos show the same expression, gaze and pose: figures from what a detector sees in both, frame by frame.

Landmarks are [F, 478, >= 2] with x, y in 0..1 of the picture, in MediaPipe's numbering; blendshapes [F, 52] in 0..1;
transforms [F, 4, 4] canonical face (cm) -> camera. Frames pair up by number; every figure is a mean over frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.floating]
Floats = NDArray[np.float64]

LEAST = 1e-5  # of a denominator
# The ratios of LMS: distance of the first two points over distance of the last two.
RATIOS = (
    (145, 159, 133, 33),  # opening of the eye at the picture's left
    (133, 468, 133, 33),  # place of its pupil
    (374, 386, 263, 362),  # opening of the other eye
    (263, 473, 263, 362),  # place of its pupil
    (17, 0, 291, 61),  # opening of the mouth
)
# Iris centre, corner at the picture's left, corner at its right, lower and upper lid of each eye.
EYES = ((468, 33, 133, 145, 159), (473, 362, 263, 374, 386))
EYEBALL = 0.4  # radius over the width of the open eye: 12 mm of about 30 mm
SHUT = 0.1  # opening over width below which an eye tells no gaze


def blendshape_difference(first: Array, second: Array) -> tuple[float, float]:
    """Exp of EmojiDiff: sum over the 52 blendshapes of |b - b'|, mean over frames. -> (sum, sum / 52); 0 is equal."""
    _same_length(first, second)
    difference = np.abs(np.asarray(first, np.float64) - second)
    return float(difference.sum(-1).mean()), float(difference.mean())


def landmark_ratios(landmarks: Array, aspect: float = 1.0) -> Floats:
    """Openings of eyes and mouth and places of pupils. [F, 478, >= 2] -> [F, 5], in the order of `RATIOS`.

    `aspect` is the picture's height over its width, so that distances are Euclidean in the picture.
    """
    points = _in_widths(landmarks, aspect)

    def distance(first: int, second: int) -> Floats:
        return np.linalg.norm(points[:, first] - points[:, second], axis=-1)

    return np.stack([distance(a, b) / np.maximum(distance(c, d), LEAST) for a, b, c, d in RATIOS], -1)


def ratio_difference(first: Array, second: Array, aspects: tuple[float, float] = (1.0, 1.0)) -> float:
    """LMS of EmojiDiff: sum over the five ratios of |r - r'|, mean over frames; 0 is equal."""
    _same_length(first, second)
    ratios = (landmark_ratios(points, aspect) for points, aspect in zip((first, second), aspects, strict=True))
    return float(np.abs(np.subtract(*ratios)).sum(-1).mean())


def landmark_distance(first: Array, second: Array) -> float:
    """LMD of FantasyPortrait: mean 2-D distance of landmarks normalised by the picture (x, y in 0..1), times 1000."""
    _same_length(first, second)
    return 1000 * float(np.linalg.norm(np.asarray(first, np.float64)[..., :2] - second[..., :2], axis=-1).mean())


def alignment_error(first: Array, second: Array, aspects: tuple[float, float] = (1.0, 1.0)) -> float:
    """Landmark accuracy across two pictures: distance left after the best shift and scale, in face widths; 0 is equal.

    Per frame, `first` is shifted and scaled onto `second` by least squares (both faces may stand anywhere and have any
    size), the mean distance is divided by the width of the second face (its landmarks' extent in x).
    """
    _same_length(first, second)
    moved, target = (_in_widths(p, a) for p, a in zip((first, second), aspects, strict=True))
    width = np.ptp(target[..., 0], axis=-1)
    moved, target = (p - p.mean(1, keepdims=True) for p in (moved, target))
    scale = (moved * target).sum((1, 2)) / np.maximum((moved**2).sum((1, 2)), LEAST**2)
    distance = np.linalg.norm(moved * scale[:, None, None] - target, axis=-1).mean(-1)
    return float((distance / np.maximum(width, LEAST)).mean())


def gaze_directions(landmarks: Array, aspect: float = 1.0) -> tuple[Floats, NDArray[np.bool_]]:
    """Where each eye looks, from the place of its iris between its corners. -> (unit vectors [F, 2, 3], open [F, 2]).

    The iris' offset from the middle of the corners, along and across the line between them, over the radius of an
    eyeball of `EYEBALL` eye widths, is the sine of its turn to the picture's right and down. It is a turn of the eye in
    the head, estimated in the picture: a turned head foreshortens it, in driver and output alike.
    """
    points = _in_widths(landmarks, aspect)
    directions, opened = [], []
    for iris, left, right, lower, upper in EYES:
        axis = points[:, right] - points[:, left]
        width = np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), LEAST)
        along = axis / width
        across = np.stack([-along[:, 1], along[:, 0]], -1)
        offset = points[:, iris] - (points[:, left] + points[:, right]) / 2
        turn = np.stack([(offset * along).sum(-1), (offset * across).sum(-1)], -1) / (EYEBALL * width)
        turn = turn / np.maximum(np.linalg.norm(turn, axis=-1, keepdims=True), 1.0)  # no iris beyond the eyeball's rim
        depth = np.sqrt(np.maximum(1 - (turn**2).sum(-1, keepdims=True), 0))
        directions.append(np.concatenate([turn, depth], -1))
        opened.append(np.linalg.norm(points[:, lower] - points[:, upper], axis=-1) >= SHUT * width[:, 0])
    return np.stack(directions, 1), np.stack(opened, 1)


def gaze_error(first: Array, second: Array, aspects: tuple[float, float] = (1.0, 1.0)) -> float:
    """Gaze MAE of FantasyPortrait: mean angle between the directions of each eye, in degrees.

    Eyes that are shut in either picture are left out; nan where none is left. Directions as `gaze_directions`.
    """
    _same_length(first, second)
    (one, one_open), (two, two_open) = (gaze_directions(p, a) for p, a in zip((first, second), aspects, strict=True))
    both = one_open & two_open
    if not both.any():
        return float("nan")
    angles = np.arctan2(np.linalg.norm(np.cross(one, two), axis=-1), (one * two).sum(-1))
    return float(np.degrees(angles[both]).mean())


def expression_distance(first: Array, second: Array) -> float:
    """AED, average expression distance: Euclidean distance of the 52 blendshapes, mean over frames; 0 is equal."""
    _same_length(first, second)
    return float(np.linalg.norm(np.asarray(first, np.float64) - second, axis=-1).mean())


def pose_distance(first: Array, second: Array) -> tuple[float, float]:
    """APD, average pose distance. -> (angle of the rotation between the poses in radians, distance in cm)."""
    _same_length(first, second)
    one, two = (Rotation.from_matrix(np.asarray(each, np.float64)[:, :3, :3]) for each in (first, second))
    shift = np.linalg.norm(np.asarray(first, np.float64)[:, :3, 3] - second[:, :3, 3], axis=-1)
    return float((one.inv() * two).magnitude().mean()), float(shift.mean())


def landmark_jitter(landmarks: Array, found: NDArray[np.bool_], aspect: float = 1.0) -> float:
    """Mean length of the landmarks' second difference in time, in picture widths, times 1000.

    Only over three frames in a row that all show a face (`found` [F]); nan where there are none.
    """
    runs = found[2:] & found[1:-1] & found[:-2]
    if not runs.any():
        return float("nan")
    bend = np.diff(_in_widths(landmarks, aspect), n=2, axis=0)[runs]
    return 1000 * float(np.linalg.norm(bend, axis=-1).mean())


def _in_widths(landmarks: Array, aspect: float) -> Floats:
    return np.asarray(landmarks, np.float64)[..., :2] * (1.0, aspect)


def _same_length(first: Sequence[object] | Array, second: Sequence[object] | Array) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"both need the same frames, at least one, got {len(first)} and {len(second)}")

"""The figures of FantasyPortrait's tables, for one person at a time, and how far one driver moves another's face.

Units are plain: widths of the picture, degrees, coefficients, radians. The paper's tables show LMD times 1000 and AED
times 100. Each is nan where nothing is left to be compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Floats = NDArray[np.floating]
Seen = NDArray[np.bool_]

CLOSED = 0.7  # of a lid: above it, the gaze of that eye is not compared
_ASIDE, _UP = 0.625, 0.28  # tangents of the angles that a gaze of 1 is, to the right and up
# The face landmarker's scores of the left eye and of the right one: (towards the picture's right, left, up, down).
_LOOKS = ((15, 13, 17, 11), (14, 16, 18, 12))
_BLINKS = (9, 10)


def lmd(found: Floats, wanted: Floats, *, seen: Seen | None = None, aspect: float = 1.0) -> float:
    """Landmark distance: mean over points and frames, in widths of the picture. [F, N, >= 2] in 0..1, twice.

    aspect: height of the picture over its width. seen [F]: frames that have both; here and below all by default.
    Raises ValueError, here and below, where the two have another shape.
    """
    _same(found, wanted)
    way = (np.asarray(found)[..., :2] - np.asarray(wanted)[..., :2]) * (1.0, aspect)
    return _mean(np.linalg.norm(way, axis=-1), seen)


def mae(found: Floats, wanted: Floats, *, closed: Floats | None = None, seen: Seen | None = None) -> float:
    """Mean angle between directions of gaze, in degrees. [F, E, 3] of unit length for E eyes, twice.

    closed [F, E]: how far the wanted lids are shut, 0 to 1; eyes shut by more than `CLOSED` are left out.
    """
    _same(found, wanted)
    cosines = np.clip((np.asarray(found) * np.asarray(wanted)).sum(-1), -1, 1)  # [F, E]
    kept = np.ones(cosines.shape, bool) if closed is None else np.asarray(closed) <= CLOSED
    if seen is not None:
        kept = kept & seen[:, None]
    return float(np.degrees(np.arccos(cosines[kept])).mean()) if kept.any() else float("nan")


def aed(found: Floats, wanted: Floats, *, seen: Seen | None = None) -> float:
    """Expression distance: mean absolute difference of coefficients [F, K], such as 52 blendshapes."""
    _same(found, wanted)
    return _mean(np.abs(np.asarray(found) - np.asarray(wanted)), seen)


def apd(found: Floats, wanted: Floats, *, seen: Seen | None = None) -> float:
    """Pose distance: mean length of the difference of rotation vectors [F, 3], in radians."""
    _same(found, wanted)
    return _mean(np.linalg.norm(np.asarray(found) - np.asarray(wanted), axis=-1), seen)


def pixel_leak(made: Floats, other_changed: Floats, own_changed: Floats, face: Floats | Seen) -> float:
    """Change inside a face when another person's driver is exchanged, over that when its own is. Videos [F, H, W, 3].

    Root mean squares over the pixels of face [F, H, W]: weights, or which pixels it has. 0: nothing passes over; 1: the
    other's driver moves the face as much as its own. nan where its own moves nothing.
    """
    _same(made, other_changed)
    _same(made, own_changed)
    weights = np.asarray(face, np.float64)[..., None]
    return _ratio(
        *(float((weights * (np.asarray(each, np.float64) - made) ** 2).sum()) for each in (other_changed, own_changed))
    )


def landmark_leak(made: Floats, other_changed: Floats, own_changed: Floats, *, seen: Seen | None = None) -> float:
    """As `pixel_leak`, of a face's landmarks [F, N, >= 2] in the three videos."""
    _same(made, other_changed)
    _same(made, own_changed)
    kept = slice(None) if seen is None else seen
    base = np.asarray(made, np.float64)[kept, :, :2]
    changed = (np.asarray(each, np.float64)[kept, :, :2] for each in (other_changed, own_changed))
    return _ratio(*(float(((each - base) ** 2).sum()) for each in changed))


def gaze_vectors(gaze: Floats) -> NDArray[np.float64]:
    """Directions of unit length from gazes (right, up) of about -1 to 1. [..., 2] -> [..., 3]."""
    gaze = np.asarray(gaze, np.float64)
    away = np.stack([_ASIDE * gaze[..., 0], _UP * gaze[..., 1], np.ones(gaze.shape[:-1])], axis=-1)
    return away / np.linalg.norm(away, axis=-1, keepdims=True)


def blendshape_gaze(scores: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the eyes look by the face landmarker's scores [F, 52]. -> directions [F, 2, 3], how far shut [F, 2]."""
    scores = np.asarray(scores, np.float64)
    eyes = [(scores[:, right] - scores[:, left], scores[:, up] - scores[:, down]) for right, left, up, down in _LOOKS]
    return gaze_vectors(np.stack([np.stack(eye, axis=-1) for eye in eyes], axis=1)), scores[:, list(_BLINKS)]


def rotation_vectors(transforms: Floats) -> NDArray[np.float64]:
    """Of pose matrices [F, >= 3, >= 3], in radians. -> [F, 3]."""
    return Rotation.from_matrix(np.asarray(transforms, np.float64)[:, :3, :3]).as_rotvec()


def _same(first: Floats, second: Floats) -> None:
    if np.shape(first) != np.shape(second):
        raise ValueError(f"both must have one shape, got {np.shape(first)} and {np.shape(second)}")


def _mean(values: NDArray[np.floating], seen: Seen | None) -> float:
    """Of values [F, ...] in the frames that are seen."""
    kept = values if seen is None else values[seen]
    return float(kept.mean()) if kept.size else float("nan")


def _ratio(other: float, own: float) -> float:
    """Of the roots of two sums of squares."""
    return float(np.sqrt(other / own)) if own > 0 else float("nan")

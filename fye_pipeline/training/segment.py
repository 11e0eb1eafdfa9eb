"""Where a video can be cut into clips of one face: pure decisions on what was seen in every frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.config import DEFAULT_SCALE, DEFAULT_SHIFT
from fye_pipeline.animate.portrait import Crop, crop_around
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.topology import N_MESH

NO_FACE, SMALL = "no face", "face too small"
SHORT, BORDER, CROWDED = "too short", "face at the picture's border", "another face in the square"
UNREADABLE = "cannot be read"

_SCENE = 0.06  # mean change of a thumbnail's values (0..1) that a cut between shots exceeds ...
_SCENE_RATIO = 4.0  # ... and by so much the usual change of its neighbours
_NEIGHBOURS = 6  # frames on each side
_OTHER_FACE = 0.4  # a face of this share of the main one's size is a second person, not a picture on the wall
_CROWDED_SHARE = 0.1  # of a clip's frames


@dataclass(frozen=True)
class CutRules:
    """What makes a clip. min_face: pixels of the face's longer side; min_frames, max_frames: a clip's length.

    jump: mean movement of the landmarks between two frames, in face sizes, that no head makes. roam: share of the
    square that all places of the face together may fill. outside: how far a face may reach beyond the picture, in face
    sizes, and share of the square that may lie there.
    Raises `UserError` where a value makes no sense.
    """

    min_face: int = 128
    min_frames: int = 24
    max_frames: int = 240
    jump: float = 0.3
    roam: float = 0.9
    outside: float = 0.05

    def __post_init__(self) -> None:
        if self.min_face < 1 or self.min_frames < 2:
            raise UserError(
                f"min-face must be >= 1 pixel and min-frames >= 2, got {self.min_face} and {self.min_frames}."
            )
        if self.max_frames < self.min_frames:
            raise UserError(f"max-frames must be >= min-frames ({self.min_frames}), got {self.max_frames}.")


@dataclass(frozen=True)
class Sighting:
    """What was seen in one frame: the face that is followed (None: none), the other faces, and the change of the
    picture since the frame before (mean of a thumbnail's differences, 0..1; 0 for the first).
    """

    face: Face | None
    others: tuple[Face, ...] = ()
    change: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Frames `start` to `stop` (one past the last): a clip with its square, or what keeps them from being one."""

    start: int
    stop: int
    crop: Crop | None = None
    reason: str = ""

    def __len__(self) -> int:
        return self.stop - self.start


def cut(sightings: Sequence[Sighting], rules: CutRules) -> list[Piece]:
    """Divide a stretch of video into clips and rejected pieces; every frame belongs to exactly one.

    A clip ends where the face is lost, too small or jumps, where the shot changes, where the face would leave a square
    that stays still, and after `max_frames`.
    """
    states = [_state(sighting, rules) for sighting in sightings]
    shots = scene_cuts(np.array([sighting.change for sighting in sightings]))
    pieces = []
    for start, stop in _runs(sightings, states, shots, rules):
        if states[start]:
            pieces.append(Piece(start, stop, reason=states[start]))
            continue
        for first, last in _squares(sightings, start, stop, rules):
            pieces += [_judge(sightings, a, b, rules) for a, b in _even(first, last, rules.max_frames)]
    return pieces


def scene_cuts(changes: NDArray) -> NDArray[np.bool_]:
    """Where a shot begins: changes [F] that are large, and far above those around them. -> [F]."""
    cuts = changes > _SCENE
    for frame in np.flatnonzero(cuts):
        around = np.delete(changes[max(frame - _NEIGHBOURS, 0) : frame + _NEIGHBOURS + 1], min(frame, _NEIGHBOURS))
        cuts[frame] = len(around) == 0 or changes[frame] > _SCENE_RATIO * np.median(around)
    return cuts


def jumped(before: Face, after: Face, limit: float) -> bool:
    """Whether a face moved or changed its size faster than a head does."""
    scale = (before.width, before.height)
    moved = np.linalg.norm((after.landmarks - before.landmarks)[:N_MESH, :2] * scale, axis=1).mean()
    return bool(moved > limit * min(before.size, after.size))


def _state(sighting: Sighting, rules: CutRules) -> str:
    """Why a frame cannot be part of a clip, "" where it can."""
    if sighting.face is None:
        return NO_FACE
    return SMALL if sighting.face.size < rules.min_face else ""


def _runs(
    sightings: Sequence[Sighting], states: Sequence[str], shots: NDArray[np.bool_], rules: CutRules
) -> list[tuple[int, int]]:
    """Stretches of one state without a cut or a jump inside."""
    edges = [0]
    for frame in range(1, len(sightings)):
        before, after = sightings[frame - 1].face, sightings[frame].face
        broken = states[frame] != states[frame - 1] or (not states[frame] and shots[frame])
        if not broken and not states[frame]:
            assert before is not None
            assert after is not None
            broken = jumped(before, after, rules.jump)
        if broken:
            edges.append(frame)
    return list(pairwise([*edges, len(sightings)])) if sightings else []


def _squares(sightings: Sequence[Sighting], start: int, stop: int, rules: CutRules) -> list[tuple[int, int]]:
    """Divide a run where the face would leave the square around it."""
    edges, union, sizes = [start], None, 0.0
    for frame in range(start, stop):
        face = sightings[frame].face
        assert face is not None
        grown = _pixels(face) if union is None else _union(union, _pixels(face))
        room = rules.roam * DEFAULT_SCALE * (sizes + face.size) / (frame - edges[-1] + 1)
        if union is not None and max(grown[2] - grown[0], grown[3] - grown[1]) > room:
            edges.append(frame)
            grown, sizes = _pixels(face), 0.0
        union, sizes = grown, sizes + face.size
    return list(pairwise([*edges, stop]))


def _even(start: int, stop: int, longest: int) -> list[tuple[int, int]]:
    """Divide frames into the fewest parts of at most `longest`, as equal as can be."""
    parts = math.ceil((stop - start) / longest)
    edges = [start + round(part * (stop - start) / parts) for part in range(parts + 1)]
    return list(pairwise(edges))


def _judge(sightings: Sequence[Sighting], start: int, stop: int, rules: CutRules) -> Piece:
    """A clip with its square, or the reason why it is none."""
    if stop - start < rules.min_frames:
        return Piece(start, stop, reason=SHORT)
    seen = [(sighting.face, sighting.others) for sighting in sightings[start:stop] if sighting.face is not None]
    faces = [face for face, _ in seen]
    crop = clip_square(faces, rules.roam)
    if beyond(crop) > rules.outside or any(_cut_off(face) > rules.outside for face in faces):
        return Piece(start, stop, reason=BORDER)
    crowded = sum(any(_shows(crop, other, face) for other in others) for face, others in seen)
    if crowded > _CROWDED_SHARE * (stop - start):
        return Piece(start, stop, reason=CROWDED)
    return Piece(start, stop, crop=crop)


def clip_square(faces: Sequence[Face], roam: float) -> Crop:
    """The square that a clip is seen through: around the middle of all places of the face, as large as `crop_around`
    makes it for a portrait with a face of the mean size; smaller and moved where the picture ends, as long as all
    places of the face fill no more than `roam` of it.
    """
    width, height = faces[0].width, faces[0].height
    left, top, right, bottom = reach = _pixels(faces[0])
    for face in faces[1:]:
        left, top, right, bottom = reach = _union(reach, _pixels(face))
    half = float(np.mean([face.size for face in faces])) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = ((x - half) / width, (y - half) / height, (x + half) / width, (y + half) / height)
    wanted = crop_around(box, width, height, scale=DEFAULT_SCALE, shift=DEFAULT_SHIFT)
    side = max(min(wanted.side, width, height), math.ceil(max(right - left, bottom - top) / roam))
    middle = wanted.left + wanted.side / 2, wanted.top + wanted.side / 2
    return Crop(_placed(middle[0], side, width), _placed(middle[1], side, height), side, width, height)


def _placed(middle: float, side: int, length: int) -> int:
    """Where a square begins: around its middle, but inside the picture where it fits into it."""
    if side > length:
        return (length - side) // 2
    return min(max(round(middle - side / 2), 0), length - side)


def _cut_off(face: Face) -> float:
    """How far a face reaches beyond the picture, in face sizes."""
    left, top, right, bottom = _pixels(face)
    return max(-left, -top, right - face.width, bottom - face.height) / face.size


def beyond(crop: Crop) -> float:
    """The share of a square that lies beyond the picture, 0 to 1."""
    across = min(crop.left + crop.side, crop.width) - max(crop.left, 0)
    down = min(crop.top + crop.side, crop.height) - max(crop.top, 0)
    return 1 - max(across, 0) * max(down, 0) / crop.side**2


def in_square(landmarks: NDArray, crop: Crop) -> NDArray[np.float32]:
    """Landmarks [..., 3] of the picture (x, y in 0..1, z on x's scale) as those of the square."""
    scale = np.array([crop.width, crop.height, crop.width]) / crop.side
    corner = np.array([crop.left, crop.top, 0.0]) / crop.side
    return (np.asarray(landmarks, np.float64) * scale - corner).astype(np.float32)


def _pixels(face: Face) -> tuple[float, float, float, float]:
    left, top, right, bottom = face.box
    return left * face.width, top * face.height, right * face.width, bottom * face.height


def _union(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float, float, float]:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _shows(crop: Crop, other: Face, main: Face) -> bool:
    """Whether the middle of another face of comparable size lies in the square."""
    left, top, right, bottom = _pixels(other)
    x, y = (left + right) / 2 - crop.left, (top + bottom) / 2 - crop.top
    return other.size >= _OTHER_FACE * main.size and 0 <= x < crop.side and 0 <= y < crop.side

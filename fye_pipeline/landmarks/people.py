"""Several faces through a video: each is a track of its own, from left to right where they were first seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Box, Face, FindFaces, Picture, check_picture
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.spool import Spool
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace, check_gaps, check_rules, fill_gaps
from fye_pipeline.landmarks.windows import find_in_windows
from fye_pipeline.progress import logger

MOST_JUMP = 1.0  # from one sight of a face to the next, in sizes of the face
_LIKE = 2.0  # how many times larger or smaller a face may have become
_LEAST_SHARE = 0.5  # of the frames in which a person is seen; others are passers-by
_LEAST_WINDOW = 1.5  # side of the smallest window over the smallest face that is known
_FAR = 1e6  # the cost of a match that is not allowed


@dataclass
class _Track:
    """One person: where the landmarks go, the face where it was last seen, how far right it was at first.

    spool: None for who comes so late that the gap before is too long: a passer-by, of whom nothing is kept.
    """

    spool: Spool | None
    face: Face
    first: float
    sights: list[int]  # the frames in which the face was seen

    def found(self, frames: int) -> NDArray[np.bool_]:
        """[frames]: in which of them the face was seen."""
        seen = np.zeros(frames, bool)
        seen[self.sights] = True
        return seen


def track_people(
    find_faces: FindFaces,
    frames: Iterable[NDArray[np.uint8]],
    fps: Fraction | float,
    canonical: CanonicalFace,
    *,
    on_progress: Callable[[int], None] | None = None,
    no_face: NoFace = "interpolate",
    max_gap: float = DEFAULT_MAX_GAP,
    new_spool: Callable[[int], Spool] | None = None,
) -> list[LandmarkSequence]:
    """Follow every face through frames uint8 RGB [H, W, 3] -> one sequence a person, left to right where first seen.

    A face belongs to the track whose last sight is nearest, at most one size of the face away; one that belongs to none
    begins a track. Who is seen in fewer than half of the frames is a passer-by: left out, as the log says. All windows
    of the picture are looked at every `max_gap` seconds and where a face is lost, else the whole and the places of the
    known faces.
    Gaps are filled as `tracking.track` fills them. new_spool: gives the place for the landmarks of the n-th track,
    empty; by default in memory.

    Raises `UserError`, naming the person and the frames, where a face is missing for too long; where there is no face,
    and where frames differ in size.
    """
    check_rules(fps, no_face, max_gap)
    rate, limit = (Fraction(value).limit_denominator(1_000_000) for value in (fps, max_gap))
    patience = int(rate * limit)  # frames that a gap may have
    tracks: list[_Track] = []
    shape: tuple[int, ...] | None = None
    count = 0
    with ExitStack() as stack:
        for number, image in enumerate(frames):
            shape = shape or image.shape
            if image.shape != shape:
                raise UserError(f"Frame {number} of the video is {image.shape[:2]} (H, W), the first is {shape[:2]}.")
            faces, owners = _look(find_faces, check_picture(image), canonical, tracks, number, patience)
            for track, face in zip(tracks, _of_tracks(owners, faces, len(tracks)), strict=True):
                if track.spool is not None:
                    track.spool.append(face and face.arrays)
                if face:
                    track.face = face
                    track.sights.append(number)
            for face in (face for face, owner in zip(faces, owners, strict=True) if owner is None):
                spool = None
                if number <= patience:
                    spool = stack.enter_context(Spool() if new_spool is None else new_spool(len(tracks)))
                    for _ in range(number):
                        spool.append(None)
                    spool.append(face.arrays)
                tracks.append(_Track(spool, face, face.box[0] + face.box[2], [number]))
            count = number + 1
            if on_progress:
                on_progress(count)
        people = _people(tracks, count)
        for number, track in enumerate(people, 1):
            who = "No face was" if len(people) == 1 else f"Face {number} of {len(people)} (left to right) was not"
            check_gaps(track.found(count), rate, no_face=no_face, max_gap=max_gap, who=who)
            if track.spool is not None:
                fill_gaps(track.spool, rate, no_face=no_face, max_gap=max_gap)
    assert shape is not None
    spools = [track.spool for track in people if track.spool is not None]
    return [LandmarkSequence(**spool.arrays(), width=shape[1], height=shape[0], fps=rate) for spool in spools]


def _look(
    find_faces: FindFaces,
    image: Picture,
    canonical: CanonicalFace,
    tracks: Sequence[_Track],
    number: int,
    patience: int,
) -> tuple[list[Face], list[int | None]]:
    """The faces of frame `number` and the track of each: near those that are there, and, if one is lost, everywhere.

    Everywhere also once in `patience` frames; who was not seen for so long is not looked for, but known again.
    """
    known = [track.face for track in tracks]
    near = [track.face.box for track in tracks if number - track.sights[-1] <= patience + 1]
    if near and number % max(patience, 1):
        faces = find_in_windows(find_faces, image, canonical, near=near)
        owners = match(known, faces)
        if all(index in owners for index, track in enumerate(tracks) if track.sights[-1] == number - 1):
            return faces, owners
    least = _LEAST_WINDOW * min((face.size for face in known), default=0)
    faces = find_in_windows(find_faces, image, canonical, least=least)
    return faces, match(known, faces)


def match(known: Sequence[Face], faces: Sequence[Face]) -> list[int | None]:
    """For each face the known one that it is again, None for a new one: the smallest jumps in all, none above the most.

    known: everybody's face where it was last seen.
    """
    owners: list[int | None] = [None] * len(faces)
    if not known or not faces:
        return owners
    cost = np.full((len(faces), len(known)), _FAR)
    for row, face in enumerate(faces):
        for column, last in enumerate(known):
            jump = _way(face, last.box) / last.size
            if jump <= MOST_JUMP and 1 / _LIKE <= face.size / last.size <= _LIKE:
                cost[row, column] = jump
    for row, column in zip(*linear_sum_assignment(cost), strict=True):
        if cost[row, column] < _FAR:
            owners[int(row)] = int(column)
    return owners


def _way(face: Face, box: Box) -> float:
    """Pixels between the centre of a face and that of a box of the same picture."""
    own = face.box
    across = (own[0] + own[2] - box[0] - box[2]) / 2 * face.width
    down = (own[1] + own[3] - box[1] - box[3]) / 2 * face.height
    return float(np.hypot(across, down))


def _of_tracks(owners: Sequence[int | None], faces: Sequence[Face], count: int) -> list[Face | None]:
    seen: list[Face | None] = [None] * count
    for owner, face in zip(owners, faces, strict=True):
        if owner is not None:
            seen[owner] = face
    return seen


def _people(tracks: list[_Track], frames: int) -> list[_Track]:
    """The tracks of who is there for most of the video, left to right. Raises `UserError` where there is none."""
    if not frames:
        raise UserError("The video has no frames.")
    if not tracks:
        raise UserError(f"No face was found in any of the video's {frames} frames.")
    people = [track for track in tracks if len(track.sights) >= _LEAST_SHARE * frames]
    if not people:
        raise UserError(f"No face could be followed through half of the video's {frames} frames: use a calmer video.")
    if left_out := len(tracks) - len(people):
        logger.info(f"{left_out} more face{'s' * (left_out > 1)} seen in fewer than half of the frames: left out.")
    return sorted(people, key=lambda track: track.first)

"""One face through a video: choice, gaps, interpolation; whatever detector finds the faces."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from itertools import chain, islice
from types import TracebackType
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Box, Face, FindFaces, Picture, box_of, check_picture, choose
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence, runs_of
from fye_pipeline.landmarks.spool import Spool

NoFace = Literal["interpolate", "hold", "error"]
DEFAULT_MAX_GAP = 0.5  # seconds
_RANGES_NAMED = 8  # in an error's sentence


def track(
    find_faces: FindFaces,
    frames: Iterable[NDArray[np.uint8]],
    fps: Fraction | float,
    *,
    on_progress: Callable[[int], None] | None = None,
    no_face: NoFace = "interpolate",
    max_gap: float = DEFAULT_MAX_GAP,
    face_index: int | None = None,
    spool: Spool | None = None,
) -> LandmarkSequence:
    """Follow one face through frames uint8 RGB [H, W, 3], which are taken one at a time and not kept.

    The face is the largest (or the `face_index`-th from the left) of the first frame that has one, then the one that
    overlaps its last place. `on_progress` is called with the count of frames done. Frames without it are filled as
    `no_face` says: `interpolate` (linear, at the ends the nearest frame), `hold` (the last frame), or `error`.
    `spool` is where the landmarks are kept, by default in memory; frames that it holds already are not looked at again.

    Raises `UserError`, naming the ranges in seconds and frames, where the face is missing for longer than `max_gap`
    seconds, in every frame, or at all with `no_face="error"`; and where frames differ in size or there are none.
    """
    check_rules(fps, no_face, max_gap)
    spool = Spool() if spool is None else spool
    shape: tuple[int, ...] | None = None
    with spool:
        last_box = _last_box(spool)
        for number, image in enumerate(frames):
            shape = shape or image.shape
            if image.shape != shape:
                raise UserError(f"Frame {number} of the video is {image.shape[:2]} (H, W), the first is {shape[:2]}.")
            if number >= len(spool):
                face = choose(find_faces(check_picture(image)), face_index=face_index, last_box=last_box)
                last_box = face.box if face else last_box
                spool.append(face and face.arrays)
            if on_progress:
                on_progress(number + 1)
        fps = Fraction(fps).limit_denominator(1_000_000)
        fill_gaps(spool, fps, no_face=no_face, max_gap=max_gap)
    assert shape is not None
    return LandmarkSequence(**spool.arrays(), width=shape[1], height=shape[0], fps=fps)


class FaceDetector(ABC):
    """What finds faces in pictures, and so one face through a video; a context manager, as MediaPipe must be closed."""

    canonical: CanonicalFace

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""

    @abstractmethod
    def detect_all(self, image: Picture) -> list[Face]:
        """Every face in a uint8 RGB [H, W, 3] picture, left to right."""

    def detect(self, image: Picture, *, face_index: int | None = None) -> Face | None:
        """The largest face in a picture, or the `face_index`-th from the left; None where there is no such face."""
        return choose(self.detect_all(image), face_index=face_index)

    def detect_video(
        self,
        frames: Iterable[NDArray[np.uint8]],
        fps: Fraction | float,
        on_progress: Callable[[int], None] | None = None,
        no_face: NoFace = "interpolate",
        max_gap: float = DEFAULT_MAX_GAP,
        face_index: int | None = None,
        spool: Spool | None = None,
    ) -> LandmarkSequence:
        """One face through a video; the arguments and errors are those of `track`."""
        frames = iter(frames)
        first = list(islice(frames, 1))
        with self.following(first, fps, face_index) as (find, spooled):
            return track(
                find,
                chain(first, frames),
                fps,
                on_progress=on_progress,
                no_face=no_face,
                max_gap=max_gap,
                face_index=face_index,
                spool=spool if spooled else None,
            )

    def following(
        self, first: list[Picture], fps: Fraction | float, face_index: int | None
    ) -> AbstractContextManager[tuple[FindFaces, bool]]:
        """What looks at a video that begins with `first` (empty: no frame), and whether frames stand by themselves."""
        return nullcontext((self.detect_all, True))


def check_rules(fps: Fraction | float, no_face: NoFace, max_gap: float) -> None:
    """Raise `UserError` for a rule on frames without a face that there is not, or numbers that cannot be."""
    if no_face not in get_args(NoFace):
        raise UserError(f"no_face must be one of {', '.join(get_args(NoFace))}, got {no_face!r}.")
    if not (0 < fps < math.inf and 0 <= max_gap < math.inf):
        raise UserError(f"fps must be > 0 and max_gap >= 0 seconds, both finite, got {fps} and {max_gap}.")


def fill_gaps(spool: Spool, fps: Fraction, *, no_face: NoFace, max_gap: float) -> None:
    """Fill the frames of an open spool that have no face; `UserError` as `check_gaps`."""
    found = spool.found()
    check_gaps(found, fps, no_face=no_face, max_gap=max_gap)
    for gap in runs_of(~found):
        spool.put(gap[0], _filled(spool, *gap, len(found), hold=no_face == "hold"))


def _last_box(spool: Spool) -> Box | None:
    """Where the face was last seen, by what is in the spool already."""
    seen = np.flatnonzero(spool.found())
    return box_of(spool.frame(int(seen[-1]))["landmarks"]) if len(seen) else None


def check_gaps(
    found: NDArray[np.bool_], fps: Fraction, *, no_face: NoFace, max_gap: float, who: str = "No face was"
) -> None:
    """Raise `UserError` where frames without a face (`found` [F] False) are more than the rule allows.

    who: how the sentence begins, such as "Face 2 was not".
    """
    if not len(found):
        raise UserError("The video has no frames.")
    length = f"{len(found)} frames ({float(len(found) / fps):.2f} s)"
    if not found.any():
        raise UserError(f"{who} found in any of the video's {length}.")
    gaps = runs_of(~found)
    if no_face == "error" and gaps:
        raise UserError(f"{who} found in {_ranges(gaps, fps)} of the video's {length}.")
    limit = Fraction(max_gap).limit_denominator(1_000_000)  # 0.6 seconds at 10 frames a second are 6 frames
    long_gaps = [gap for gap in gaps if (gap[1] - gap[0]) / fps > limit]
    if long_gaps:
        raise UserError(
            f"{who} found for longer than {max_gap:g} s in {_ranges(long_gaps, fps)} of the video's {length}: "
            "cut these parts out or allow a longer gap."
        )


def _ranges(gaps: list[tuple[int, int]], fps: Fraction) -> str:
    """Such as "frames 3-9 (0.12-0.40 s)": first and last frame, and when the first begins and the last ends."""
    named = []
    for start, stop in gaps[:_RANGES_NAMED]:
        frames = f"frame {start}" if stop - start == 1 else f"frames {start}-{stop - 1}"
        named.append(f"{frames} ({float(start / fps):.2f}-{float(stop / fps):.2f} s)")
    more = f" and {len(gaps) - _RANGES_NAMED} more ranges" if len(gaps) > _RANGES_NAMED else ""
    return ", ".join(named) + more


def _filled(spool: Spool, start: int, stop: int, frames: int, *, hold: bool) -> dict[str, NDArray]:
    """The arrays of a gap, filled from the frames around it; at the ends of the video from the nearest."""
    before = spool.frame(start - 1 if start else stop)
    after = before if hold or not start or stop == frames else spool.frame(stop)
    # [F] in 0..1: how far a frame lies between the two
    share = (np.arange(start, stop) - (start - 1)) / (stop - start + 1)

    def blend(name: str) -> NDArray:
        part = share.reshape(-1, *[1] * before[name].ndim).astype(before[name].dtype)
        return before[name] + part * (after[name] - before[name])

    filled = {name: blend(name) for name in before}
    if after is not before:
        ends = np.stack([before["transforms"], after["transforms"]])
        turn = Slerp([0, 1], Rotation.from_matrix(ends[:, :3, :3]))
        filled["transforms"][:, :3, :3] = turn(share).as_matrix()
    return filled

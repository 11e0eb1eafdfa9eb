"""Which frames the UNet sees together, and in which order a long video is made; no tensor.

Windows: all at once at every step, as Follow-Your-Emoji v1. Clips: keyframes first, then the gaps, then the seams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fye_pipeline.errors import UserError

MODES = ("uniform", "tiles")
SHORTEST = 3  # frames of a clip: its two ends are given, and one between them is made
SEAM = 1  # frames on either side of a keyframe that are made again with it
SEAM_REACH = 3  # frames on either side that a seam's clip spans; those beyond SEAM are given


@dataclass(frozen=True)
class Window:
    """Frames that go through the UNet together, in this order, and the weight of each one's prediction."""

    frames: tuple[int, ...]
    weights: tuple[float, ...]


def plan_windows(frames: int, mode: str, *, length: int, overlap: int = 0, limit: int | None = None) -> list[Window]:
    """Plan the windows of a video: one clip where it fits into `length` frames, else as `mode` says.

    mode: "uniform" or "tiles". length: frames of a window; limit: the most that the model takes.
    overlap: frames that neighbouring tiles share (unused by "uniform").
    Raises UserError when the numbers allow no plan.
    """
    if mode not in MODES:
        raise UserError(f"long must be one of {MODES}, got {mode!r}")
    if frames < 1:
        raise UserError(f"the video must have at least 1 frame, got {frames}")
    if not 1 <= length <= (limit or length):
        raise UserError(f"a window must have 1 to {limit or 'any number of'} frames, got {length}")
    if frames <= length:
        return [Window(tuple(range(frames)), (1.0,) * frames)]
    return uniform_windows(frames, length) if mode == "uniform" else gaussian_tiles(frames, length, overlap)


def uniform_windows(frames: int, length: int) -> list[Window]:
    """Cut a video into windows side by side; the last one wraps to the first frames, as Follow-Your-Emoji v1."""
    return [
        Window(tuple(frame % frames for frame in range(start, start + length)), (1.0,) * length)
        for start in range(0, frames, length)
    ]


def gaussian_tiles(frames: int, length: int, overlap: int) -> list[Window]:
    """Lay tiles at offsets k * (length - overlap), the last one aligned to the end, as Follow-Your-Emoji v1.

    Raises UserError unless 0 <= overlap < length <= frames: a larger overlap would never end.
    """
    if not 0 <= overlap < length:
        raise UserError(f"overlap must be 0 to {length - 1}, less than the tiles' length {length}, got {overlap}")
    if frames < length:
        raise UserError(f"tiles of {length} frames need a video of at least {length} frames, got {frames}")
    starts = [*range(0, frames - length, length - overlap), frames - length]
    return [Window(tuple(range(start, start + length)), gaussian_weights(length)) for start in starts]


def gaussian_weights(length: int) -> tuple[float, ...]:
    """Weigh a tile's frames by exp(-(t - (L-1)/2)^2 / (L^2 * 0.02)) / sqrt(2 pi 0.01): the middle counts most."""
    middle = (length - 1) / 2
    return tuple(
        math.exp(-((t - middle) ** 2) / (length**2 * 0.02)) / math.sqrt(2 * math.pi * 0.01) for t in range(length)
    )


@dataclass(frozen=True)
class PlannedClip:
    """Frames that go through the UNet together, in ascending order, and those among them that are given.

    number: the clip's place in the plan. level: 0 for the clip that is given nothing; every gap is one level below the
    clips that make its ends. seam: it makes frames again that clips before it have made.
    """

    number: int
    level: int
    frames: tuple[int, ...]
    given: tuple[int, ...]
    seam: bool = False

    @property
    def made(self) -> tuple[int, ...]:
        """The frames that this clip generates."""
        return tuple(frame for frame in self.frames if frame not in self.given)


def plan_clips(frames: int, *, length: int, limit: int | None = None, seams: bool = False) -> list[PlannedClip]:
    """Plan a video as clips of at most `length` frames; each is given only frames that clips before it have made.

    The keyframes divide the video into the fewest gaps that fit into a clip with both their ends, evenly. They are one
    clip; where they are too many for one, they are planned as a video of their own.
    limit: the most frames that the model takes at once.
    seams: after the gaps on both sides of a keyframe, make it and its neighbours once more, given frames of both gaps
        (no part of the paper's plan). Gaps of less than 4 frames have none.
    Raises UserError when the numbers allow no plan.
    """
    if frames < 1:
        raise UserError(f"the video must have at least 1 frame, got {frames}")
    if not SHORTEST <= length <= (limit or length):
        raise UserError(f"a progressive clip must have {SHORTEST} to {limit or 'any number of'} frames, got {length}")
    clips = _plan(tuple(range(frames)), length)
    planned = _with_seams(clips) if seams and len(clips) > 1 else [(*clip, False) for clip in clips]
    return [PlannedClip(number, *clip) for number, clip in enumerate(planned)]


def _plan(frames: tuple[int, ...], length: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Plan any ascending frames: (level, frames, given) per clip, in the order of generation."""
    if len(frames) <= length:
        return [(0, frames, ())]
    gaps = -(-(len(frames) - 1) // (length - 1))
    keys = [gap * (len(frames) - 1) // gaps for gap in range(gaps + 1)]
    clips = _plan(tuple(frames[key] for key in keys), length)
    level = clips[-1][0] + 1
    inner = [(level, frames[a : b + 1], (frames[a], frames[b])) for a, b in pairwise(keys) if b - a > 1]
    return clips + inner


def _with_seams(
    clips: list[tuple[int, tuple[int, ...], tuple[int, ...]]],
) -> list[tuple[int, tuple[int, ...], tuple[int, ...], bool]]:
    """A plan with a seam after every two gaps of the lowest level that share a keyframe."""
    lowest = clips[-1][0]
    planned: list[tuple[int, tuple[int, ...], tuple[int, ...], bool]] = []
    before: tuple[int, ...] = ()
    for level, frames, given in clips:
        planned.append((level, frames, given, False))
        if level != lowest:
            continue
        # A frame that a seam is given must not be made again by the next one.
        reach = min(SEAM_REACH, len(before) - 2 - SEAM, len(frames) - 2 - SEAM)
        if before and before[-1] == frames[0] and reach > SEAM:
            key = frames[0]
            span = tuple(range(key - reach, key + reach + 1))
            held = tuple(frame for frame in span if abs(frame - key) > SEAM)
            planned.append((level + 1, span, held, True))
        before = frames
    return planned


def keyframes(plan: Sequence[PlannedClip]) -> list[int]:
    """The frames at which clips of the lowest level meet, the first and the last of the video left out."""
    gaps = [clip for clip in plan if not clip.seam]
    lowest = [clip for clip in gaps if clip.level == gaps[-1].level]
    return sorted({clip.frames[0] for clip in lowest} & {clip.frames[-1] for clip in lowest})


class ReadyFrames:
    """Follows clips as they are finished: which frames can be shown, all before them having been.

    A frame is ready when the last clip that makes it is finished.
    """

    def __init__(self, plan: Sequence[PlannedClip]) -> None:
        self._last = {frame: clip.number for clip in plan if clip.seam for frame in clip.made}
        self._waiting: set[int] = set()
        self._shown = 0

    def after(self, clip: PlannedClip) -> range:
        """The frames that have become ready with this clip."""
        self._waiting.update(frame for frame in clip.made if self._last.get(frame, clip.number) == clip.number)
        start = self._shown
        while self._shown in self._waiting:
            self._waiting.remove(self._shown)
            self._shown += 1
        return range(start, self._shown)

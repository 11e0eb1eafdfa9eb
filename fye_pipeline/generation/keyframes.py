"""The order in which a long video is generated: keyframes first, then the gaps between them; no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from fye_pipeline.errors import UserError

SHORTEST = 3  # frames of a clip: its two ends are given, and one between them is made


@dataclass(frozen=True)
class PlannedClip:
    """Frames that go through the UNet together, in ascending order, and those among them that are given.

    number: the clip's place in the plan. level: 0 for the clip that is given nothing; every gap is one level below the
    clips that make its ends.
    """

    number: int
    level: int
    frames: tuple[int, ...]
    given: tuple[int, ...]

    @property
    def made(self) -> tuple[int, ...]:
        """The frames that this clip generates."""
        return tuple(frame for frame in self.frames if frame not in self.given)


def plan_clips(frames: int, *, length: int, limit: int | None = None) -> list[PlannedClip]:
    """Plan a video as clips of at most `length` frames; each is given only frames that clips before it have made.

    The keyframes divide the video into the fewest gaps that fit into a clip with both their ends, evenly. They are one
    clip; where they are too many for one, they are planned as a video of their own.
    limit: the most frames that the model takes at once.
    Raises UserError when the numbers allow no plan.
    """
    if frames < 1:
        raise UserError(f"the video must have at least 1 frame, got {frames}")
    if not SHORTEST <= length <= (limit or length):
        raise UserError(f"a progressive clip must have {SHORTEST} to {limit or 'any number of'} frames, got {length}")
    return [PlannedClip(number, *clip) for number, clip in enumerate(_plan(tuple(range(frames)), length))]


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

"""What a run will take of the disk and of the user's time, told before it takes them."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

from fye_pipeline.errors import UserError

BYTES_A_PIXEL = 0.15  # of a busy picture at the quality that is written
LATENT_BYTES = 1 / 4  # of a pixel: 4 channels of float32 for 8 x 8 pixels
LANDMARK_BYTES = 11_700  # of a frame whose face is detected
_WORTH_SAYING = 120.0  # seconds of work, and of video


def check_room(output: Path, frames: int, size: tuple[int, int], work: int = 0) -> int:
    """How many bytes a video of this length and size may take, at most.

    work: bytes that are needed beside it until it is complete.
    Raises `UserError` where the disk has not the room for both.
    """
    needed = round(frames * size[0] * size[1] * BYTES_A_PIXEL)
    free = shutil.disk_usage(output.parent).free
    if free < needed + work:
        beside = f", {work / 1e6:.0f} MB more on the way to it" if work else ""
        raise UserError(
            f"{output} may take {needed / 1e6:.0f} MB{beside} and its disk has {free / 1e6:.0f} MB left: free space."
        )
    return needed


def work_bytes(frames: int, side: int, *, detected: bool) -> int:
    """How many bytes finished clips of squares of `side` pixels take, and landmarks where they are detected."""
    return round(frames * (side * side * LATENT_BYTES + detected * LANDMARK_BYTES))


def size_note(output: Path, frames: int, fps: Fraction, size: tuple[int, int], needed: int, work: int) -> str | None:
    """A sentence on a video that is long enough for one."""
    seconds = float(frames / fps)
    if seconds < _WORTH_SAYING:
        return None
    return (
        f"{output}: {frames} frames of {size[0]} x {size[1]} ({_clock(seconds)} at {float(fps):g} fps), at most "
        f"{needed / 1e6:.0f} MB, and {work / 1e6:.0f} MB beside it until it is complete"
    )


def time_note(stage: str, frames: int, seconds: float) -> str | None:
    """A sentence on work that takes long enough for one, as far as its first step tells."""
    if seconds < _WORTH_SAYING:
        return None
    about = f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    return f"{stage} {frames} frames takes at most about {about}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

"""Which frames the denoising UNet sees together, and how predictions of overlapping windows are joined; no tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fye_pipeline.errors import UserError

MODES = ("uniform", "tiles")


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

"""How near a cached result is to the uncached one: PSNR of pictures, videos or latents, everywhere or in a region."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ticache.region import check_region

# (result, uncached result[, region]) -> how near: more is better
Metric = Callable[..., float]
CEILING = 100.0  # dB; what is equal to rounding is no better than this
_FIELDS = ("frames", "images", "sample", "latents")


def as_tensor(result: Any) -> Tensor:
    """What a run gave, as one float tensor on the CPU, channels first: [..., C, H, W].

    A pipeline's output (its `frames` or `images`); tensors (latents, pictures) as they are; arrays and PIL pictures,
    which have channels last; bytes become [0, 1]. Lists are stacked, of a tuple the first entry counts. TypeError for
    anything else.
    """
    for name in _FIELDS:
        if not isinstance(result, Tensor) and getattr(result, name, None) is not None:
            return as_tensor(getattr(result, name))
    if isinstance(result, Tensor):
        return result.detach().cpu().float()
    if isinstance(result, tuple) and result:
        return as_tensor(result[0])
    if isinstance(result, list) and result:
        return torch.stack([as_tensor(each) for each in result])
    # A PIL picture tells its pixels to torch through numpy, as an array does.
    if hasattr(result, "__array_interface__") or hasattr(result, "__array__"):
        pixels = torch.tensor(np.array(result))
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, -3)
    raise TypeError(f"run must return pictures, latents or a pipeline's output, got {type(result).__name__}")


def psnr(result: Tensor, reference: Tensor, region: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB against peak 1, over all or weighted by `region`; 100 where nothing differs.

    result, reference: [..., C, H, W], or [B, C, F, H, W] as video latents are. region: as `ticache.apply` takes it; a
    mask a frame tells which axis of a video is F, and where C = F too it is the former layout.
    """
    error = (result.cpu().double() - reference.cpu().double()).square()
    if region is None:
        mean = float(error.mean())
    else:
        error, mask = _by_frame(error, check_region(region).cpu().double())
        mask = functional.interpolate(mask, size=tuple(error.shape[-2:]), mode="area")
        weights = mask.expand(-1, error.shape[1], -1, -1).repeat(len(error) // len(mask), 1, 1, 1)
        mean = float((error * weights).sum() / weights.sum().clamp_min(1e-12))
    return CEILING if mean <= 0 else min(-10 * math.log10(mean), CEILING)


def _by_frame(error: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Errors averaged over channels, and a mask of as many frames, or one. -> [B, F, H, W], [b, f, h, w]; b divides B.

    ValueError for a mask that does not fit.
    """
    if error.ndim < 3:
        raise ValueError(f"a region needs results with height and width, got shape {tuple(error.shape)}")
    frames = mask.shape[1]
    if error.ndim == 5:
        frames_first = error.shape[1] == frames or error.shape[2] != frames
        maps = error.mean(2 if frames_first else 1)
    else:
        maps = error.mean(-3).reshape(-1, *error.shape[-2:])
        # A list of pictures is the frames of a video, or samples of one frame each.
        maps = maps.reshape(-1, frames, *maps.shape[-2:]) if len(maps) % frames == 0 else maps[None]
    if frames not in (1, maps.shape[1]) or len(maps) % len(mask):
        masks = len(mask) * frames
        raise ValueError(f"region has {masks} masks, which do not fit results of shape {tuple(error.shape)}")
    return maps, mask


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)

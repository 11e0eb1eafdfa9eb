"""A region mask, at whatever resolution it is drawn, becomes the weights of a site's tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Region = Tensor | Callable[[int], Tensor] | None


class RegionMask:
    """The region in force: a mask, a callable `step -> mask`, or None; and its weights, computed once per shape."""

    def __init__(self, region: Region = None):
        self.given = region
        self._mask = None if region is None or callable(region) else check_region(region)
        self._memo: dict[Any, Tensor] = {}

    def check(self, batch: int, frames: int) -> None:
        """ValueError if a fixed mask does not fit a call."""
        if self._mask is not None:
            check_fits(self._mask, batch, frames)

    def at(self, step: int, batch: int, frames: int) -> Callable[[Tensor, bool], Tensor] | None:
        """A function from a feature, and if its module attends over time, to its weights; None without a region."""
        if self.given is None:
            return None
        mask, memo = self._mask, self._memo
        if mask is None:
            assert callable(self.given)
            mask, memo = check_region(self.given(step)), {}
            check_fits(mask, batch, frames)

        def weights(feature: Tensor, temporal: bool) -> Tensor:
            key = (feature.shape, temporal, batch, frames, feature.device)
            if key not in memo:
                memo[key] = site_weights(mask.to(feature.device), feature.shape, batch, frames, temporal=temporal)
            return memo[key]

        return weights


def check_region(region: Tensor) -> Tensor:
    """(H, W), (F, H, W) or (B, F, H, W), values in [0, 1] -> [B or 1, F or 1, H, W] in float32.

    TypeError for what is no array of numbers. ValueError for another number of axes, an empty mask, or values outside
    [0, 1] (checked for masks on the CPU only: reading a mask on a GPU would wait for it).
    """
    if not isinstance(region, Tensor):
        try:
            region = torch.as_tensor(region)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"region must be a mask of numbers, a callable `step -> mask`, or None, got {region!r}"
            ) from error
    if not 2 <= region.ndim <= 4:
        raise ValueError(f"region must be (H, W), (F, H, W) or (B, F, H, W), got shape {tuple(region.shape)}")
    if region.numel() == 0:
        raise ValueError(f"region must not be empty, got shape {tuple(region.shape)}")
    region = region.detach().to(torch.float32)
    if region.device.type == "cpu" and not (region.min() >= 0 and region.max() <= 1):
        raise ValueError(f"region must hold values in [0, 1], got {region.min().item():g} to {region.max().item():g}")
    return region.reshape((1,) * (4 - region.ndim) + tuple(region.shape))


def check_fits(region: Tensor, batch: int, frames: int) -> None:
    """ValueError unless a region [B, F, H, W] fits a call with `batch` samples of `frames` frames."""
    if region.shape[1] not in (1, frames):
        raise ValueError(f"region must have 1 or {frames} frames like the video, got {region.shape[1]}")
    if batch % region.shape[0]:
        raise ValueError(f"region must have a batch that divides the call's batch of {batch}, got {region.shape[0]}")


def site_weights(
    region: Tensor, shape: torch.Size | tuple[int, ...], batch: int, frames: int, *, temporal: bool = False
) -> Tensor:
    """Area-max-pool a region [B, F, H, W] to the tokens of a site; values in [0, 1], broadcastable over channels.

    A feature of `shape` may be laid out as
      [B*F, C, h, w]     -> [B*F, 1, h, w]
      [B, C, F, h, w]    -> [B, 1, F, h, w]
      [B*F, tokens, C]   -> [B*F, tokens, 1]    tokens = h*w in the region's aspect ratio
      [B*h*w, F, C]      -> [B*h*w, F, 1]       temporal attention
    where batches repeat for the halves of classifier-free guidance. Where shapes fit the last two alike, such as
    [16, 16, C] for 16 frames of 4 x 4 tokens, `temporal` tells. A site token is weighted by the largest value in
    the area it covers, so that no part of a region falls between tokens. ValueError for any other layout.
    """
    region = region.expand(-1, frames, -1, -1).repeat(batch // region.shape[0], 1, 1, 1)
    if len(shape) == 4 and shape[0] == batch * frames:
        return _pool(region, shape[2], shape[3]).reshape(batch * frames, 1, shape[2], shape[3])
    if len(shape) == 5 and shape[0] == batch and shape[2] == frames:
        return _pool(region, shape[3], shape[4])[:, None]
    over_time = len(shape) == 3 and shape[1] == frames and shape[0] % batch == 0
    if len(shape) == 3 and shape[0] == batch * frames and not (temporal and over_time):
        height, width = _grid(shape[1], region)
        return _pool(region, height, width).reshape(batch * frames, shape[1], 1)
    if over_time:
        height, width = _grid(shape[0] // batch, region)
        pooled = _pool(region, height, width)  # [B, F, h, w]
        return pooled.permute(0, 2, 3, 1).reshape(shape[0], frames, 1)
    raise ValueError(f"region cannot be laid over a site of shape {tuple(shape)}; batch {batch}, frames {frames}")


def _pool(region: Tensor, height: int, width: int) -> Tensor:
    return functional.adaptive_max_pool2d(region, (height, width))


def _grid(tokens: int, region: Tensor) -> tuple[int, int]:
    """h, w with h * w = tokens, as close as can be to the region's aspect ratio."""
    ratio = region.shape[-2] / region.shape[-1]
    heights = [height for height in range(1, tokens + 1) if tokens % height == 0]
    wanted = math.sqrt(tokens * ratio)
    height = min(heights, key=lambda h: abs(math.log(h / wanted)))
    return height, tokens // height

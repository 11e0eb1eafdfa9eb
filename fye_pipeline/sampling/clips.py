"""One prediction of the whole video: every window goes through the UNet, and what overlaps is averaged by weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fye_pipeline.sampling.windows import Window


@dataclass(frozen=True)
class Given:
    """Frames of a clip that are known beforehand. What stands in the other frames is never read."""

    latents: Tensor  # [1, 4, f, h, w], clean
    noise: Tensor  # [1, 4, f, h, w], of variance 1
    mask: Tensor  # [f] bool

    def hold(self, latents: Tensor, scheduler: Any, timestep: Tensor | None) -> Tensor:
        """Put given frames back, noised to `timestep` as in training, or clean (None). [1, 4, f, h, w] -> the same."""
        known = self.latents
        if timestep is not None:
            known = scheduler.add_noise(known, self.noise, timestep.reshape(1)).to(latents.dtype)
        return torch.where(self.mask[:, None, None], known, latents)


@dataclass(frozen=True)
class Clip:
    """One window's share of a run: its frames, their weights, and what the UNet is given for them at every step."""

    index: Tensor  # [f] long
    weights: Tensor  # [f] float32
    landmark_features: Tensor  # [1, C, f, h, w]
    region: Tensor | None  # [f, H, W]
    given: Given | None = None


@dataclass(frozen=True)
class Conditions:
    """What every UNet call of a run is given beside the latents; all of it is computed once."""

    image_tokens: Tensor  # [1 or 2, L, D]: with guidance, zeros first
    reference_tokens: list[Tensor]  # per spatial block [1, T, C]
    clips: list[Clip]
    hint: Tensor | None = None  # [1, 4, h, w]: what a UNet with `reference_hint` is shown of frames not given


def cut_clip(window: Window, features: Tensor, region: Tensor | None) -> Clip:
    """Cut one window's share out of the video's landmark features [1, C, F, h, w] and region [F, H, W]."""
    index = torch.tensor(window.frames, device=features.device)
    return Clip(
        index=index,
        weights=torch.tensor(window.weights, device=features.device),
        landmark_features=features[:, :, index],
        region=None if region is None else region.to(index.device)[index],
    )


def predict(
    unet: Any, latents: Tensor, timestep: Tensor, conditions: Conditions, before_clip: Callable[[Clip], None]
) -> Tensor:
    """Predict with every window and average by weight. [1, 4, F, h, w] -> [1 or 2, 4, F, h, w], one row per prompt.

    The average is taken before the scheduler's step. The official tiling steps every tile and averages after; as a
    deterministic step is linear in the prediction, the two agree to rounding, and here every scheduler works.
    `before_clip` is called before each UNet call. Sums are float32: at a tile's edge a weight is 1e-4.
    """
    rows = len(conditions.image_tokens)
    batch = latents.expand(rows, -1, -1, -1, -1)
    total = latents.new_zeros(batch.shape, dtype=torch.float32)
    weight = latents.new_zeros(latents.shape[2], dtype=torch.float32)
    for clip in conditions.clips:
        before_clip(clip)
        prediction = unet(
            with_given_frames(batch[:, :, clip.index], unet.config["in_channels"], conditions.hint, clip.given),
            timestep,
            encoder_hidden_states=conditions.image_tokens,
            reference_tokens=conditions.reference_tokens,
            landmark_features=clip.landmark_features,
            return_dict=False,
        )[0]
        total.index_add_(2, clip.index, prediction.float() * clip.weights[:, None, None])
        weight.index_add_(0, clip.index, clip.weights)
    return (total / weight[:, None, None]).to(latents.dtype)


def with_given_frames(latents: Tensor, channels: int, hint: Tensor | None = None, given: Given | None = None) -> Tensor:
    """Fill up to the UNet's input channels, as in training. [B, 4, F, h, w] -> [B, channels, F, h, w].

    The clean latents of frames that are not given are `hint` [1 or B, 4, h, w], or zeros; their mask is zero.
    """
    missing = channels - latents.shape[1]
    if not missing:
        return latents
    known = latents.new_zeros(len(latents), missing, *latents.shape[2:])
    if hint is not None:
        known[:, : hint.shape[1]] = hint[:, :, None]
    if given is not None:
        mask = given.mask[:, None, None]
        known[:, :-1] = torch.where(mask, given.latents, known[:, :-1])
        known[:, -1] = mask.to(known.dtype)
    return torch.cat([latents, known], dim=1)

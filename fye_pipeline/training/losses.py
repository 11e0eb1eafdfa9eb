"""What a step is told and judged by: given frames, v-prediction, and the facial loss on the clean latents behind v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """total = ldm + ffg_weight * ffg; each a scalar."""

    total: Tensor
    ldm: Tensor
    ffg: Tensor


def facial_fine_grained(
    clean: Tensor,
    predicted: Tensor,
    expression_mask: Tensor | None,
    facial_mask: Tensor | None,
) -> Tensor:
    """L_FFG = E || M_e (z - z^) + M_f (z - z^) ||^2; a latent under both masks counts twice before squaring.

    clean, predicted: [B, C, F, h, w]; masks: [B, F, h, w] in [0, 1], None switches a half off (Table 4).
    Raises ValueError if a mask does not fit. Returns a scalar, zero where both are off.
    """
    difference = clean - predicted
    weight = difference.new_zeros(())
    for name, mask in (("expression_mask", expression_mask), ("facial_mask", facial_mask)):
        if mask is None:
            continue
        if mask.shape != clean[:, 0].shape:
            raise ValueError(f"{name} must be {tuple(clean[:, 0].shape)}, got {tuple(mask.shape)}")
        weight = weight + mask[:, None].to(difference)
    return ((weight * difference) ** 2).mean()


def training_loss(
    scheduler: Any,
    v_predicted: Tensor,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    expression_mask: Tensor | None = None,
    facial_mask: Tensor | None = None,
    ffg_weight: float = 1.0,
) -> LossParts:
    """L = L_LDM + L_FFG. scheduler: a `DDPMScheduler`; latents [B, C, F, h, w], timesteps [B], masks [B, F, h, w]."""
    ldm = ((v_predicted - scheduler.get_velocity(clean, noise, timesteps)) ** 2).mean()
    noisy = scheduler.add_noise(clean, noise, timesteps)
    predicted = scheduler.get_velocity(v_predicted, noisy, timesteps)  # alpha z_t - sigma v: the clean latents behind v
    ffg = facial_fine_grained(clean, predicted, expression_mask, facial_mask)
    return LossParts(ldm + ffg_weight * ffg, ldm, ffg)


def draw_given_frames(
    batch: int, frames: int, *, none_share: float = 0.34, generator: torch.Generator | None = None
) -> Tensor:
    """Draw for each clip which frames are given: [B, F] of 0 and 1 (1 = given).

    Of the clips that are given anything, half keep the first and the last frame, half drop each frame with
    probability 0.5. `none_share` of the clips are given nothing: that is how keyframes and single clips are made.
    """
    if not 0 <= none_share <= 1:
        raise ValueError(f"none_share must be in [0, 1], got {none_share}")
    kind = torch.rand(batch, generator=generator)
    given = (torch.rand(batch, frames, generator=generator) < 0.5).float()
    ends = torch.zeros(frames)
    ends[0] = ends[-1] = 1
    keep_ends = kind >= none_share + (1 - none_share) / 2
    given[keep_ends] = ends
    given[kind < none_share] = 0
    return given


def with_given_frames(
    noisy: Tensor, clean: Tensor, given: Tensor, hint: Tensor | None = None, bent: Tensor | None = None
) -> Tensor:
    """Append masked clean latents and their mask. [B, C, F, h, w] x2, [B, F] -> [B, 2 C + 1, F, h, w].

    hint [B, C, h, w]: what stands in place of the clean latents of frames that are not given (default: zeros).
    bent [B, C + 1, F, h, w]: latents of the bent portraits, and where they can be trusted; these come last.
    """
    mask = given[:, None, :, None, None].to(clean)
    known = clean * mask
    if hint is not None:
        known = known + hint[:, :, None] * (1 - mask)
    more = [] if bent is None else [bent]
    return torch.cat([noisy, known, mask.expand(-1, 1, -1, *clean.shape[-2:]), *more], dim=1)

"""Which frames of a clip are given clean to the UNet, so that it learns to fill gaps (progressive generation)."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("none", "ends", "random")


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


def with_given_frames(noisy: Tensor, clean: Tensor, given: Tensor, hint: Tensor | None = None) -> Tensor:
    """Append masked clean latents and their mask. [B, 4, F, h, w] x2, [B, F] -> [B, 9, F, h, w].

    hint [B, 4, h, w]: what stands in place of the clean latents of frames that are not given (default: zeros).
    """
    mask = given[:, None, :, None, None].to(clean)
    known = clean * mask
    if hint is not None:
        known = known + hint[:, :, None] * (1 - mask)
    return torch.cat([noisy, known, mask.expand(-1, 1, -1, *clean.shape[-2:])], dim=1)

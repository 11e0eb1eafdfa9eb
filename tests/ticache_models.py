"""Tiny random UNets and loops of every family, shared by the tests of `ticache`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

_SHARED: dict[str, Any] = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1}
_ATTENTION: dict[str, Any] = {"cross_attention_dim": 8, "norm_num_groups": 4}


def _blocks(outer: str, inner: str) -> dict[str, Any]:
    """Two levels; `Down` in the names of their blocks becomes `Up` on the way back."""
    back = inner.replace("Down", "Up"), outer.replace("Down", "Up")
    return {"down_block_types": (outer, inner), "up_block_types": back}


_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "condition": (
        UNet2DConditionModel,
        _ATTENTION | {"attention_head_dim": 8} | _blocks("CrossAttnDownBlock2D", "DownBlock2D"),
    ),
    "motion": (
        UNetMotionModel,
        _ATTENTION
        | {"num_attention_heads": 2, "motion_num_attention_heads": 2, "motion_max_seq_length": 8}
        | _blocks("CrossAttnDownBlockMotion", "DownBlockMotion"),
    ),
    "spatiotemporal": (
        UNetSpatioTemporalConditionModel,
        {"block_out_channels": (32, 64), "cross_attention_dim": 8, "num_attention_heads": 2}  # normalised in 32 groups
        | {"in_channels": 8, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24, "num_frames": 3}
        | _blocks("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    ),
    "3d": (
        UNet3DConditionModel,
        {"block_out_channels": (32, 64), "cross_attention_dim": 8, "norm_num_groups": 32, "attention_head_dim": 8}
        | _blocks("CrossAttnDownBlock3D", "DownBlock3D"),
    ),
    "unconditional": (
        UNet2DModel,
        {"in_channels": 4, "out_channels": 4, "norm_num_groups": 4, "attention_head_dim": 8}
        | _blocks("DownBlock2D", "AttnDownBlock2D"),
    ),
}
FAMILIES = tuple(_KINDS)


def make_unet(family: str = "condition", **changes: Any) -> nn.Module:
    """A tiny UNet of a family with random weights, 8x8 latents, two levels of one layer (two up layers) each."""
    torch.manual_seed(0)
    kind, own = _KINDS[family]
    return kind(**_SHARED | own | changes).eval()


def make_inputs(family: str = "condition", *, batch: int = 2, frames: int = 3, size: int = 8, seed: int = 1):
    """(sample, keyword arguments) of one call of a family."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if family == "condition":
        return randn(batch, 4, size, size), {"encoder_hidden_states": randn(batch, 5, 8)}
    if family == "motion":
        return randn(batch, 4, frames, size, size), {"encoder_hidden_states": randn(batch * frames, 5, 8)}
    if family == "spatiotemporal":
        tokens = {"encoder_hidden_states": randn(batch, 1, 8), "added_time_ids": randn(batch, 3)}
        return randn(batch, frames, 8, size, size), tokens
    if family == "3d":
        return randn(batch, 4, frames, size, size), {"encoder_hidden_states": randn(batch, 5, 8)}
    return randn(batch, 4, size, size), {}


def ddim() -> Any:
    """A deterministic scheduler that does not clip, so that features move smoothly."""
    return DDIMScheduler(clip_sample=False, steps_offset=1)


@torch.no_grad()
def denoise(
    unet: Any,
    scheduler: Any,
    sample: Tensor,
    conditions: dict[str, Any],
    *,
    steps: int | None = 30,
    timesteps: Iterable[Any] | None = None,
    each: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """A hand-written loop. steps=None keeps the timesteps that are set; `each(step, output)` sees every UNet output."""
    if steps is not None:
        scheduler.set_timesteps(steps)
    for step, t in enumerate(scheduler.timesteps if timesteps is None else timesteps):
        model_input = scheduler.scale_model_input(sample, t)
        output = unet(model_input, t, **conditions).sample
        if each is not None:
            each(step, output)
        moving = sample[:, :, :4] if output.shape != sample.shape else sample
        moved = scheduler.step(output, t, moving).prev_sample
        sample = moved if output.shape == sample.shape else torch.cat([moved, sample[:, :, 4:]], dim=2)
    return sample


class Recorder:
    """Keeps a copy of what a module puts out (the first tensor), call by call, without changing it."""

    def __init__(self, module: nn.Module):
        self.outputs: list[Tensor] = []
        self._handle = module.register_forward_hook(self._note)

    def _note(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.outputs.append((output if isinstance(output, Tensor) else output[0]).detach().clone())

    def remove(self) -> None:
        self._handle.remove()

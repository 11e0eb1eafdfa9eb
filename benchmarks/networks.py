"""The UNets that are timed: published configurations with random weights; `quick` makes their inputs smaller.

Full size: classifier-free guidance in one batch of 2 at the published resolution, half precision on a GPU. Quick, for a
CPU: one sample at 128 pixels (AnimateDiff: 2 frames), so that a few minutes are enough; widths and depths stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from diffusers.utils import logging
from torch import Tensor, nn


@dataclass
class TimedUNet:
    """A UNet and one set of inputs; looks like a pipeline to what expects one (`unet`, `scheduler`, `controlnet`)."""

    unet: nn.Module
    sample: Tensor
    arguments: dict[str, Any]
    controlnet: nn.Module | None = None
    control_image: Tensor | None = None
    scheduler: Any = field(default_factory=DDIMScheduler)
    function: Callable[..., Any] | None = None  # the UNet compiled, where it is

    def run(self, steps: int) -> None:
        """One denoising run's worth of UNet (and ControlNet) calls; the sample stays, only the timestep moves."""
        self.scheduler.set_timesteps(steps)
        function = self.unet if self.function is None else self.function
        with torch.no_grad():
            for timestep in self.scheduler.timesteps:
                function(self.sample, timestep, **self.arguments, **self._control(timestep), return_dict=False)
        if self.sample.is_cuda:
            torch.cuda.synchronize(self.sample.device)

    def _control(self, timestep: Tensor) -> dict[str, Any]:
        if self.controlnet is None:
            return {}
        down, middle = self.controlnet(
            self.sample,
            timestep,
            encoder_hidden_states=self.arguments["encoder_hidden_states"],
            controlnet_cond=self.control_image,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def sd15(device: torch.device, dtype: torch.dtype, *, quick: bool, controlnet: bool = False) -> TimedUNet:
    """Stable Diffusion 1.5 at 512x512, quick 128x128."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    batch, size = (1, 16) if quick else (2, 64)
    timed = _timed(unet, (batch, 4, size, size), (batch, 77, 768), device, dtype)
    if controlnet:
        timed.controlnet = _placed(ControlNetModel.from_unet(unet), device, dtype)
        timed.control_image = torch.randn(batch, 3, 8 * size, 8 * size, device=device, dtype=dtype)
    return timed


def sd15_controlnet(device: torch.device, dtype: torch.dtype, *, quick: bool) -> TimedUNet:
    """Stable Diffusion 1.5 with one ControlNet."""
    return sd15(device, dtype, quick=quick, controlnet=True)


def sdxl(device: torch.device, dtype: torch.dtype, *, quick: bool) -> TimedUNet:
    """Stable Diffusion XL at 1024x1024, quick 128x128."""
    # diffusers calls the number of heads attention_head_dim
    attention: dict[str, Any] = {"transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20]}
    unet = UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        **attention,
    )
    batch, size = (1, 16) if quick else (2, 128)
    timed = _timed(unet, (batch, 4, size, size), (batch, 77, 2048), device, dtype)
    timed.arguments["added_cond_kwargs"] = {
        "text_embeds": torch.randn(batch, 1280, device=device, dtype=dtype),
        "time_ids": torch.zeros(batch, 6, device=device, dtype=dtype),
    }
    return timed


def animatediff(device: torch.device, dtype: torch.dtype, *, quick: bool) -> TimedUNet:
    """AnimateDiff on Stable Diffusion 1.5, 16 frames of 256x256, quick 2 of 128x128."""
    unet = UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=False)
    batch, frames, size = (1, 2, 16) if quick else (2, 16, 32)
    return _timed(unet, (batch, 4, frames, size, size), (batch * frames, 77, 768), device, dtype)


def portrait(device: torch.device, dtype: torch.dtype, *, quick: bool) -> TimedUNet:
    """The portrait UNet: 16 frames of 512x512; quick, the model that ships on 8 frames of 128x128."""
    from fye_pipeline.models.denoising_unet import DenoisingUNet
    from fye_pipeline.models.tiny import IMAGE_DIM, build_tiny

    unet = build_tiny()["unet"] if quick else DenoisingUNet()
    batch, frames, size, tokens, width = (1, 8, 16, 17, IMAGE_DIM) if quick else (2, 16, 64, 257, 1024)
    timed = _timed(unet, (batch, 4, frames, size, size), (batch, tokens, width), device, dtype)
    channels = unet.config["block_out_channels"][0]
    timed.arguments["landmark_features"] = torch.randn(batch, channels, frames, size, size, device=device, dtype=dtype)
    return timed


def _placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    logging.set_verbosity_error()  # diffusers warns of every cast, also of one to the dtype that there is
    return module.to(device, dtype).eval()


def _timed(
    unet: nn.Module, sample: tuple[int, ...], tokens: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> TimedUNet:
    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return TimedUNet(_placed(unet, device, dtype), normal(sample), {"encoder_hidden_states": normal(tokens)})


UNETS: dict[str, Callable[..., TimedUNet]] = {
    "sd15": sd15,
    "sd15+controlnet": sd15_controlnet,
    "animatediff": animatediff,
    "sdxl": sdxl,
    "portrait": portrait,
}

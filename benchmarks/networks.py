"""The UNets that are timed: real configurations with random weights, and small ones of the same build for `quick`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from diffusers.utils import logging
from torch import Tensor, nn

STEPS = 30


@dataclass
class Subject:
    """A UNet and one set of inputs; looks like a pipeline to what expects one (`unet`, `scheduler`, `controlnet`)."""

    unet: nn.Module
    sample: Tensor
    arguments: dict[str, Any]
    controlnet: nn.Module | None = None
    control_image: Tensor | None = None
    scheduler: Any = field(default_factory=DDIMScheduler)
    function: Callable[..., Any] | None = None  # the UNet compiled, where it is

    def run(self) -> None:
        """One denoising run's worth of UNet (and ControlNet) calls; the sample stays, only the timestep moves."""
        self.scheduler.set_timesteps(STEPS)
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


# Every batch is 2: classifier-free guidance.
_SMALL: dict[str, Any] = {
    "block_out_channels": (32, 48, 64, 64),
    "norm_num_groups": 16,
    "cross_attention_dim": 64,
    "layers_per_block": 1,
}


def sd15(device: torch.device, dtype: torch.dtype, *, quick: bool, controlnet: bool = False) -> Subject:
    """Stable Diffusion 1.5 at 512x512."""
    config: dict[str, Any] = {**_SMALL, "attention_head_dim": 4} if quick else {"cross_attention_dim": 768}
    unet = UNet2DConditionModel(sample_size=16 if quick else 64, **config)
    size, width = (16, 64) if quick else (64, 768)
    subject = _subject(unet, (2, 4, size, size), (2, 77, width), device, dtype)
    if controlnet:
        subject.controlnet = _placed(ControlNetModel.from_unet(unet), device, dtype)
        subject.control_image = torch.randn(2, 3, 8 * size, 8 * size, device=device, dtype=dtype)
    return subject


def sd15_controlnet(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Subject:
    """Stable Diffusion 1.5 at 512x512 with one ControlNet."""
    return sd15(device, dtype, quick=quick, controlnet=True)


def sdxl(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Subject:
    """Stable Diffusion XL at 1024x1024."""
    levels: dict[str, Any] = {
        "block_out_channels": (32, 48, 64) if quick else (320, 640, 1280),
        "layers_per_block": 1 if quick else 2,
        "norm_num_groups": 16 if quick else 32,
        "transformer_layers_per_block": [1, 1, 2] if quick else [1, 2, 10],
        "attention_head_dim": 4 if quick else [5, 10, 20],  # diffusers calls the number of heads so
        "cross_attention_dim": 64 if quick else 2048,
        "addition_time_embed_dim": 16 if quick else 256,
        "projection_class_embeddings_input_dim": 6 * 16 + 32 if quick else 2816,
    }
    unet = UNet2DConditionModel(
        sample_size=16 if quick else 128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        **levels,
    )
    size, width = (16, 64) if quick else (128, 2048)
    subject = _subject(unet, (2, 4, size, size), (2, 77, width), device, dtype)
    subject.arguments["added_cond_kwargs"] = {
        "text_embeds": torch.randn(2, 32 if quick else 1280, device=device, dtype=dtype),
        "time_ids": torch.zeros(2, 6, device=device, dtype=dtype),
    }
    return subject


def animatediff(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Subject:
    """AnimateDiff on Stable Diffusion 1.5, 16 frames of 256x256."""
    config: dict[str, Any] = {"cross_attention_dim": 768, "use_motion_mid_block": False}
    if quick:
        config |= {**_SMALL, "num_attention_heads": 4, "motion_num_attention_heads": 4}
    unet = UNetMotionModel(**config)
    frames, size, width = (2, 16, 64) if quick else (16, 32, 768)
    return _subject(unet, (2, 4, frames, size, size), (2 * frames, 77, width), device, dtype)


def portrait(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Subject:
    """The portrait UNet: 16 frames of 512x512 in full size; quick, the tiny model and 2 frames of 64x64."""
    from fye_pipeline.models.denoising_unet import DenoisingUNet
    from fye_pipeline.models.tiny import IMAGE_DIM, build_tiny

    unet = build_tiny()["unet"] if quick else DenoisingUNet()
    frames, size, tokens, width = (2, 8, 17, IMAGE_DIM) if quick else (16, 64, 257, 1024)
    subject = _subject(unet, (2, 4, frames, size, size), (2, tokens, width), device, dtype)
    channels = unet.config["block_out_channels"][0]
    subject.arguments["landmark_features"] = torch.randn(2, channels, frames, size, size, device=device, dtype=dtype)
    return subject


def _placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    logging.set_verbosity_error()  # diffusers warns of every cast, also of one to the dtype that there is
    return module.to(device, dtype).eval()


def _subject(
    unet: nn.Module, sample: tuple[int, ...], tokens: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Subject:
    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return Subject(_placed(unet, device, dtype), normal(sample), {"encoder_hidden_states": normal(tokens)})


SUBJECTS: dict[str, Callable[..., Subject]] = {
    "sd15": sd15,
    "sd15+controlnet": sd15_controlnet,
    "animatediff": animatediff,
    "sdxl": sdxl,
    "portrait": portrait,
}

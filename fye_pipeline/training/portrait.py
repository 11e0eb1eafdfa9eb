"""The trainable model as one module: a batch goes in, the predicted v comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from fye_pipeline.training.batches import Batch

PARTS = ("image_encoder", "appearance_net", "landmark_encoder", "unet")


class PortraitModel(nn.Module):
    """Appearance net, denoising UNet, landmark encoder and image encoder under one roof, for the optimizer and DDP."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        self.image_encoder = parts["image_encoder"]
        self.appearance_net = parts["appearance_net"]
        self.landmark_encoder = parts["landmark_encoder"]
        self.unet = parts["unet"]

    def forward(self, sample: Tensor, timesteps: Tensor, batch: Batch, keep: Tensor) -> Tensor:
        """Predict v. sample [B, 4 or 9, F, h, w], timesteps [B], keep [B] (False: no reference) -> [B, 4, F, h, w].

        The F frames of a sample share its reference and timestep.
        """
        assert batch.reference is not None
        tokens = self.image_encoder(batch.prompt_pixels).last_hidden_state
        reference_tokens = self.appearance_net(batch.reference, tokens)
        features = self.landmark_encoder(batch.landmarks)
        return self.unet(
            sample,
            timesteps,
            encoder_hidden_states=tokens * keep[:, None, None].to(tokens),
            reference_tokens=reference_tokens,
            reference_mask=keep,
            landmark_features=features,
        ).sample

    def choose_trainable(self, phase: str, *, image_encoder: bool = True, conv_in: bool = True) -> list[nn.Parameter]:
        """Phase "image": everything but the motion modules; "video": those, and `conv_in` where frames can be given.

        `conv_in` takes part because only clips can teach it the channels of the frames that are given; switch it off to
        train the motion modules alone. image_encoder: False leaves the vision model as it is.
        """
        conv_in = conv_in and self.unet.config["in_channels"] > 4
        for name, parameter in self.named_parameters():
            motion = "motion_modules" in name
            if phase == "image":
                frozen = motion or (name.startswith("image_encoder.") and not image_encoder)
                parameter.requires_grad_(not frozen)
            else:
                parameter.requires_grad_(motion or (conv_in and name.startswith("unet.conv_in")))
        transformer = self.appearance_net.up_blocks[-1].attentions[-1]
        transformer.proj_out.requires_grad_(False)  # behind the last export: never used
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


@contextmanager
def motion_left_out(model: PortraitModel) -> Iterator[None]:
    """Leave the motion modules out, so that frames are pictures by themselves and cost what pictures cost (phase I)."""
    modules = [m for m in model.unet.modules() if isinstance(m, AnimateDiffTransformer3D)]
    for module in modules:
        module.forward = _pass_on
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


class Average:
    """An exponential moving average of trainable parameters, kept in float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.shadow = {n: p.detach().clone().float() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model; early on the average follows faster."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                self.shadow[name].lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the averages; call it again to change back."""
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                kept = parameter.detach().clone()
                parameter.copy_(self.shadow[name])
                self.shadow[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.steps = state["steps"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)

"""Denoising: free functions over a pipeline's networks, its scheduler and its cache, read top to bottom.

`prepare_conditions` encodes what every step is given, `denoise` runs the scheduler's loop over `predict`: one
prediction of the whole video, for which every clip goes through the UNet and what overlaps is averaged by weight.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from fye_pipeline.models.dilation import Dilation, dilated_step
from fye_pipeline.sampling.clip_plan import Window

AfterStep = Callable[[int, Tensor, Tensor], Tensor]


class Components(Protocol):
    """What sampling reads of a `FollowYourEmojiPipeline`."""

    vae: Any
    image_encoder: Any
    feature_extractor: Any
    appearance_net: Any
    unet: Any
    landmark_encoder: Any
    scheduler: Any
    vae_scale_factor: int
    guidance_scale: float
    _interrupt: bool

    @property
    def components(self) -> dict[str, Any]: ...

    @property
    def _execution_device(self) -> Any: ...

    @property
    def noise_scale(self) -> float: ...

    @property
    def session(self) -> Any: ...

    def tell_region(self, region: Tensor | None) -> None: ...

    def maybe_free_model_hooks(self) -> None: ...


@dataclass(frozen=True)
class Given:
    """Frames of a clip that are known beforehand. What stands in the other frames is never read."""

    latents: Tensor  # [1, C, f, h, w], clean
    noise: Tensor  # [1, C, f, h, w], of variance 1
    mask: Tensor  # [f] bool

    def hold(self, latents: Tensor, scheduler: Any, timestep: Tensor | None) -> Tensor:
        """Put given frames back, noised to `timestep` as in training, or clean (None). [1, C, f, h, w] -> the same."""
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
    bent: Tensor | None = None  # [1, 5, f, h, w]: latents of the bent portrait, and where it can be trusted


@dataclass(frozen=True)
class Conditions:
    """What every UNet call of a run is given beside the latents; all of it is computed once."""

    image_tokens: Tensor  # [1 or 2, L, D]: with guidance, zeros first
    reference_tokens: list[Tensor]  # per spatial block [1, T, C]
    clips: list[Clip]
    hint: Tensor | None = None  # [1, C, h, w]: what a UNet with `reference_hint` is shown of frames not given
    dilation: Dilation = "auto"  # of the early steps, where the picture is larger than the trained one


def cut_clip(window: Window, features: Tensor, region: Tensor | None, bent: Tensor | None = None) -> Clip:
    """Cut one window's share out of the video's landmark features [1, C, F, h, w], region [F, H, W] and bent portraits
    [1, 5, F, h, w].
    """
    index = torch.tensor(window.frames, device=features.device)
    return Clip(
        index=index,
        weights=torch.tensor(window.weights, device=features.device),
        landmark_features=features[:, :, index],
        region=None if region is None else region.to(index.device)[index],
        bent=None if bent is None else bent[:, :, index],
    )


def encode_image(pipe: Components, portrait: Image.Image) -> Tensor:
    """Encode a picture into vision tokens: the last hidden state, class token included. -> [1, L, D]."""
    pixels = pipe.feature_extractor(images=portrait, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(pipe._execution_device, pipe.image_encoder.dtype)
    return pipe.image_encoder(pixels).last_hidden_state


def encode_reference(pipe: Components, portrait: Image.Image | np.ndarray) -> Tensor:
    """Encode a picture into its scaled latent, the posterior's mean. -> [1, C, h, w]."""
    pixels = torch.tensor(np.asarray(portrait)).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = pixels.to(pipe._execution_device, pipe.vae.dtype)
    posterior = pipe.vae.encode(pixels, return_dict=False)[0]
    return posterior.mean * pipe.vae.config["scaling_factor"]


def encode_landmarks(pipe: Components, pictures: np.ndarray, chunk: int = 32) -> Tensor:
    """Encode landmark pictures, uint8 [F, H, W, 3], `chunk` frames at a time. -> [1, C, F, h, w]."""
    encoder = pipe.landmark_encoder
    features = []
    for start in range(0, len(pictures), chunk):
        part = torch.tensor(pictures[start : start + chunk]).to(pipe._execution_device, encoder.dtype) / 255
        features.append(encoder(part.permute(3, 0, 1, 2)[None]))
    return torch.cat(features, dim=2)


def encode_bent(pipe: Components, pictures: np.ndarray | None, chunk: int = 8) -> Tensor | None:
    """Encode bent portraits, uint8 RGBA [F, H, W, 4], whose alpha says where they can be trusted. -> [1, 5, F, h, w].

    None where there are none, or where the UNet has no channels for them.
    """
    if pictures is None or not pipe.unet.config["bent_hint"]:
        return None
    vae = pipe.vae
    hints = []
    for start in range(0, len(pictures), chunk):
        part = torch.tensor(pictures[start : start + chunk]).permute(0, 3, 1, 2).to(pipe._execution_device, vae.dtype)
        latents = vae.encode(part[:, :3] / 127.5 - 1, return_dict=False)[0].mean * vae.config["scaling_factor"]
        trust = torch.nn.functional.interpolate(part[:, 3:] / 255, size=latents.shape[-2:], mode="area")
        hints.append(torch.cat([latents, trust], dim=1))
    return torch.cat(hints).transpose(0, 1)[None].to(pipe.unet.dtype)


def decode_frames(
    pipe: Components, latents: Tensor, chunk: int = 1, device: torch.device | None = None
) -> Iterator[Tensor]:
    """Decode latents [1, C, F, h, w] `chunk` frames at a time. Yields float32 [n, 3, H, W] in [0, 1].

    device: where the pipeline computes. Diffusers walks all modules to tell it, which takes as long as a small frame.
    """
    scaled = latents[0].transpose(0, 1) / pipe.vae.config["scaling_factor"]
    for part in scaled.to(device or pipe._execution_device, pipe.vae.dtype).split(chunk):
        with torch.no_grad():  # not around the yield: what the caller does between two parts is the caller's
            decoded = pipe.vae.decode(part, return_dict=False)[0]
        yield (decoded.float() / 2 + 0.5).clamp(0, 1)


def prepare_conditions(
    pipe: Components,
    portrait: Image.Image,
    image_tokens: Tensor | None,
    clips: list[Clip],
    *,
    guided: bool,
    dilation: Dilation = "auto",
) -> Conditions:
    """Encode the reference, once per run and on the conditional row only."""
    tokens = encode_image(pipe, portrait) if image_tokens is None else image_tokens
    tokens = tokens.to(pipe._execution_device, pipe.unet.dtype)
    dtype = pipe.appearance_net.dtype
    reference = encode_reference(pipe, portrait)
    reference_tokens = pipe.appearance_net(reference.to(dtype), tokens.to(dtype))
    return Conditions(
        image_tokens=torch.cat([torch.zeros_like(tokens), tokens]) if guided else tokens,
        reference_tokens=[each.to(pipe.unet.dtype) for each in reference_tokens],
        clips=clips,
        hint=reference.to(pipe.unet.dtype) if pipe.unet.config["reference_hint"] else None,
        dilation=dilation,
    )


def denoise(
    pipe: Components,
    latents: Tensor,
    conditions: Conditions,
    guidance_scale: float,
    generator: Generator | list[Generator] | None,
    after_step: AfterStep,
) -> Tensor:
    """Run the scheduler's loop; `after_step(step, timestep, latents)` may change them. [1, C, F, h, w] -> same."""
    takes_generator = "generator" in inspect.signature(pipe.scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    pipe.guidance_scale = guidance_scale  # where diffusers' own pipelines tell it
    timesteps = pipe.scheduler.timesteps
    trained = pipe.unet.config["sample_size"]
    larger = conditions.dilation == "auto" and latents.shape[-2:].numel() > trained**2
    for step, timestep in enumerate(timesteps):
        if pipe._interrupt:
            continue
        scaled = pipe.scheduler.scale_model_input(latents, timestep)
        with dilated_step(pipe.unet, latents.shape, step, len(timesteps)) if larger else nullcontext():
            prediction = predict(pipe, scaled, timestep, conditions)
        if len(prediction) == 2:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = pipe.scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
        latents = after_step(step, timestep, latents)
        for clip in conditions.clips:
            if clip.given is not None:  # its clip is the whole of the latents
                following = timesteps[step + 1] if step + 1 < len(timesteps) else None
                latents = clip.given.hold(latents, pipe.scheduler, following)
    return latents


def predict(pipe: Components, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
    """Predict with every window and average by weight. [1, C, F, h, w] -> [1 or 2, C, F, h, w], one row per prompt.

    The average is taken before the scheduler's step. The official tiling steps every tile and averages after; as a
    deterministic step is linear in the prediction, the two agree to rounding, and here every scheduler works.
    Sums are float32: at a tile's edge a weight is 1e-4.
    """
    unet, rows = pipe.unet, len(conditions.image_tokens)
    batch = latents.expand(rows, -1, -1, -1, -1)
    total = latents.new_zeros(batch.shape, dtype=torch.float32)
    weight = latents.new_zeros(latents.shape[2], dtype=torch.float32)
    for clip in conditions.clips:
        pipe.tell_region(clip.region)
        prediction = unet(
            with_given_frames(
                batch[:, :, clip.index], unet.config["in_channels"], conditions.hint, clip.given, clip.bent
            ),
            timestep,
            encoder_hidden_states=conditions.image_tokens,
            reference_tokens=conditions.reference_tokens,
            landmark_features=clip.landmark_features,
            return_dict=False,
        )[0]
        total.index_add_(2, clip.index, prediction.float() * clip.weights[:, None, None])
        weight.index_add_(0, clip.index, clip.weights)
    return (total / weight[:, None, None]).to(latents.dtype)


def with_given_frames(
    latents: Tensor,
    channels: int,
    hint: Tensor | None = None,
    given: Given | None = None,
    bent: Tensor | None = None,
) -> Tensor:
    """Fill up to the UNet's input channels, as in training. [B, C, F, h, w] -> [B, channels, F, h, w].

    The clean latents of frames that are not given are `hint` [1 or B, 4, h, w], or zeros; their mask is zero. bent
    [1, 5, F, h, w]: the bent portraits behind them, or zeros.
    """
    own = latents.shape[1]
    missing = channels - own
    if not missing:
        return latents
    known = latents.new_zeros(len(latents), missing, *latents.shape[2:])
    if hint is not None:
        known[:, :own] = hint[:, :, None]
    if given is not None:
        mask = given.mask[:, None, None]
        known[:, :own] = torch.where(mask, given.latents, known[:, :own])
        known[:, own] = mask.to(known.dtype)
    if bent is not None:
        known[:, own + 1 :] = bent
    return torch.cat([latents, known], dim=1)

"""Many pictures at once, each with a prompt, a person and an expression of its own.

A Stable Diffusion pipeline takes one set of image embeddings for all of its prompts; here every row has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fye_pipeline.emoji.model import EmojiModel


@torch.no_grad()
def sample_batch(
    model: EmojiModel,
    prompts: list[str],
    identities: Tensor,
    states: Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
) -> NDArray[np.uint8]:
    """Pictures of prompts, people [B, D] and expressions [B, T, S], each from noise of its own. -> [B, H, W, 3]."""
    pipe, guided = model.pipe, guidance > 1
    unet, scheduler = pipe.unet, pipe.scheduler
    text, blank = pipe.encode_prompt(prompts, unet.device, 1, guided)
    if guided:
        text = torch.cat([blank, text])
    conditions = {"image_embeds": model.embeds(identities, states, guided=guided)}
    shape = (unet.config["in_channels"], unet.config["sample_size"], unet.config["sample_size"])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    latents = (torch.stack(noise) * scheduler.init_noise_sigma).to(unet.device, unet.dtype)
    scheduler.set_timesteps(steps, device=unet.device)
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
        predicted: Tensor = unet(given, timestep, encoder_hidden_states=text, added_cond_kwargs=conditions).sample
        if guided:
            without, with_all = predicted.chunk(2)
            predicted = without + guidance * (with_all - without)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    decoded: Any = pipe.vae.decode(latents / pipe.vae.config["scaling_factor"]).sample
    pictures = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return (pictures.float().cpu().numpy() * 255).round().astype(np.uint8)

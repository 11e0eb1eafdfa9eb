"""The model: a `UNet2DConditionModel` on a small autoencoder's latents, and what stands in the place of a text.

16 x 16 latents for 128 x 128 pixels, v-prediction on Stable Diffusion's noise schedule, inside a plain
`StableDiffusionPipeline`. In the place of a text stand 32 tokens that say where 32 points of the face are; they have no
parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fye_pipeline.storage.files import weights_hash
from fye_pipeline.world import World

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "sd_like"
VAE = "vae"  # the folder of the autoencoder that it was trained on
WEIGHTS = "unet.safetensors"
RECIPE = "recipe.json"

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 4,  # diffusers calls the number of heads so
    "norm_num_groups": 16,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
# Brows, eyes, pupils, nose, lips, outline.
POINTS = (
    *(70, 105, 107, 336, 334, 300, 33, 159, 133, 145, 362, 386, 263, 374, 468, 473),
    *(1, 98, 327, 168, 61, 291, 13, 14, 0, 17, 10, 234, 454, 152, 172, 397),
)
FREQUENCIES = 8


def prompt_tokens(landmarks: NDArray[np.floating]) -> Tensor:
    """Where the face is: landmarks [B, 478, >= 2] in 0..1 -> [B, 32, 64], a token a point: which, and waves of x, y."""
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[:, list(POINTS), :2]
    angles = (points - 0.5)[..., None] * torch.pi * 2.0 ** torch.arange(FREQUENCIES)  # [B, 32, 2, frequencies]
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
    return torch.cat([torch.eye(len(POINTS)).expand(len(points), -1, -1), waves], dim=-1)


def build_unet(seed: int = 0) -> UNet2DConditionModel:
    """The UNet with random weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**UNET).eval()


def build_pipeline(unet: UNet2DConditionModel, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """A text-free pipeline: pass `prompt_embeds` (and `negative_prompt_embeds`), see `prompt_tokens`."""
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts["scheduler"] = DDIMScheduler(**SCHEDULER)
    pipe = StableDiffusionPipeline(unet=unet, vae=vae, requires_safety_checker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline(folder: Path = ASSETS) -> StableDiffusionPipeline:
    """The trained pipeline in float32. RuntimeError if the autoencoder beside it is not the one it was trained on."""
    vae = AutoencoderKL.from_pretrained(folder / VAE, torch_dtype=torch.float32).eval()
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    if weights_hash(sorted(vae.state_dict().items())) != recipe["vae"]:
        raise RuntimeError(
            f"{folder} was trained on another autoencoder than {folder / VAE}; "
            "train it anew: python -m benchmarks.sd_like --train"
        )
    unet = build_unet()
    unet.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return build_pipeline(unet, vae)


def sample(pipe: StableDiffusionPipeline, tokens: Tensor, *, seed: int, steps: int = 30, guidance: float = 1.0) -> Any:
    """Pictures [B, H, W, 3] in [0, 1] for tokens [B, 32, 64], each from noise of its own seed."""
    made: Any = pipe(
        prompt_embeds=tokens,
        negative_prompt_embeds=torch.zeros_like(tokens),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed * 1000 + index) for index in range(len(tokens))],
        output_type="np",
    )
    return made.images


def held_out(world: World, count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """One frame from the middle of the clips of `count` held-out heads, and its landmarks [count, 478, 3]."""
    clips = [world.clip("held", seed * 1000 + index, take=1, frames=9) for index in range(count)]
    return np.stack([clip.frames[4] for clip in clips]), np.stack([clip.sequence.landmarks[4] for clip in clips])


def save_samples(path: Path, pipe: StableDiffusionPipeline, world: World, count: int = 8) -> None:
    """A sheet: held-out frames above, what the model makes of their landmarks below, without and with guidance."""
    frames, landmarks = held_out(world, count)
    tokens = prompt_tokens(landmarks)
    rows = [frames / 255.0, *(sample(pipe, tokens, seed=1, guidance=guidance) for guidance in (1.0, 2.5))]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(sheet * 255).clip(0, 255).astype(np.uint8)).save(path)

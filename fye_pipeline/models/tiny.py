"""The `tiny` model: the whole set of parts at 128x128 pixels, small enough to train and to run on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fye_pipeline.models.conditioning import AppearanceNet, LandmarkEncoder
from fye_pipeline.models.denoising_unet import DenoisingUNet
from fye_pipeline.models.official import SCHEDULER

PIXELS = 128
VAE_FACTOR = 8  # pixels per latent, on each side
IMAGE_PIXELS, IMAGE_DIM = 64, 96  # what the vision model sees, and the width of its tokens

UNET: dict[str, Any] = {
    "sample_size": PIXELS // VAE_FACTOR,
    "block_out_channels": (64, 96, 128),
    "layers_per_block": 1,
    "num_attention_heads": 4,
    "cross_attention_dim": 64,
    "norm_num_groups": 16,
    "image_dim": IMAGE_DIM,
}
LANDMARK_ENCODER: dict[str, Any] = {"out_channels": UNET["block_out_channels"][0], "hidden_channels": (8, 16, 32, 64)}
VAE: dict[str, Any] = {
    "block_out_channels": (16, 24, 48, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 1,  # a group of two channels would lose a picture's colour
    "sample_size": PIXELS,
}
IMAGE_ENCODER: dict[str, Any] = {
    "hidden_size": IMAGE_DIM,
    "intermediate_size": 2 * IMAGE_DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_PIXELS,
    "patch_size": 16,
    "projection_dim": 64,
}


def build_tiny(
    seed: int = 0,
    *,
    in_channels: int = 4,
    image_prompt: str = "linear",
    reference_hint: bool = False,
    bent_hint: bool = False,
    latent_channels: int = VAE["latent_channels"],
    vae: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Build every part of the tiny model with random weights; `FollowYourEmojiPipeline(**parts)` takes them.

    in_channels: 4, or 9 for a UNet that is also given the clean latents of some frames and their mask.
    reference_hint, bent_hint: see `DenoisingUNet`; need 9 and 14 channels. image_prompt: "linear" or "resampler".
    latent_channels: of all networks, which then need `in_channels` to match. vae: arguments of AutoencoderKL that
    differ from `VAE`.
    The same seed gives the same weights; torch's global generator is left as it was.
    """
    prompt = {"image_prompt": image_prompt, "prompt_layers": 4, "prompt_queries": 8, "prompt_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "vae": AutoencoderKL(**{**VAE, "latent_channels": latent_channels, **(vae or {})}).eval(),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_ENCODER)).eval(),
            "feature_extractor": CLIPImageProcessorPil(
                size={"shortest_edge": IMAGE_PIXELS}, crop_size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
            ),
            "appearance_net": AppearanceNet(
                **UNET,
                **prompt,
                in_channels=latent_channels,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            ).eval(),
            "unet": DenoisingUNet(
                **UNET,
                **prompt,
                in_channels=in_channels,
                out_channels=latent_channels,
                reference_hint=reference_hint,
                bent_hint=bent_hint,
                motion_num_attention_heads=4,
                down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
                up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
            ).eval(),
            "landmark_encoder": LandmarkEncoder(**LANDMARK_ENCODER).eval(),
            "scheduler": DDIMScheduler(**SCHEDULER),
        }

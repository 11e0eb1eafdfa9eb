"""The published weights' files as their authors lay them out, with small random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_parts import SIZE, UNET, small_parts
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

NAMES = {"landmark_encoder": "lmk_guider", "appearance_net": "referencenet", "unet": "unet"}
# The sizes of `small_parts`, in the official code's terms.
SMALL: dict[str, Any] = {
    "base": {
        "sample_size": SIZE // 8,
        "in_channels": 4,
        "block_out_channels": list(UNET["block_out_channels"]),
        "layers_per_block": UNET["layers_per_block"],
        "attention_head_dim": UNET["num_attention_heads"],
        "cross_attention_dim": UNET["cross_attention_dim"],
        "norm_num_groups": UNET["norm_num_groups"],
    },
    "motion": {
        "motion_module_mid_block": True,
        "motion_module_kwargs": {"num_attention_heads": 2, "temporal_position_encoding_max_len": 32},
    },
    "guider": {"conditioning_embedding_channels": 16, "block_out_channels": [4, 4, 8, 8]},
}
_BACK = (
    ("pos_embed.pe", "attention_blocks.0.pos_encoder.pe"),
    ("attn1", "attention_blocks.0"),
    ("attn2", "attention_blocks.1"),
    ("norm3", "ff_norm"),
    ("norm1", "norms.0"),
    ("norm2", "norms.1"),
)


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `rename`, written independently of it."""
    named = {}
    for key, value in state.items():
        if ".motion_modules." in key:
            module, _, inside = key.partition(".motion_modules.")
            index, rest = inside.split(".", 1)
            for ours, official in _BACK:
                rest = rest.replace(ours, official)
            key = f"{module}.motion_modules.{index}.temporal_transformer.{rest}"
            if key.endswith("attention_blocks.0.pos_encoder.pe"):
                named[key.replace("attention_blocks.0", "attention_blocks.1")] = value.clone()
        named[key] = value
    return named


def write_repositories(folder: Path) -> dict[str, Path]:
    """The three repositories that the official README names -> folders with their files."""
    parts = small_parts(in_channels=4, reference_hint=False)
    networks, vae, vision = folder / "networks", folder / "vae", folder / "vision"
    networks.mkdir()
    for part, name in NAMES.items():
        torch.save(official_names(parts[part].state_dict()), networks / f"{name}.pth")
    parts["vae"].save_pretrained(vae)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            patch_size=112,
            projection_dim=16,
        )
    )
    encoder.config.save_pretrained(vision / "image_encoder")
    torch.save(encoder.state_dict(), vision / "image_encoder" / "pytorch_model.bin")
    return {
        "YueMafighting/FollowYourEmoji": networks,
        "stabilityai/sd-vae-ft-mse": vae,
        "lambdalabs/sd-image-variations-diffusers": vision,
    }

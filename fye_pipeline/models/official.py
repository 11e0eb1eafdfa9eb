"""The published Follow-Your-Emoji v1 weights: their configuration, their key names, and strict loading."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.models.conditioning import AppearanceNet, LandmarkEncoder
from fye_pipeline.models.denoising_unet import DenoisingUNet
from fye_pipeline.models.layouts import FILES, describe_difference, read_part

# Constructor arguments of the published networks, in the official code's own terms.
CONFIG: dict[str, dict[str, Any]] = {
    "base": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,  # the count of heads, in spite of its name
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    },
    "motion": {
        "motion_module_mid_block": True,
        "motion_module_kwargs": {
            "num_attention_heads": 8,
            "num_transformer_block": 1,
            "attention_block_types": ["Temporal_Self", "Temporal_Self"],
            "temporal_position_encoding_max_len": 32,
        },
    },
    "guider": {"conditioning_embedding_channels": 320, "block_out_channels": [16, 32, 96, 256]},
    "image_dim": {"appearance_net": 1024, "unet": 1024},
}
# The published sampler: DDIM with zero terminal SNR, v-prediction, trailing timesteps.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}

_MOTION_NAMES = (  # in this order; only in keys of motion modules
    (".temporal_transformer", ""),
    ("norms.0", "norm1"),
    ("norms.1", "norm2"),
    ("ff_norm", "norm3"),
    ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"),
    ("attention_blocks.0", "attn1"),
    ("attention_blocks.1", "attn2"),
)


def build_networks(config: Mapping[str, Any] | None = None, *, in_channels: int | None = None) -> dict[str, ModelMixin]:
    """Build the three networks from a configuration in the official code's terms; without one, the published sizes.

    config: "base", "motion" and "guider" as the official constructors take them. Level types that "base" leaves out are
    Stable Diffusion's (attention on all levels but the deepest); "image_dim" that it leaves out is 1024.
    in_channels: of the denoising UNet, where it differs from the base (9 for progressive generation).
    """
    config = CONFIG if config is None else config
    base, levels = config["base"], len(config["base"]["block_out_channels"])
    shared = {
        "sample_size": base["sample_size"],
        "block_out_channels": tuple(base["block_out_channels"]),
        "layers_per_block": base.get("layers_per_block", 2),
        "num_attention_heads": base.get("attention_head_dim", 8),
        "cross_attention_dim": base["cross_attention_dim"],
        "norm_num_groups": base.get("norm_num_groups", 32),
        "norm_eps": base.get("norm_eps", 1e-5),
    }
    down = base.get("down_block_types") or ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]
    up = base.get("up_block_types") or ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1)
    widths = config.get("image_dim", {})
    return {
        "landmark_encoder": LandmarkEncoder(
            out_channels=config["guider"]["conditioning_embedding_channels"],
            hidden_channels=tuple(config["guider"]["block_out_channels"]),
        ),
        "appearance_net": AppearanceNet(
            **shared,
            in_channels=base.get("in_channels", 4),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            image_dim=widths.get("appearance_net", 1024),
        ),
        "unet": DenoisingUNet(
            **shared,
            **_motion_arguments(config["motion"]),
            in_channels=in_channels or base.get("in_channels", 4),
            out_channels=base.get("out_channels", 4),
            down_block_types=tuple(kind.replace("Block2D", "BlockMotion") for kind in down),
            up_block_types=tuple(kind.replace("Block2D", "BlockMotion") for kind in up),
            image_dim=widths.get("unet", 1024),
        ),
    }


def load_networks(
    folder: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    prefix: str = "",
    in_channels: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, ModelMixin]:
    """Load the three networks from a folder in either layout of `models/layouts.py` (`prefix`: before official names).

    The widths of the vision tokens are read from the files. Weights go straight into the networks, without a second
    copy in memory. A UNet with more input channels than its file gets new columns of zeros.
    Raises UserError when a file is absent or unreadable, when keys are missing or unexpected (with what the file looks
    like), or when shapes differ.
    """
    states, keys, names = {}, {}, {}
    for part in FILES:
        state, path = read_part(folder, part, prefix)
        states[part], keys[part], names[part] = rename(state), list(state), path.name
    widths = {part: state["clip_fc.weight"].shape[1] for part, state in states.items() if "clip_fc.weight" in state}
    with torch.device("meta"):
        networks = build_networks(
            {**(CONFIG if config is None else config), "image_dim": widths}, in_channels=in_channels
        )
    for part, network in networks.items():
        state = states.pop(part)
        if part == "unet" and "conv_in.weight" in state:
            state["conv_in.weight"] = widen_conv_in(state["conv_in.weight"], network.config["in_channels"])
        wanted = dtype or torch.float32
        state = {key: value.to(wanted) if value.is_floating_point() else value for key, value in state.items()}
        load_strictly(network, state, names[part], keys[part])
        network.eval()
    return networks


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn official key names into ours: they differ in the motion modules only, where diffusers names differ.

    A block's second positional table equals its first and is dropped. Raises UserError where it does not.
    """
    renamed = {}
    for key, value in state.items():
        if ".motion_modules." in key:
            if key.endswith("attention_blocks.1.pos_encoder.pe"):
                first = state.get(key.replace("attention_blocks.1", "attention_blocks.0"))
                if first is not None and not value.is_meta and not torch.equal(first, value):
                    raise UserError(f"{key} differs from the first attention block's table; the two must be equal")
                if first is not None:
                    continue
            for official, ours in _MOTION_NAMES:
                key = key.replace(official, ours)
        renamed[key] = value
    return renamed


def widen_conv_in(weight: Tensor, in_channels: int) -> Tensor:
    """Give `conv_in` more input channels, zero in the new columns. [C, c, 3, 3] -> [C, in_channels, 3, 3]."""
    missing = in_channels - weight.shape[1]
    if missing <= 0:
        return weight
    return torch.cat([weight, weight.new_zeros(weight.shape[0], missing, *weight.shape[2:])], dim=1)


def load_strictly(
    network: ModelMixin, state: Mapping[str, Tensor], name: str, file_keys: Collection[str] | None = None
) -> None:
    """Load a state dict of our key names into a network; it takes the tensors themselves, no copy.

    file_keys: the key names in the file, by which an error tells what kind of file it is; by default the state's own.
    Raises UserError that counts missing and unexpected keys and shapes that differ, and names them.
    """
    keys = state.keys() if file_keys is None else file_keys
    difference = describe_difference(name, type(network).__name__, network.state_dict(), state, keys)
    if difference is not None:
        raise UserError(difference)
    network.load_state_dict(dict(state), assign=True)


def _motion_arguments(motion: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the motion modules' arguments. Raises UserError for a layout that diffusers' blocks do not have."""
    arguments = motion["motion_module_kwargs"]
    kinds = list(arguments.get("attention_block_types", ["Temporal_Self", "Temporal_Self"]))
    if kinds != ["Temporal_Self", "Temporal_Self"]:
        raise UserError(f"attention_block_types must be two times 'Temporal_Self', got {kinds}")
    return {
        "motion_num_attention_heads": arguments["num_attention_heads"],
        "motion_max_seq_length": arguments.get("temporal_position_encoding_max_len", 32),
        "temporal_transformer_layers_per_block": arguments.get("num_transformer_block", 1),
        "use_motion_mid_block": motion.get("motion_module_mid_block", True),
    }

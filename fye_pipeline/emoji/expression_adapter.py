"""The E-Adapter: identity and expression as two branches beside the text in a UNet's cross-attention.

Z = Attn(Q, K_text, V_text) + l_id Attn(Q, K_id, V_id) + l_exp Attn(Q, K_exp, V_exp)          (EmojiDiff, Eq. 5)

Both branches are IP-Adapters by diffusers' own processors and projections: a FaceID one that takes an identity vector,
and a Plus one that takes an image encoder's hidden states. As files they are ordinary IP-Adapters, which any diffusers
loads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterPlusImageProjection,
    MultiIPAdapterImageProjection,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fye_pipeline.errors import UserError

IDENTITY_TOKENS, EXPRESSION_TOKENS = 4, 16
DEPTH, HEAD = 4, 64  # of a resampler: what loaders of IP-Adapter files assume
SDXL_LAYERS = ("up_blocks.0.attentions.1",)  # the paper's expression layers on SDXL; all of them on SD 1.5

# What a resampler's layer is called in a file, by its name in memory; of two that begin alike the longer stands first.
_IN_FILE = {
    "ln0.": "0.norm1.",
    "ln1.": "0.norm2.",
    "attn.to_out.0.": "0.to_out.",
    "attn.to_": "0.to_",
    "ff.0.": "1.0.",
    "ff.1.net.0.proj.": "1.1.",
    "ff.1.net.2.": "1.3.",
}


def identity_projection(cross: int, identity: int = 512) -> IPAdapterFaceIDImageProjection:
    """Identity vectors [B, identity] -> 4 tokens [B, 4, cross]."""
    return IPAdapterFaceIDImageProjection(identity, cross, mult=2, num_tokens=IDENTITY_TOKENS)


def expression_projection(
    cross: int, states: int = 1280, width: int | None = None, tokens: int = EXPRESSION_TOKENS
) -> nn.Module:
    """Hidden states [B, T, states] -> [B, tokens, cross]; 4 tokens take a pooled embedding [B, states] instead.

    width: of the resampler, a multiple of 64. Default: 768 for SD 1.5, 1280 for SDXL, as IP-Adapter Plus has it.
    """
    if tokens == IDENTITY_TOKENS:
        return ImageProjection(states, cross, tokens)
    width = width or (1280 if cross > 1024 else 768)
    if width % HEAD:
        raise ValueError(f"width must be a multiple of {HEAD}, got {width}")
    return IPAdapterPlusImageProjection(states, cross, width, DEPTH, HEAD, width // HEAD, tokens)


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """The UNet's cross-attentions by their names, in the order in which IP-Adapter files count them."""
    processors: Collection[str] = getattr(unet, "attn_processors")  # noqa: B009
    names = [name for name in processors if name.endswith("attn2.processor") and "motion_modules" not in name]
    return {name.removesuffix(".processor"): unet.get_submodule(name.removesuffix(".processor")) for name in names}


def group_of(layer: str) -> str:
    """The transformer that a cross-attention belongs to, such as `up_blocks.0.attentions.1`."""
    return layer.split(".transformer_blocks")[0]


def groups_of(unet: nn.Module) -> list[str]:
    """Every transformer with a cross-attention: what expression layers are chosen from."""
    return list(dict.fromkeys(group_of(name) for name in cross_attentions(unet)))


def attach(unet: Any, projections: Sequence[nn.Module]) -> None:
    """Hang branches, one a projection, into every cross-attention; a UNet's self-attention stays what it is.

    New keys and values begin as copies of the text's, as IP-Adapter's do. ValueError where branches hang there already.
    """
    if isinstance(unet.encoder_hid_proj, MultiIPAdapterImageProjection):
        raise ValueError("the UNet has IP-Adapters already; take them off first (`pipe.unload_ip_adapter()`)")
    tokens = [_tokens(projection) for projection in projections]
    for attention in cross_attentions(unet).values():
        keys: nn.Linear = attention.to_k
        scales: Any = [1.0] * len(tokens)
        processor: Any = IPAdapterAttnProcessor2_0(keys.out_features, keys.in_features, tokens, scales)
        with torch.no_grad():
            for branch in range(len(tokens)):
                processor.to_k_ip[branch].weight.copy_(keys.weight)
                processor.to_v_ip[branch].weight.copy_(attention.to_v.weight)
        attention.set_processor(processor.to(keys.weight.device, keys.weight.dtype))
    weight = next(iter(cross_attentions(unet).values())).to_k.weight
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([*projections]).to(weight.device, weight.dtype)
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


def detach(unet: Any) -> None:
    """Take every branch off; the UNet is as it was before `attach`."""
    for attention in cross_attentions(unet).values():
        attention.set_processor(AttnProcessor2_0())
    unet.encoder_hid_proj = None
    unet.register_to_config(encoder_hid_dim_type=None)


def _tokens(projection: Any) -> int:
    if isinstance(projection, IPAdapterPlusImageProjection):
        return projection.latents.shape[1]
    return int(getattr(projection, "num_tokens", 0) or projection.num_image_text_embeds)


def set_scales(
    unet: nn.Module, scales: Sequence[float], layers: Collection[str] | None = None, branch: int = 1
) -> None:
    """How much each branch adds. layers: the groups where `branch` acts, of `groups_of`; elsewhere its scale is 0."""
    for name, attention in cross_attentions(unet).items():
        own = list(map(float, scales))
        if layers is not None and group_of(name) not in layers:
            own[branch] = 0.0
        attention.processor.scale = own


def branch_parameters(unet: Any, branch: int, *, keys: bool = True) -> list[nn.Parameter]:
    """What is trained of a branch: its projection, and its keys and values in every layer unless `keys` is off."""
    weights = list(unet.encoder_hid_proj.image_projection_layers[branch].parameters())
    for attention in cross_attentions(unet).values() if keys else ():
        processor = attention.processor
        weights += [processor.to_k_ip[branch].weight, processor.to_v_ip[branch].weight]
    return weights


def branch_state(unet: Any, branch: int) -> dict[str, Tensor]:
    """One branch's own tensors under the names of an IP-Adapter file, `image_proj.*` and `ip_adapter.*`."""
    projection = unet.encoder_hid_proj.image_projection_layers[branch]
    state = {f"image_proj.{name}": value for name, value in _saved_names(projection).items()}
    for number, attention in enumerate(cross_attentions(unet).values()):
        for kind in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = getattr(attention.processor, kind)[branch].weight
    return state


def _saved_names(projection: nn.Module) -> dict[str, Tensor]:
    state = dict(projection.state_dict())
    if isinstance(projection, IPAdapterFaceIDImageProjection):
        return {
            name.replace("ff.net.0.proj.", "proj.0.").replace("ff.net.2.", "proj.2."): value
            for name, value in state.items()
        }
    if not isinstance(projection, IPAdapterPlusImageProjection):
        return {name.replace("image_embeds.", "proj."): value for name, value in state.items()}
    for layer in range(DEPTH):
        keys, values = (state.pop(f"layers.{layer}.attn.to_{kind}.weight") for kind in "kv")
        state[f"layers.{layer}.attn.to_kv.weight"] = torch.cat([keys, values])
    for inner, saved in _IN_FILE.items():
        layers = re.compile(rf"^(layers\.\d+\.){re.escape(inner)}")
        state = {layers.sub(rf"\g<1>{saved}", name): value for name, value in state.items()}
    return state


def read_branch(path: Path) -> dict[str, Tensor]:
    """The tensors of an IP-Adapter's .safetensors file. UserError where it is none."""
    if not path.is_file():
        raise UserError(f"{path} is missing; expected an IP-Adapter's .safetensors file.")
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); copy or fetch the file again.") from error
    if not any(name.startswith("ip_adapter.") for name in state):
        raise UserError(f"{path} is no IP-Adapter file: it holds no ip_adapter.* weights.")
    return state


def write_branch(path: Path, unet: Any, branch: int, metadata: Mapping[str, str] | None = None) -> None:
    """Save a branch as an ordinary IP-Adapter file in float16."""
    state = {name: value.detach().half().cpu().contiguous() for name, value in branch_state(unet, branch).items()}
    save_file(state, path, metadata=dict(metadata or {}))


def projection_of(unet: Any, state: Mapping[str, Tensor], name: str = "the file") -> nn.Module:
    """A file's projection of images, of its sizes and with its weights, as diffusers reads it. UserError for others."""
    prefix = "image_proj."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        return unet._convert_ip_adapter_image_proj_to_diffusers(own, low_cpu_mem_usage=False)
    except (KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{name} holds no projection of images that diffusers knows ({said}).") from error


def load_branch(unet: Any, branch: int, state: Mapping[str, Tensor], name: str = "the file") -> None:
    """Fill an attached branch from a file's tensors. UserError, before anything is changed, where they do not fit."""
    own = {key: value.shape for key, value in branch_state(unet, branch).items()}
    given = {key: value.shape for key, value in state.items()}
    if wrong := sorted({key for key, _ in own.items() ^ given.items()}):
        raise UserError(
            f"{name} does not fit this base model: {len(wrong)} tensors differ in name or size, such as {wrong[0]}; "
            "it was trained for another one."
        )
    projection = unet.encoder_hid_proj.image_projection_layers[branch]
    projection.load_state_dict(projection_of(unet, state, name).state_dict())
    with torch.no_grad():
        for number, attention in enumerate(cross_attentions(unet).values()):
            for kind in ("to_k_ip", "to_v_ip"):
                weight = getattr(attention.processor, kind)[branch].weight
                weight.copy_(state[f"ip_adapter.{2 * number + 1}.{kind}.weight"])

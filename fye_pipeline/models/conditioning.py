"""The networks that read the conditions: the appearance net, the landmark encoder and the image prompt.

The appearance net is a 2D UNet that runs once on the reference and exports what its self-attention layers see.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import IPAdapterPlusImageProjection, TimestepEmbedding, Timesteps
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn, get_down_block, get_up_block
from torch import Tensor, nn

KINDS = ("linear", "resampler")
T = TypeVar("T")


class ExportBlock(nn.Module):
    """What is left of the last spatial block: its `norm1`, whose output is the last token map."""

    def __init__(self, norm1: nn.Module, index: int) -> None:
        super().__init__()
        self.norm1 = norm1
        self.index = index

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Write norm1(x) into the list of exports and pass x on. [B, T, C] -> [B, T, C].

        The arguments are those of the block it stands for: gradient checkpointing passes them by position.
        """
        assert cross_attention_kwargs is not None
        cross_attention_kwargs["exports"][self.index] = self.norm1(hidden_states)
        return hidden_states


class AppearanceNet(ModelMixin, ConfigMixin):
    """Stable Diffusion's UNet without its head: one token map per spatial transformer block, in execution order.

    image_dim: width of the vision tokens. image_prompt: "linear" or "resampler" (see `build_image_prompt`).
    num_attention_heads is the count of heads (Stable Diffusion's config calls it `attention_head_dim`).
    The last spatial block ends after its `norm1`; the `proj_out` behind it exists as in the published weights, is never
    used and therefore frozen.
    """

    __module__ = "fye_pipeline"  # the library that model_index.json names
    _supports_gradient_checkpointing = True
    _no_split_modules = ("BasicTransformerBlock", "ResnetBlock2D")

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        num_attention_heads: int | tuple[int, ...] = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        image_dim: int = 1024,
        image_prompt: str = "linear",
        prompt_queries: int = 16,
        prompt_layers: int = 4,
        prompt_heads: int = 12,
    ) -> None:
        super().__init__()
        channels, levels = tuple(block_out_channels), len(block_out_channels)
        layers, heads = per_level(layers_per_block, levels), per_level(num_attention_heads, levels)
        common = {
            "temb_channels": channels[0] * 4,
            "resnet_eps": norm_eps,
            "resnet_act_fn": "silu",
            "resnet_groups": norm_num_groups,
            "cross_attention_dim": cross_attention_dim,
        }
        self.clip_fc = build_image_prompt(
            image_prompt,
            image_dim,
            cross_attention_dim,
            queries=prompt_queries,
            layers=prompt_layers,
            heads=prompt_heads,
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], channels[0] * 4)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                kind,
                num_layers=layers[level],
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                add_downsample=level < levels - 1,
                num_attention_heads=heads[level],
                attention_head_dim=heads[level],
                downsample_padding=1,
                **common,
            )
            for level, kind in enumerate(down_block_types)
        )
        self.mid_block = UNetMidBlock2DCrossAttn(channels[-1], num_attention_heads=heads[-1], **common)
        self.up_blocks = nn.ModuleList(
            get_up_block(
                kind,
                num_layers=layers[level] + 1,
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                prev_output_channel=channels[min(level + 1, levels - 1)],
                add_upsample=level > 0,
                num_attention_heads=heads[level],
                attention_head_dim=heads[level],
                resolution_idx=levels - 1 - level,
                **common,
            )
            for level, kind in zip(reversed(range(levels)), up_block_types, strict=True)
        )
        self._cut_last_block()

    def _cut_last_block(self) -> None:
        """Number the spatial blocks for export and keep only `norm1` of the last one, as in the published weights."""
        blocks = spatial_blocks(self)
        self.num_exports = len(blocks)
        set_processors(blocks)
        *_, last = spatial_transformers(self)
        last.transformer_blocks[-1] = ExportBlock(blocks[-1].norm1, len(blocks) - 1)
        last.proj_out.requires_grad_(False)

    def forward(self, latents: Tensor, image_tokens: Tensor, timestep: int = 0) -> list[Tensor]:
        """Export the token maps of a reference. Latents [B, c, h, w], vision tokens [B, L, D] -> list of [B, h'*w', C].

        Raises RuntimeError when an attention processor of another library has replaced the one that exports.
        """
        exports: list[Tensor | None] = [None] * self.num_exports
        attention = {
            "encoder_hidden_states": self.clip_fc(image_tokens),
            "cross_attention_kwargs": {"exports": exports},
        }
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        temb = self.time_embedding(self.time_proj(timesteps).to(latents.dtype))
        sample = self.conv_in(latents)
        skips = (sample,)
        for block in self.down_blocks:
            sample, new = block(sample, temb, **(attention if has_attention(block) else {}))
            skips += new
        sample = self.mid_block(sample, temb, **attention)
        for block in self.up_blocks:
            skips, taken = take_skips(skips, block)
            size = skips[-1].shape[-2:] if skips else None
            sample = block(sample, taken, temb, upsample_size=size, **(attention if has_attention(block) else {}))
        tokens = [export for export in exports if export is not None]
        if len(tokens) != self.num_exports:
            raise RuntimeError(
                f"{self.num_exports - len(tokens)} of {self.num_exports} self-attention layers of the appearance net "
                "do not export their tokens: another attention processor was set on them; load the model afresh"
            )
        return tokens


def has_attention(block: nn.Module) -> bool:
    """Tell whether a UNet block holds spatial transformers."""
    return bool(getattr(block, "has_cross_attention", False))


def take_skips(skips: tuple[Tensor, ...], block: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split the skips into those that stay and those that an up block takes, one per resnet."""
    return skips[: -len(block.resnets)], skips[-len(block.resnets) :]


def per_level(value: T | Sequence[T], levels: int) -> tuple[T, ...]:
    """Spread one value over all levels, or check that there is one for each."""
    if not isinstance(value, Sequence):
        return (value,) * levels
    if len(value) != levels:
        raise ValueError(f"expected one value for each of the {levels} levels, got {tuple(value)}")
    return tuple(value)


class LandmarkEncoder(ModelMixin, ConfigMixin):
    """Eight 3x3 convolutions (three of stride 2 with four levels) that work on every frame by itself.

    out_channels: channels of the UNet's first level. hidden_channels: one per resolution; each step between them halves
    the size, so the features are 2 ** (levels - 1) times smaller than the picture. The last convolution starts at zero.
    """

    __module__ = "fye_pipeline"  # the library that model_index.json names
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 320,
        hidden_channels: tuple[int, ...] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, hidden_channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for wide, wider in itertools.pairwise(hidden_channels):
            self.blocks.append(nn.Conv2d(wide, wide, 3, padding=1))
            self.blocks.append(nn.Conv2d(wide, wider, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(hidden_channels[-1], out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode landmark pictures. [B, 3, F, H, W] in [0, 1] -> [B, C, F, H/8, W/8]."""
        batch = len(pictures)
        features = F.silu(self.conv_in(pictures.transpose(1, 2).flatten(0, 1)))
        for block in self.blocks:
            features = F.silu(block(features))
        return self.conv_out(features).unflatten(0, (batch, -1)).transpose(1, 2)


def build_image_prompt(
    kind: str, image_dim: int, prompt_dim: int, *, queries: int = 16, layers: int = 4, heads: int = 12
) -> nn.Module:
    """Build the map from vision tokens [B, L, image_dim] to prompt tokens [B, L', prompt_dim].

    kind: "linear" keeps every token (L' = L) and is what the published weights hold; "resampler" is the paper's
    4-layer Q-Former, read as learned queries (L' = queries) that attend to the tokens and to each other.
    Raises ValueError for an unknown kind, or heads that do not divide prompt_dim.
    """
    if kind not in KINDS:
        raise ValueError(f"image_prompt must be one of {KINDS}, got {kind!r}")
    if kind == "linear":
        return nn.Linear(image_dim, prompt_dim)
    if prompt_dim % heads:
        raise ValueError(f"prompt_heads must divide cross_attention_dim = {prompt_dim}, got {heads}")
    return IPAdapterPlusImageProjection(
        embed_dims=image_dim,
        output_dims=prompt_dim,
        hidden_dims=prompt_dim,
        depth=layers,
        dim_head=prompt_dim // heads,
        heads=heads,
        num_queries=queries,
    )


@dataclass(frozen=True)
class Reference:
    """What the spatial self-attention of one UNet call needs to know of the reference.

    frames: frames per sample. tokens: per spatial block [R, T, C]; they belong to the last R samples of the batch, the
    samples before them (the unconditional half of guidance) attend to themselves only. keep: [R] bool, False where a
    sample must not see its reference (dropped in training); None keeps all.
    """

    frames: int
    tokens: tuple[Tensor, ...]
    keep: Tensor | None = None


class SelfAttention:
    """`attn1` of spatial block `index`: keys and values are its own tokens and, where given, the reference's.

    As Follow-Your-Emoji v1: queries norm1(x), keys and values concat(norm1(x), reference), through the same weights.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: Reference | None = None,
        exports: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Attend. [B*F, T, C] -> the same; its input, norm1(x), goes into `exports[index]` where a list is given."""
        if exports is not None:
            exports[self.index] = hidden_states
        query = attn.to_q(hidden_states)
        key, value = _keys_and_values(attn, hidden_states)
        if reference is None:
            return _project_out(attn, _attend(attn, query, key, value))
        tokens = reference.tokens[self.index]
        plain = len(hidden_states) - len(tokens) * reference.frames
        more_key, more_value = (_repeat(x, reference.frames) for x in _keys_and_values(attn, tokens))
        joined = _attend(
            attn,
            query[plain:],
            torch.cat([key[plain:], more_key], dim=1),
            torch.cat([value[plain:], more_value], dim=1),
            _visible(reference, key.shape[1], tokens.shape[1]),
        )
        if plain:
            joined = torch.cat([_attend(attn, query[:plain], key[:plain], value[:plain]), joined])
        return _project_out(attn, joined)


class CrossAttention:
    """`attn2` of a spatial block: all frames of a sample attend to one set of image tokens, projected once."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: Reference | None = None,
        exports: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Attend. [B*F, T, C] with tokens [B, L, D] (or [B*F, L, D]) -> [B*F, T, C]."""
        query = attn.to_q(hidden_states)
        query = query.reshape(len(encoder_hidden_states), -1, query.shape[-1])  # frames share keys: [B, F*T, C]
        attended = _attend(attn, query, *_keys_and_values(attn, encoder_hidden_states))
        return _project_out(attn, attended.reshape(*hidden_states.shape[:2], -1))


def spatial_transformers(unet: Any) -> Iterator[Transformer2DModel]:
    """Yield the spatial transformers (diffusers' Transformer2DModel) of a UNet in the order in which they run."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        yield from getattr(block, "attentions", ())


def spatial_blocks(unet: Any) -> list[BasicTransformerBlock]:
    """List the transformer blocks of all spatial transformers of a UNet in the order in which they run."""
    transformers = spatial_transformers(unet)
    return [cast(BasicTransformerBlock, block) for each in transformers for block in each.transformer_blocks]


def set_processors(blocks: list[BasicTransformerBlock]) -> None:
    """Give every spatial block this module's processors, numbered in execution order."""
    for index, block in enumerate(blocks):
        block.attn1.set_processor(SelfAttention(index))  # pyright: ignore[reportArgumentType]
        block.attn2.set_processor(CrossAttention())  # pyright: ignore[reportArgumentType, reportOptionalMemberAccess]


def _attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over heads. [N, T, C], [N, S, C], [N, S, C] -> [N, T, C]."""
    query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(1, 2).flatten(2)


def _keys_and_values(attn: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    assert attn.to_k is not None
    assert attn.to_v is not None
    return attn.to_k(tokens), attn.to_v(tokens)


def _project_out(attn: Attention, hidden_states: Tensor) -> Tensor:
    assert attn.to_out is not None
    linear, dropout = attn.to_out
    return dropout(linear(hidden_states))


def _repeat(tokens: Tensor, frames: int) -> Tensor:
    """Repeat every sample for its frames. [R, T, C] -> [R*F, T, C]."""
    return tokens[:, None].expand(-1, frames, -1, -1).flatten(0, 1)


def _visible(reference: Reference, own: int, joined: int) -> Tensor | None:
    """Mask of visible keys, [R*F, 1, 1, own + joined] bool; None when every sample keeps its reference."""
    if reference.keep is None:
        return None
    keep = reference.keep.bool().repeat_interleave(reference.frames)[:, None, None, None]
    return torch.cat([torch.ones_like(keep).expand(-1, 1, 1, own), keep.expand(-1, 1, 1, joined)], dim=-1)

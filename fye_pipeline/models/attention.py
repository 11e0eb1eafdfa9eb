"""Attention processors of the spatial transformer blocks: export tokens, join reference tokens, share image tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor


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

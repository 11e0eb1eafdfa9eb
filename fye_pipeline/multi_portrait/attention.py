"""Cross-attention of several people: everybody's tokens reach that person's pixels, and nothing else.

`exclusive` is the rule; `equation` is Eq. 4 of the FantasyPortrait paper as it stands, and `release` the mask of its
published code. Both mix people up and are here to be measured against.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Isolation = Literal["exclusive", "equation", "release"]


def people_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    shares: Tensor,
    *,
    isolation: Isolation = "exclusive",
    key_mask: Tensor | None = None,
) -> Tensor:
    """What P people's tokens add to every row. -> [R, H, L, D].

    query: [R, heads, L, D]. keys, values: [R, P, heads, N, D]. shares: [R, P, L], how much of each place is a person's:
    0 or 1, or a soft border whose shares sum to at most 1. key_mask: [N] or [R, N] bool, False where a token is a
    filler. Raises ValueError for another isolation.
    """
    if isolation not in get_args(Isolation):
        raise ValueError(f"isolation must be one of {', '.join(get_args(Isolation))}, got {isolation!r}")
    mask = None if key_mask is None else key_mask.expand(len(query), -1)[:, None, None]  # [R, 1, 1, N]
    if isolation == "exclusive":
        return _exclusive(query, keys, values, shares, mask)
    people, tokens = keys.shape[1], keys.shape[3]
    own = shares.transpose(1, 2).repeat_interleave(tokens, dim=2)[:, None]  # [R, 1, L, P * N]
    padding = None if mask is None else mask.repeat(1, 1, 1, people)
    if isolation == "equation":
        return _equation(query, _joined(keys), _joined(values), own, padding)
    return _release(query, _joined(keys.flip(1)), _joined(values.flip(1)), own, padding, people)


def _exclusive(query: Tensor, keys: Tensor, values: Tensor, shares: Tensor, mask: Tensor | None) -> Tensor:
    """Z + sum_n own_n Attn(Q, K_n, V_n): for hard shares the same as a mask of -inf, without a row that it empties."""
    result = torch.zeros_like(query)
    for person in range(keys.shape[1]):
        made = functional.scaled_dot_product_attention(query, keys[:, person], values[:, person], attn_mask=mask)
        result = result + shares[:, person, None, :, None].to(made.dtype) * made
    return result


def _equation(query: Tensor, keys: Tensor, values: Tensor, own: Tensor, padding: Tensor | None) -> Tensor:
    """softmax(M * Q K^T / sqrt(d)) V: a logit of zero is not exclusion."""
    logits = own.to(query.dtype) * (query @ keys.transpose(-1, -2)) / query.shape[-1] ** 0.5
    if padding is not None:
        logits = logits.masked_fill(~padding, float("-inf"))
    return logits.softmax(dim=-1) @ values


def _release(query: Tensor, keys: Tensor, values: Tensor, own: Tensor, padding: Tensor | None, people: int) -> Tensor:
    """Each place attends to where the labels differ, over people in reverse order: right by accident for two."""
    allowed = (own == 0) if people > 1 else torch.ones_like(own, dtype=torch.bool)
    if padding is not None:
        allowed = allowed & padding
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=allowed)


def _joined(parts: Tensor) -> Tensor:
    """[R, P, heads, N, D] -> [R, heads, P * N, D], people one after the other."""
    return parts.transpose(1, 2).flatten(2, 3)

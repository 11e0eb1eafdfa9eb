"""Similarity-based token pruning (SiTo, AAAI 2025): a short baseline of our own, for there is no package.

Self-attention at the largest resolution, as its authors recommend, patches of 2 x 2; without the Gaussian noise that
they add to the scores, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines import Running


def select_tokens(tokens: Tensor, height: int, width: int, ratio: float, patch: int = 2) -> tuple[Tensor, Tensor]:
    """Which tokens stay, and whose result each token takes.

    In each patch of the grid the token with the highest summed cosine similarity is the base; of the others the
    `ratio` of all tokens that are most similar to a base are left out, and take the result of that base.

    [B, height * width, C] -> kept [B, K] (positions, ascending), source [B, L] (positions in `kept`). ValueError if
    the grid does not divide into patches, or if `ratio` leaves fewer tokens than bases.
    """
    batch, length, _ = tokens.shape
    pruned = int(length * ratio)
    bases = length // patch**2
    if length != height * width or height % patch or width % patch:
        raise ValueError(f"expected {height} x {width} tokens in patches of {patch}, got {length}")
    if pruned > length - bases:
        raise ValueError(f"ratio must be at most {1 - bases / length}, got {ratio}")
    unit = F.normalize(tokens, dim=-1)
    similarity = unit @ unit.transpose(1, 2)  # [B, L, L]
    grid = torch.arange(length, device=tokens.device).reshape(height // patch, patch, width // patch, patch)
    patches = grid.permute(0, 2, 1, 3).reshape(bases, patch * patch)  # positions by patch
    best = similarity.sum(-1)[:, patches].argmax(-1)  # [B, bases]
    base = patches[torch.arange(bases, device=tokens.device), best]  # [B, bases]: positions of bases
    to_base = similarity.gather(2, base[:, None, :].expand(-1, length, -1))  # [B, L, bases]
    closeness, nearest = to_base.max(-1)
    closeness = closeness.scatter(1, base, float("-inf"))  # a base stays
    out = closeness.topk(pruned, dim=1).indices
    stays = torch.ones(batch, length, dtype=torch.bool, device=tokens.device).scatter(1, out, False)
    kept = stays.nonzero()[:, 1].reshape(batch, length - pruned)
    position = stays.cumsum(1) - 1  # of each kept token in `kept`
    source = torch.where(stays, position, position.gather(1, base.gather(1, nearest)))
    return kept, source


def gather_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """[B, L, C] at positions [B, K] -> [B, K, C]."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


@contextmanager
def sito(pipe: Any, *, ratio: float) -> Iterator[Running]:
    """Prune around each spatial self-attention of the UNet's largest resolution."""
    size: list[tuple[int, int]] = []

    def note_size(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        size[:] = [(sample.shape[-2], sample.shape[-1])]

    with ExitStack() as stack:
        stack.callback(pipe.unet.register_forward_pre_hook(note_size, with_kwargs=True).remove)
        for name, module in pipe.unet.named_modules():
            if name.endswith(".attn1") and "motion_modules" not in name:
                _prune_around(module, size, ratio, stack)
        yield Running()


def _prune_around(attention: Any, size: list[tuple[int, int]], ratio: float, stack: ExitStack) -> None:
    original = attention.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        height, width = size[0]
        if hidden_states.shape[1] != height * width:
            return original(hidden_states, *args, **kwargs)
        kept, source = select_tokens(hidden_states, height, width, ratio)
        return gather_tokens(original(gather_tokens(hidden_states, kept), *args, **kwargs), source)

    attention.forward = forward
    stack.callback(lambda: attention.__dict__.pop("forward", None))

"""Floating-point operations of a call, from the shapes that modules put out: no operator is counted or dispatched.

FLOP = 2 MAC, as torch's FlopCounterMode counts: convolutions, linear layers and the two products of attention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_QUERIES = re.compile(r"(.+)\.to_q")
_KEYS = re.compile(r"(.+)\.(?:to_k|to_kv|to_qkv|add_k_proj|processor\.to_k_ip\.\d+)")


class ShapeWatch:
    """Notes the output shape of every convolution, linear layer and projection of attention during one call.

    A projection may be a layer itself or wrap one, as LoRA does; `fuse_qkv_projections` makes one of two or three.

    In a compiled call the hooks are part of the graph, and taking them off would compile it anew: there they stay on
    until `close`, and note the shapes of the latest call.
    """

    def __init__(self, model: nn.Module, frames: int = 1):
        self._frames = frames
        self._watched = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or any(p.fullmatch(name) for p in (_QUERIES, _KEYS))
        }
        self._handles = [m.register_forward_hook(partial(self._note, name)) for name, m in self._watched.items()]
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        self.traced = False

    def begin(self) -> None:
        """Another call begins: forget the last one's shapes."""
        self._shapes = {}

    def stop(self) -> None:
        """The call has ended."""
        if not self.traced:
            self.close()

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def flops(self) -> dict[str, int]:
        """Operations by module name, of every module that ran; attention's products stand under the keys' projection.

        Where keys are projected more than once for a query, the later ones are a reference's: every frame of the
        samples that they belong to attends to them.
        """
        counts = {
            name: sum(_leaf_flops(self._watched[name], s) for s in shapes) for name, shapes in self._shapes.items()
        }
        for name, shapes in self._shapes.items():
            match = _KEYS.fullmatch(name)
            queries = [] if match is None else self._queries(match[1])
            if not queries:
                continue
            per_query = max(len(shapes) // len(queries), 1)
            for index, keys in enumerate(shapes[: len(queries) * per_query]):
                query = queries[index // per_query]
                rows = query[0] if index % per_query == 0 else min(query[0], keys[0] * self._frames)
                counts[name] += _attention_flops((rows, *query[1:]), keys)
        return counts

    def _queries(self, attention: str) -> list[tuple[int, ...]]:
        """The shapes [B, L, D] of an attention's queries, one a run."""
        fused = [(*shape[:-1], shape[-1] // 3) for shape in self._shapes.get(f"{attention}.to_qkv", ())]
        return fused or self._shapes.get(f"{attention}.to_q", [])

    def _note(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if torch.compiler.is_compiling():
            self.traced = True
            self._shapes[name] = [tuple(output.shape)]
        else:
            self._shapes.setdefault(name, []).append(tuple(output.shape))


def skipped_flops(counts: dict[str, int], skipped: Iterable[str]) -> int:
    """The part of `counts` that lies within the modules named in `skipped`."""
    within = tuple(f"{name}." for name in skipped)
    return sum(count for name, count in counts.items() if f"{name}.".startswith(within))


def _leaf_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    elements = math.prod(shape)
    if isinstance(module, nn.Linear):
        return 2 * elements * module.in_features
    if not isinstance(module, _CONVOLUTIONS):
        return 0  # it wraps layers that are counted themselves
    return 2 * elements * (module.in_channels // module.groups) * math.prod(module.kernel_size)


def _attention_flops(queries: tuple[int, ...], keys: tuple[int, ...]) -> int:
    """Q K^T and the product with V: [B, L, D] queries against [B, M, D'] keys."""
    if len(queries) != 3 or len(keys) != 3:
        return 0
    return 2 * 2 * queries[0] * queries[1] * keys[1] * queries[2]

"""The outputs of modules: their shapes, ghosts of those shapes that nobody reads, and the one feature within."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

# What tensors a module puts out, nested as it nests them: (shape, dtype, device) or (type, keys or None, specs).
Spec = tuple[Any, Any, Any]


def spec_of(output: Any) -> Spec | None:
    """The shapes of a module's output, nested as it is; None for what holds anything but tensors."""
    if isinstance(output, Tensor):
        return tuple(output.shape), output.dtype, output.device
    if type(output) in (list, tuple):
        specs = [spec_of(item) for item in output]
        return None if None in specs else (type(output), None, specs)
    if isinstance(output, OrderedDict):  # diffusers' output dataclasses
        specs = [spec_of(item) for item in output.values()]
        return None if None in specs else (type(output), list(output), specs)
    return None


def ghost(spec: Spec, writable: bool = False, poison: bool = False) -> Any:
    """An output of the right shapes that nobody reads: one element, expanded, unless somebody writes into it.

    poison: filled with NaN, so that whoever does read it is found out.
    """
    kind, keys, rest = spec
    if isinstance(kind, type):
        items = [ghost(item, writable, poison) for item in rest]
        return kind(items) if keys is None else kind(**dict(zip(keys, items, strict=True)))
    if poison and keys.is_floating_point:
        return torch.full(kind, float("nan"), dtype=keys, device=rest)
    if writable:
        return torch.empty(kind, dtype=keys, device=rest)
    return torch.empty((), dtype=keys, device=rest).expand(kind)


def feature_in(output: Any) -> Tensor | None:
    """The one tensor of an output that is a tensor or wraps one; None for others."""
    if isinstance(output, Tensor):
        return output
    if type(output) in (list, tuple) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, OrderedDict) and len(output) == 1:
        return feature_in(next(iter(output.values())))
    return None


def wrap_like(spec: Spec, feature: Tensor) -> Any:
    """`feature`, wrapped as the output with this specification was."""
    kind, keys, _ = spec
    if not isinstance(kind, type):
        return feature
    return kind([feature]) if keys is None else kind(**{keys[0]: feature})

"""Attention processors that keep something of each call, such as attention maps: modules with one are never skipped."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_PLAIN = (type(None), bool, int, float, str, type, types.BuiltinFunctionType)
_PLAIN_TENSORS = (torch.dtype, torch.device, torch.Tensor, nn.Module)
_MODULES_OWN = frozenset(vars(nn.Module()))


def attentions_in(modules: Iterable[nn.Module]) -> list[Any]:
    """The attention modules among these modules and all that is in them, each once."""
    found = (inner for module in modules for inner in module.modules() if hasattr(inner, "processor"))
    return list(dict.fromkeys(found))


def keeps_state(processor: Any) -> bool:
    """May a call of this processor leave something behind that somebody reads?

    diffusers' own in its models do not. One with a bool attribute `keeps_state` is believed. Another does if its code
    sets attributes outside `__init__`, or if it reaches an object that it could put something into: a list, a dict, a
    store.
    """
    declared = getattr(processor, "keeps_state", None)
    if isinstance(declared, bool):
        return declared
    if isinstance(processor, types.FunctionType):
        return _leaves_something(processor, ())
    kind = type(processor)
    if kind.__module__.startswith("diffusers.models."):
        return False
    if not hasattr(processor, "__dict__") or kind.__module__ in ("builtins", "functools"):
        return True
    held = [value for name, value in vars(processor).items() if name not in _MODULES_OWN]
    return not all(_is_plain(value, ()) for value in held) or any(_leaves_something(f, ()) for f in _functions(kind))


def _functions(kind: type) -> list[types.FunctionType]:
    """What a class of others' adds to those of PyTorch and diffusers."""
    own = [b for b in kind.__mro__ if b not in (nn.Module, object) and not b.__module__.startswith("diffusers.models.")]
    named = [item for base in own for item in vars(base).items()]
    return [value for name, value in named if isinstance(value, types.FunctionType) and name != "__init__"]


def _leaves_something(function: types.FunctionType, within: tuple[types.FunctionType, ...]) -> bool:
    if function in within:
        return False
    code = function.__code__
    for instruction in dis.get_instructions(function):
        operation, name = instruction.opname, instruction.argval
        if operation in ("STORE_ATTR", "STORE_GLOBAL") or (operation == "STORE_DEREF" and name in code.co_freevars):
            return True
        if operation == "LOAD_GLOBAL" and isinstance(function.__globals__.get(name), list | dict | set):
            return True
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    return not all(_is_plain(value, (*within, function)) for value in cells)


def _is_plain(value: Any, within: tuple[types.FunctionType, ...]) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item, within) for item in value)
    if isinstance(value, types.FunctionType):
        return not _leaves_something(value, within)
    return isinstance(value, (*_PLAIN, *_PLAIN_TENSORS, types.ModuleType))

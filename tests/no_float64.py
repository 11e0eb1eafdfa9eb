"""A device that has no float64, as Apple GPUs: a tensor of it alone, and a stand-in for the whole device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps", 0)
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
# Composite operations: in one piece they are quicker than in their parts, and attention has no parts for this device.
_AT_ONCE = (
    torch.conv2d,
    torch.nn.functional.group_norm,
    torch.nn.functional.layer_norm,
    torch.nn.functional.linear,
    torch.nn.functional.scaled_dot_product_attention,
)


class NoFloat64(Tensor):
    """Refuses every operation that would put float64 on the device; `cpu()` and `tolist()` fetch it from there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, NoFloat64) and result.dtype == torch.float64:
            raise TypeError(f"no float64 on this device: {func.__name__}")
        if func is Tensor.cpu and isinstance(result, Tensor):
            return result.as_subclass(Tensor)
        return result


@contextmanager
def apple_gpu() -> Iterator[torch.device]:
    """Within the block `.to(device)` and `device=` work as on an Apple GPU, with the CPU's numbers: float64 there is
    refused, and so is an operation on tensors of two places.
    """
    with _Made(), _Computed():
        yield DEVICE


class _OnDevice(Tensor):
    """A tensor that says that it lies on `DEVICE`. stored: its numbers, a tensor of the CPU."""

    stored: Tensor

    @staticmethod
    def __new__(cls, stored: Tensor) -> Any:
        if stored.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"no {stored.dtype} on this device")
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            stored.size(),
            strides=stored.stride(),
            storage_offset=stored.storage_offset(),
            dtype=stored.dtype,
            device=DEVICE,
        )
        made.stored = stored
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["stored"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], _context: None, _size: Any, _stride: Any) -> Any:
        return _OnDevice(parts["stored"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Computed(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Does in Python what PyTorch does before dispatch, where it would look for the true device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_there(options.get("device")):
            device = options.pop("device")
            return func(*args, **options).to(device)
        if func in (Tensor.tolist, Tensor.untyped_storage) and isinstance(args[0], _OnDevice):
            return func(args[0].stored)
        if func not in _AT_ONCE:
            try:
                return func(*args, **options)
            except RuntimeError as error:
                if "not linked with support for" not in str(error):
                    raise
        return _compute(func, args, options)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its results lie where its arguments did, or where it is told to put them."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, _OnDevice)]
    if ours and func not in _MOVES and any(tensor.dim() for tensor in tensors if not isinstance(tensor, _OnDevice)):
        raise RuntimeError(f"{func}: tensors on two devices")
    there = _is_there(kwargs["device"]) if kwargs.get("device") is not None else bool(ours)

    def fetched(value: Any) -> Any:
        if isinstance(value, torch.device) and _is_there(value):
            return torch.device("cpu")
        return value.stored if isinstance(value, _OnDevice) else value

    if not there and not ours:
        return func(*args, **kwargs)
    result = func(*tree_map(fetched, args), **tree_map(fetched, kwargs))
    written = {id(tensor.stored): tensor for tensor in ours}  # what is changed in place stays the same tensor

    def put(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        return written[id(value)] if id(value) in written else _OnDevice(value)

    return tree_map(put, result)

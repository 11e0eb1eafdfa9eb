"""A tensor of a device that has no float64, as Apple GPUs: it must be fetched before it is widened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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

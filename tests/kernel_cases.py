"""Shared by the kernel tests: where they run, operands in awkward memory, the oracle and what it allows.

Without a GPU the kernels run in Triton's interpreter, which has to be chosen before their module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "padded")
NAN = float("nan")


def shapes(max_elements: int = 260) -> st.SearchStrategy[tuple[int, ...]]:
    """Any rank up to five, any size, zeros and ones among them, that the interpreter walks in a moment."""

    def trimmed(sizes: list[int]) -> tuple[int, ...]:
        kept, elements = [], 1
        for size in sizes:
            size = min(size, max_elements // max(elements, 1))
            elements *= size
            kept.append(size)
        return tuple(kept)

    sizes = st.one_of(st.integers(1, 5), st.integers(1, 9), st.integers(0, 70))
    return st.lists(sizes, min_size=0, max_size=5).map(trimmed)


def values(shape: Sequence[int], seed: int) -> Tensor:
    """Normal values in float64, the same on every device."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arranged(tensor: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    """The tensor's values with other strides, on the device; the gaps between them are NaN."""
    shape, rank = tuple(tensor.shape), tensor.ndim
    if layout == "channels_last" and rank >= 3:
        order = (0, *range(2, rank), 1)
    elif layout == "transposed":
        order = tuple(reversed(range(rank)))
    else:
        order = tuple(range(rank))
    step = 2 if layout == "sliced" and rank else 1
    margin = 3 if layout == "padded" else 0
    sizes = [shape[axis] * step + margin for axis in order]
    memory = torch.full(sizes, NAN, dtype=dtype, device=DEVICE)
    view = memory[tuple(slice(0, shape[axis] * step, step) for axis in order)]
    view = view.permute([order.index(axis) for axis in range(rank)])
    view.copy_(tensor)
    assert view.shape == shape
    return view


def far_apart(count: int) -> list[Tensor]:
    """Half-precision [3, 5] tensors whose last row lies 2^31 elements after the first, in memory reserved, not filled.

    The rows' stride itself fits 32 bits; only its product with the row does not.
    """
    stride = 2**30 + 8 * count
    try:
        memory = torch.empty(2 * stride + 8 * count, dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no address space for it: {error}")
    return [memory.as_strided((3, 5), (stride, 1), 8 * index) for index in range(count)]


def gaps(view: Tensor) -> Tensor:
    """Every element of the view's memory that the view does not show."""
    memory = torch.empty(0, dtype=view.dtype, device=view.device).set_(view.untyped_storage())
    shown = torch.zeros(memory.numel(), dtype=torch.bool, device=view.device)
    shown.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    return memory[~shown]


def assert_within_eager(actual: Tensor, eager: Tensor, oracle: Tensor) -> None:
    """Against the float64 oracle the kernel may be twice as wrong as eager PyTorch is: no tolerance to tune."""
    assert actual.shape == oracle.shape
    assert actual.dtype == eager.dtype
    if oracle.numel() == 0:
        return
    budget = 2 * (eager.double().cpu() - oracle).abs().max()
    if INTERPRETED and actual.dtype == torch.bfloat16:
        # The interpreter rounds to bfloat16 towards zero: one unit in the last place instead of a half.
        budget = budget + oracle.abs() * 2**-7
    error = (actual.double().cpu() - oracle).abs()
    assert not error.isnan().any(), "an element was not written, or a poisoned one was read"
    assert (error <= budget).all(), f"error {error.max():.3g}, eager's {budget.max() / 2:.3g}"

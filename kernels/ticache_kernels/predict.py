"""D_0 + mask * (sum_i c_i D_i - D_0) in one pass: each difference is read once, and only where it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ticache_kernels.launch import Layout, layout_of, run, tile_indices, tile_offsets


@triton.jit
def predict_kernel(
    differences,  # k + 1 times [rows, columns]
    coefficients,  # [k + 1] on the device, or a tuple of numbers
    mask,  # [rows, columns], strides of 0 among them, or None
    out,  # [rows, columns]
    row_shape,
    rows,
    columns,
    difference_strides,
    mask_strides,
    out_strides,
    BY_VALUE: tl.constexpr,
    MASK_PER_ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    row, column, inside = tile_indices(rows, columns, TILE, WIDTH)
    offsets = tile_offsets(row, column, row_shape, difference_strides[0])
    base = tl.load(differences[0] + offsets, mask=inside, other=0.0).to(tl.float32)  # [R, C]
    weight = inside
    wanted = inside
    if mask is not None:
        if MASK_PER_ROW:  # tokens and channels_last: one weight for all columns
            offsets = tile_offsets(row, tl.full((1, 1), 0, tl.int64), row_shape, mask_strides)
            weight = tl.load(mask + offsets, mask=row < rows, other=0.0).to(tl.float32)  # [R, 1]
        else:
            offsets = tile_offsets(row, column, row_shape, mask_strides)
            weight = tl.load(mask + offsets, mask=inside, other=0.0).to(tl.float32)  # [R, C]
        wanted = inside & (weight != 0.0)
    change = base
    for order in tl.static_range(len(differences)):  # pyright: ignore[reportGeneralTypeIssues]
        coefficient = coefficients[order] if BY_VALUE else tl.load(coefficients + order)
        # [1, 1]: the interpreter cannot spread the outcome of a comparison of scalars.
        coefficient = coefficient.to(tl.float32) + tl.full((1, 1), 0.0, tl.float32)
        if order == 0:
            # Relative to D_0: 0 for Taylor and Newton, whose c_0 is 1, even where D_0 is infinite.
            change = tl.where(wanted & (coefficient != 1.0), (coefficient - 1.0) * base, 0.0)
        else:
            offsets = tile_offsets(row, column, row_shape, difference_strides[order])
            read = wanted & (coefficient != 0.0)
            change += coefficient * tl.load(differences[order] + offsets, mask=read, other=0.0).to(tl.float32)
    if mask is not None:
        change = weight * change  # Eq. 4; outside the region both are 0, for nothing was read, and D_0 is reused
    # -0.0 + 0.0 is +0.0: the sum is not bit-identical to its first term, so the term itself is taken.
    prediction = tl.where(change == 0.0, base, base + change)
    offsets = tile_offsets(row, column, row_shape, out_strides)
    tl.store(out + offsets, prediction.to(out.dtype.element_ty), mask=inside)


def arguments(
    differences: Sequence[Tensor], coefficients: Tensor | tuple[float, ...], mask: Tensor | None, out: Tensor
) -> tuple[Layout, dict[str, Any]]:
    """How the kernel is called for these tensors. Numbers travel by value; a tensor is read where it is."""
    layout = layout_of([out, *differences, *([] if mask is None else [mask.expand(out.shape)])])
    return layout, {
        "differences": tuple(differences),
        "coefficients": coefficients,
        "mask": mask,
        "out": out,
        "row_shape": layout.row_shape,
        "rows": layout.rows,
        "columns": layout.columns,
        "difference_strides": layout.strides[1 : 1 + len(differences)],
        "mask_strides": None if mask is None else layout.strides[-1],
        "out_strides": layout.strides[0],
        "BY_VALUE": isinstance(coefficients, tuple),
        "MASK_PER_ROW": mask is not None and layout.strides[-1][-1] == 0,
        "WIDTH": layout.width,
    }


def launch(
    differences: Sequence[Tensor], coefficients: Tensor | tuple[float, ...], mask: Tensor | None, out: Tensor
) -> None:
    """Predict into `out`. A tensor of coefficients on the host is handed over by value: no copy, no wait."""
    if out.numel() == 0:
        return
    if isinstance(coefficients, Tensor):
        on_device = coefficients.device == out.device
        coefficients = coefficients.contiguous() if on_device else tuple(coefficients.tolist())
    run(predict_kernel, *arguments(differences, coefficients, mask, out), like=out)


@torch.library.custom_op("ticache::predict", mutates_args={"out"})
def predict(differences: list[Tensor], coefficients: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """Predict into `out`; see `ticache.reference`. As many coefficients as differences, on their device or the CPU.

    differences and out [*shape], fp32, fp16 or bf16, any strides; mask broadcastable to [*shape].
    """
    launch(differences, coefficients, mask, out)


@predict.register_fake
def _(differences: list[Tensor], coefficients: Tensor, mask: Tensor | None, out: Tensor) -> None:
    return None

"""D_0..D_O of the last full step become those of this one: every tensor is read once and written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ticache_kernels.launch import Layout, layout_of, run, tile_indices, tile_offsets


@triton.jit
def update_differences_kernel(
    feature,  # [rows, columns]
    differences,  # O + 1 times [rows, columns]
    row_shape,
    rows,
    columns,
    feature_strides,
    difference_strides,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    row, column, inside = tile_indices(rows, columns, TILE, WIDTH)
    offsets = tile_offsets(row, column, row_shape, feature_strides)
    current = tl.load(feature + offsets, mask=inside, other=0.0).to(tl.float32)  # [R, C]
    # The chain D_n = D_{n-1} - D'_{n-1} stays in registers, in fp32; what is stored is rounded, what goes on is not.
    for order in tl.static_range(len(differences)):  # pyright: ignore[reportGeneralTypeIssues]
        difference = differences[order] + tile_offsets(row, column, row_shape, difference_strides[order])
        following = current
        if order + 1 < len(differences):  # the highest one is never read: it may be uninitialised
            following = current - tl.load(difference, mask=inside, other=0.0).to(tl.float32)
        tl.store(difference, current.to(difference.dtype.element_ty), mask=inside)
        current = following


def arguments(feature: Tensor, differences: Sequence[Tensor]) -> tuple[Layout, dict[str, Any]]:
    """How the kernel is called for these tensors."""
    layout = layout_of([*differences, feature])
    return layout, {
        "feature": feature,
        "differences": tuple(differences),
        "row_shape": layout.row_shape,
        "rows": layout.rows,
        "columns": layout.columns,
        "feature_strides": layout.strides[-1],
        "difference_strides": layout.strides[:-1],
        "WIDTH": layout.width,
    }


@torch.library.custom_op("ticache::update_differences", mutates_args={"differences"})
def update_differences(feature: Tensor, differences: list[Tensor]) -> None:
    """Turn the backward differences of the last full step into those of this one, in place; see `ticache.reference`.

    feature [*shape], each difference [*shape]; fp32, fp16 or bf16, any strides.
    """
    if feature.numel():
        run(update_differences_kernel, *arguments(feature, differences), like=feature)


@update_differences.register_fake
def _(feature: Tensor, differences: list[Tensor]) -> None:
    return None

"""What both kernels need: operands laid out as rows and columns, the tile that walks them, and the launch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

# Elements of a program, shared by 4 warps: 8 a thread, one 16-byte load in fp16. In the interpreter a small tile meets
# more edges.
TILE = 64 if knobs.runtime.interpret else 1024
# Products are rounded before they are added, as in the reference: fused, a mask of ones would change the last bit.
OPTIONS: dict[str, Any] = {"TILE": TILE, "num_warps": 4, "enable_fp_fusion": False}


@dataclass(frozen=True)
class Layout:
    """A set of equally shaped strided operands as `rows` x `columns`, with as few axes as their strides allow."""

    row_shape: tuple[int, ...]  # axes that make up the rows, slowest first
    columns: int
    strides: tuple[tuple[int, ...], ...]  # per operand: one per row axis, then the columns'

    @property
    def rows(self) -> int:
        return math.prod(self.row_shape)

    @property
    def width(self) -> int:
        """Columns of a tile: all of it for one row, else a power of two that divides them where it can."""
        divisor = self.columns & -self.columns
        if divisor < 64:
            divisor = triton.next_power_of_2(self.columns)
        return min(divisor, TILE) if self.row_shape else TILE

    @property
    def grid(self) -> tuple[int]:
        """Programs, as one axis: the other two end at 65535."""
        return (triton.cdiv(self.rows, TILE // self.width) * triton.cdiv(self.columns, self.width),)


def layout_of(operands: Sequence[Tensor]) -> Layout:
    """The layout that serves all `operands` at once; the first one's order in memory is the order of the walk."""
    return _layout(tuple(operands[0].shape), tuple(tuple(operand.stride()) for operand in operands))


@functools.lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> Layout:
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    axes.sort(key=lambda axis: -strides[0][axis])
    merged: list[tuple[int, tuple[int, ...]]] = []  # (size, stride per operand), slowest first
    for axis in axes:
        size, steps = shape[axis], tuple(stride[axis] for stride in strides)
        # Merged with the axis outside it where that continues where this one ends, in every operand.
        if merged and merged[-1][1] == tuple(size * step for step in steps):
            size *= merged.pop()[0]
        merged.append((size, steps))
    *rows, (columns, _) = merged = merged or [(1, (1,) * len(strides))]
    return Layout(tuple(size for size, _ in rows), columns, tuple(zip(*(steps for _, steps in merged), strict=True)))


def run(kernel: Any, layout: Layout, arguments: dict[str, Any], like: Tensor) -> None:
    """Launch on the device of `like`: Triton takes the current one, whatever its arguments' is."""
    with torch.cuda.device_of(like):
        kernel[layout.grid](*arguments.values(), **OPTIONS)


@triton.jit
def tile_indices(rows, columns, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """This program's row [R, 1] and column [1, WIDTH] indices in int64, R = TILE / WIDTH, and which are inside."""
    R: tl.constexpr = TILE // WIDTH
    # Blocks of columns. tl.cdiv is out of the interpreter's reach once Triton was imported.
    blocks = (columns + WIDTH - 1) // WIDTH
    program = tl.program_id(0).to(tl.int64)
    row = (program // blocks) * R + tl.arange(0, R)[:, None]
    column = (program % blocks) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return row, column, (row < rows) & (column < columns)


@triton.jit
def tile_offsets(row, column, row_shape, strides):
    """Offsets [R, C] in elements of one operand. row [R, 1] is split into its axes, fastest first."""
    offsets = row * 0 + column * strides[len(row_shape)]
    for axis in tl.static_range(len(row_shape) - 1, -1, -1):  # pyright: ignore[reportGeneralTypeIssues]
        offsets += (row % row_shape[axis]) * strides[axis]
        row = row // row_shape[axis]
    return offsets

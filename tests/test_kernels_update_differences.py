"""The fused difference update against a float64 oracle: values, strides, dtypes, tails, and what it must not touch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, LAYOUTS, NAN, arranged, assert_within_eager, far_apart, gaps, shapes, values
from torch import Tensor

from ticache import ops, reference


def oracle(feature: Tensor, differences: Sequence[Tensor]) -> list[Tensor]:
    """The new differences in float64: D_n = D_0 - sum of the old D_0..D_{n-1}, the recurrence unrolled."""
    feature = feature.double().cpu()
    found = [difference.double().cpu() for difference in differences]
    return [feature - sum(found[:order], torch.zeros_like(feature)) for order in range(len(found))]


def check(
    shape: tuple[int, ...],
    order: int,
    *,
    dtype: torch.dtype,
    stored: torch.dtype,
    layout: str = "contiguous",
    stored_layout: str = "contiguous",
) -> list[Tensor]:
    feature = arranged(values(shape, 1), layout, dtype)
    before = [values(shape, 2 + n) for n in range(order + 1)]
    if order:
        before[-1].fill_(NAN)  # the highest difference is written and never read
    differences = [arranged(difference, stored_layout, stored) for difference in before]
    eager = [difference.clone() for difference in differences]
    expected = oracle(feature, differences)
    kept = feature.clone()
    ops.update_differences(feature, differences, backend="triton")
    reference.update_differences(feature, eager)
    for actual, rival, exact in zip(differences, eager, expected, strict=True):
        assert_within_eager(actual, rival, exact)
        assert gaps(actual).isnan().all()
    assert torch.equal(feature, kept)
    return differences


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_and_dtype(order: int, dtype: torch.dtype) -> None:
    check((2, 3, 5, 7), order, dtype=dtype, stored=dtype)


@pytest.mark.parametrize("stored_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_even_unlike_ones(layout: str, stored_layout: str) -> None:
    check((2, 3, 4, 5), 2, dtype=torch.float32, stored=torch.float32, layout=layout, stored_layout=stored_layout)


def test_differences_whose_strides_differ_among_them() -> None:
    shape = (2, 3, 4, 5)
    differences = [arranged(values(shape, n), layout, torch.float32) for n, layout in enumerate(LAYOUTS)]
    eager = [difference.clone() for difference in differences]
    feature = values(shape, 9).float().to(DEVICE)
    ops.update_differences(feature, differences, backend="triton")
    reference.update_differences(feature, eager)
    for actual, rival in zip(differences, eager, strict=True):
        assert torch.equal(actual, rival)
        assert gaps(actual).isnan().all()


@pytest.mark.parametrize("shape", [(), (1,), (63,), (64,), (65,), (129,), (3, 77, 1), (2, 67, 3), (2, 1, 3, 1, 11)])
def test_tails_and_tokens_and_video(shape: tuple[int, ...]) -> None:
    check(shape, 2, dtype=torch.float32, stored=torch.float32)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (0, 3, 4, 4)])
def test_no_elements(shape: tuple[int, ...]) -> None:
    check(shape, 2, dtype=torch.float16, stored=torch.float16)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_differences_of_a_lower_dtype_are_formed_in_float32(stored: torch.dtype) -> None:
    """Neighbouring features differ by less than the storage can tell: rounded first, their difference would be 0."""
    old = torch.full((5, 13), 1.0, dtype=stored, device=DEVICE)
    differences = [old, torch.full_like(old, NAN)]
    ops.update_differences(torch.full((5, 13), 1.0001220703125, device=DEVICE), differences, backend="triton")
    assert torch.equal(differences[0], torch.ones_like(old))
    assert torch.equal(differences[1], torch.full_like(old, 2.0**-13))


def test_the_chain_is_not_rounded_between_orders() -> None:
    """In bfloat16, 257 - 1 rounds; the order above must still see the 257 that came in."""
    differences = [torch.ones(70, dtype=torch.bfloat16, device=DEVICE) for _ in range(3)]
    ops.update_differences(torch.full((70,), 258.0, device=DEVICE), differences, backend="triton")
    assert differences[2].float().tolist() == [256.0] * 70  # 258 - 1 - 1; a rounded 257 would give 255


def test_a_polynomial_leaves_its_own_differences() -> None:
    """k^2 at k = 0..3: the last differences are 9, 5, 2, 0 exactly."""
    differences = [torch.full((3, 5, 7), NAN, device=DEVICE) for _ in range(4)]
    for step in range(4):
        ops.update_differences(
            torch.full((3, 5, 7), float(step**2), device=DEVICE), differences[: step + 1], backend="triton"
        )
    assert [difference.unique().tolist() for difference in differences] == [[9.0], [5.0], [2.0], [0.0]]


def test_offsets_beyond_32_bits() -> None:
    feature, *differences = far_apart(3)
    feature.copy_(torch.arange(15.0).view(3, 5) * 3)
    differences[0].copy_(torch.arange(15.0).view(3, 5))
    ops.update_differences(feature, differences, backend="triton")
    assert differences[0].flatten().tolist() == [3.0 * n for n in range(15)]
    assert differences[1].flatten().tolist() == [2.0 * n for n in range(15)]


@given(
    shape=shapes(),
    order=st.integers(0, 4),
    dtype=st.sampled_from(DTYPES),
    stored=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    stored_layout=st.sampled_from(LAYOUTS),
)
def test_any_shape_order_dtype_and_layout(
    shape: tuple[int, ...], order: int, dtype: torch.dtype, stored: torch.dtype, layout: str, stored_layout: str
) -> None:
    check(shape, order, dtype=dtype, stored=stored, layout=layout, stored_layout=stored_layout)

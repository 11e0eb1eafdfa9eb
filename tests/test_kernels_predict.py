"""The fused prediction against a float64 oracle: coefficients, masks, strides, dtypes, tails, and the exact cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, LAYOUTS, NAN, arranged, assert_within_eager, far_apart, gaps, shapes, values
from torch import Tensor

from ticache import ops, reference

# c_0..c_4: Eq. 4 and Newton's form at k/N = 2/3, a fit whose c_0 is not 1, and numbers that nearly cancel.
COEFFICIENTS = {
    "taylor": [1.0, 2 / 3, 2 / 9, 4 / 81, 2 / 243],
    "newton": [1.0, 2 / 3, 5 / 9, 40 / 81, 110 / 243],
    "fit": [-0.35, 1.75, -0.6, 0.2, 0.01],
    "cancelling": [1.0, 64.0, -63.5, 31.0, -32.0],
}
NUMBERS = {name: torch.tensor(row, dtype=torch.float32).tolist() for name, row in COEFFICIENTS.items()}


def oracle(differences: Sequence[Tensor], coefficients: Sequence[float], mask: Tensor | None) -> Tensor:
    """D_0 + mask * (sum c_i D_i - D_0) in float64; what a zero multiplies counts as nothing."""
    exact = [difference.double().cpu() for difference in differences]
    total = sum((c * d for c, d in zip(coefficients, exact, strict=False) if c != 0), torch.zeros_like(exact[0]))
    if mask is None:
        return total
    weight = mask.double().cpu().expand(total.shape)
    return torch.where(weight == 0, exact[0], exact[0] + weight * (total - exact[0]))


def check(
    differences: Sequence[Tensor],
    coefficients: Sequence[float],
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    as_tensor: bool = True,
    into: Tensor | None = None,
) -> Tensor:
    given = torch.tensor(coefficients, device=DEVICE) if as_tensor else coefficients
    before = [difference.clone() for difference in differences]
    actual = ops.predict(differences, given, mask, out=into, dtype=dtype, backend="triton")
    eager = reference.predict(differences, given, mask, dtype=actual.dtype)
    assert_within_eager(actual, eager, oracle(differences, coefficients, mask))
    for difference, kept in zip(differences, before, strict=True):
        assert torch.equal(difference.nan_to_num(), kept.nan_to_num())
    return actual


def differences_of(shape: tuple[int, ...], order: int, dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
    return [arranged(values(shape, 11 + n), layout, dtype) for n in range(order + 1)]


def mask_of(shape: Sequence[int], kind: str, seed: int = 5) -> Tensor:
    """A mask of zeros, of ones, of both, soft or boolean; every element of a binary one differs from some neighbour."""
    uniform = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    match kind:
        case "zero":
            return torch.zeros_like(uniform)
        case "one":
            return torch.ones_like(uniform)
        case "binary":
            return (uniform > 0.5).float()
        case "bool":
            return uniform > 0.5
        case _:
            return uniform * (uniform > 0.3)


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_every_order_dtype_and_coefficient_set(order: int, dtype: torch.dtype, name: str) -> None:
    check(differences_of((2, 3, 5, 7), order, dtype), NUMBERS[name][: order + 1])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("result", DTYPES)
def test_sums_in_float32_whatever_the_storage(stored: torch.dtype, result: torch.dtype) -> None:
    """A result in float32 has no rounding of its own to hide an accumulator of 16 bits behind."""
    check(differences_of((3, 41), 4, stored), NUMBERS["cancelling"], dtype=result)


def test_a_small_change_is_not_lost_in_bfloat16() -> None:
    """256 + 0.5 + 0.5 + 1 is 258 summed in float32 and 256 summed in bfloat16."""
    differences = [torch.full((70,), value, dtype=torch.bfloat16, device=DEVICE) for value in (256.0, 0.5, 0.5, 1.0)]
    predicted = ops.predict(differences, torch.ones(4, device=DEVICE), backend="triton")
    assert predicted.tolist() == [258.0] * 70


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [None, "binary"])
def test_any_strides(layout: str, kind: str | None) -> None:
    shape = (2, 3, 4, 5)
    mask = None if kind is None else mask_of((2, 1, 4, 5), kind)
    check(differences_of(shape, 2, torch.float32, layout), NUMBERS["newton"][:3], mask)


def test_strides_that_differ_between_operands() -> None:
    shape = (2, 3, 4, 5)
    differences = [arranged(values(shape, n), layout, torch.float32) for n, layout in enumerate(LAYOUTS)]
    into = arranged(torch.full(shape, NAN), "sliced", torch.float16)
    check(differences, NUMBERS["newton"], arranged(mask_of((2, 1, 4, 5), "soft"), "padded", torch.float32), into=into)
    assert gaps(into).isnan().all()


@pytest.mark.parametrize("shape", [(), (1,), (63,), (64,), (65,), (129,), (3, 77, 1), (2, 67, 3), (2, 1, 3, 1, 11)])
def test_tails(shape: tuple[int, ...]) -> None:
    into = arranged(torch.full(shape, NAN), "padded", torch.float32)
    check(differences_of(shape, 2, torch.float32), NUMBERS["newton"][:3], into=into)
    assert gaps(into).isnan().all()


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (0, 3, 4, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_no_elements(shape: tuple[int, ...], masked: bool) -> None:
    check(differences_of(shape, 2, torch.float16), NUMBERS["newton"][:3], mask_of(shape, "one") if masked else None)


MASKED_SHAPES = {
    "NCHW": ((3, 5, 4, 6), (3, 1, 4, 6)),
    "one mask for the batch": ((3, 5, 4, 6), (1, 1, 4, 6)),
    "without the batch axis": ((3, 5, 4, 6), (4, 6)),
    "tokens": ((3, 17, 5), (3, 17, 1)),
    "video": ((2, 3, 4, 3, 5), (2, 1, 4, 3, 5)),
    "frames": ((2, 3, 4, 3, 5), (2, 1, 4, 1, 1)),
    "channels": ((2, 7, 3, 3), (1, 7, 1, 1)),
}


@pytest.mark.parametrize(("shape", "mask_shape"), MASKED_SHAPES.values(), ids=MASKED_SHAPES)
@pytest.mark.parametrize("kind", ["binary", "soft", "bool"])
def test_masks(shape: tuple[int, ...], mask_shape: tuple[int, ...], kind: str) -> None:
    """Every batch, frame and token has its own weight."""
    mask = mask_of(mask_shape, kind)
    differences = differences_of(shape, 2, torch.float32)
    masked = check(differences, NUMBERS["newton"][:3], mask)
    outside = (mask == 0).expand(shape)
    assert outside.any()
    assert torch.equal(masked[outside], differences[0][outside])
    assert not torch.equal(masked[~outside], differences[0][~outside])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_difference_is_read_where_the_mask_is_zero(layout: str) -> None:
    mask = mask_of((2, 1, 4, 6), "binary")
    differences = differences_of((2, 5, 4, 6), 3, torch.float32, layout)
    for difference in differences[1:]:
        difference[(mask == 0).expand(difference.shape)] = NAN
    check(differences, NUMBERS["fit"][:4], mask)


def test_no_difference_is_read_where_its_coefficient_is_zero() -> None:
    differences = differences_of((3, 50), 3, torch.float32)
    differences[2].fill_(NAN)
    check(differences, [0.5, 1.0, 0.0, 0.25])
    differences[1].fill_(torch.inf)
    differences[3].fill_(NAN)
    assert torch.equal(check(differences, [1.0, 0.0, 0.0, 0.0]), differences[0])


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: unlike `torch.equal`, tells -0.0 from 0.0 and equates NaN with itself."""
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["newton", "fit"])
def test_exact_cases(dtype: torch.dtype, name: str) -> None:
    shape, mask_shape = (2, 3, 4, 9), (2, 1, 4, 9)
    differences = differences_of(shape, 1, dtype)
    differences[0][0, 0, 0, :3] = torch.tensor([-0.0, 0.0, torch.inf])
    numbers = torch.tensor(NUMBERS[name][:2], device=DEVICE)
    with np.errstate(invalid="ignore"):  # the interpreter computes the branch that is not taken, too
        unmasked = ops.predict(differences, numbers, backend="triton")
        full = ops.predict(differences, numbers, mask_of(mask_shape, "one"), backend="triton")
        empty = ops.predict(differences, numbers, mask_of(mask_shape, "zero"), backend="triton")
        reused = ops.predict(differences, torch.tensor([1.0, 0.0], device=DEVICE), backend="triton")
    assert torch.equal(bits(full), bits(unmasked))
    assert torch.equal(bits(empty), bits(differences[0]))
    assert torch.equal(bits(reused), bits(differences[0]))
    assert not torch.equal(unmasked, differences[0])


def test_coefficients_as_numbers_as_a_tensor_and_by_value_agree() -> None:
    differences = differences_of((3, 50), 2, torch.float16)
    expected = check(differences, NUMBERS["newton"][:3])
    assert torch.equal(check(differences, NUMBERS["newton"][:3], as_tensor=False), expected)
    strided = torch.tensor([[number, NAN] for number in NUMBERS["newton"][:3]], device=DEVICE)[:, 0]
    assert torch.equal(ops.predict(differences, strided, backend="triton"), expected)
    from ticache_kernels.predict import launch

    # How the host's numbers reach a GPU; in the interpreter every tensor is on the host.
    into = torch.full_like(expected, NAN)
    launch(differences, tuple(NUMBERS["newton"][:3]), None, into)
    assert torch.equal(into, expected)


def test_more_terms_than_taylor_needs() -> None:
    check([arranged(values((3, 30), n), "contiguous", torch.float32) for n in range(9)], [0.5, -0.25] * 4 + [0.125])


def test_fewer_coefficients_than_differences() -> None:
    differences = differences_of((3, 50), 4, torch.float32)
    differences[3].fill_(NAN)
    differences[4].fill_(NAN)
    check(differences, NUMBERS["newton"][:3])


@pytest.mark.parametrize("masked", [False, True])
def test_offsets_beyond_32_bits(masked: bool) -> None:
    out, *differences = far_apart(3)
    for number, difference in enumerate(differences):
        difference.copy_(torch.arange(15.0).view(3, 5) + number)
    mask = torch.tensor([[0.0], [1.0], [1.0]], device=DEVICE) if masked else None
    ops.predict(differences, [1.0, 2.0], mask, out=out, backend="triton")
    expected = [3.0 * n + 2 for n in range(15)]
    assert out.flatten().tolist() == ([0.0, 1.0, 2.0, 3.0, 4.0, *expected[5:]] if masked else expected)


@given(
    shape=shapes(),
    order=st.integers(0, 4),
    dtype=st.sampled_from(DTYPES),
    result=st.sampled_from((None, *DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    name=st.sampled_from(list(COEFFICIENTS)),
    kind=st.sampled_from((None, "zero", "one", "binary", "soft", "bool")),
    shared=st.sets(st.integers(0, 4)),
    as_tensor=st.booleans(),
)
def test_any_shape_order_dtype_layout_and_mask(
    shape: tuple[int, ...],
    order: int,
    dtype: torch.dtype,
    result: torch.dtype | None,
    layout: str,
    name: str,
    kind: str | None,
    shared: set[int],
    as_tensor: bool,
) -> None:
    """`shared`: the axes along which the mask is broadcast."""
    mask = None
    if kind is not None:
        mask = mask_of([1 if axis in shared else size for axis, size in enumerate(shape)], kind)
    differences = differences_of(shape, order, dtype, layout)
    check(differences, NUMBERS[name][: order + 1], mask, dtype=result, as_tensor=as_tensor)

"""The two operations of the cache in plain PyTorch: the definition that every kernel is held to, and the CPU path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# What leaves every number as it was when added, bit for bit: -0.0 + 0.0 is +0.0, but -0.0 + -0.0 is -0.0.
_NOTHING = -0.0


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 as soon as one of the tensors is float64."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def update_differences(feature: Tensor, differences: Sequence[Tensor]) -> None:
    """Turn the backward differences of the last full step into those of this one, in place.

    `feature` and each of `differences` = (D_0, ..., D_O) have one shape. With D' the values found,

        D_0 = feature        D_n = D_{n-1} - D'_{n-1}

    so D_O is written but never read: it may be uninitialised. The chain runs in float32 (float64 in, float64 maths)
    and is rounded only when stored, so that a difference carries the rounding of the old values but not of the new.
    Equation 4 of Follow-Your-Emoji-Faster (section 4.4).
    """
    dtype = accumulation_dtype(feature, *differences)
    current = feature.to(dtype)
    last = len(differences) - 1
    for order, difference in enumerate(differences):
        if order == last:
            difference.copy_(current)
            return
        # A new tensor in any case: `difference` is about to be overwritten.
        following = current - difference.to(dtype)
        difference.copy_(current)
        current = following


def predict(
    differences: Sequence[Tensor],
    coefficients: Tensor | Sequence[float],
    mask: Tensor | None = None,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Extrapolate a feature: D_0 + mask * (sum_i c_i D_i - D_0). Each D_i [*shape] -> [*shape].

    Sums in float32 (float64 in, float64 maths) and rounds once, to `dtype` (that of D_0 if None). A difference is
    unread, so that not even its NaN is seen, where the mask or its coefficient is 0; D_0 comes back bit for bit where
    nothing is added to it. Equation 4 of Follow-Your-Emoji-Faster with any coefficients, blended by a soft mask.
    """
    base = differences[0].to(accumulation_dtype(*differences))
    change = _change(differences, coefficients, base)
    if change is not None and mask is not None:
        weight = mask.to(base.dtype)
        change = torch.where(weight == 0, _NOTHING, weight * change)
    prediction = base if change is None else base + change
    if out is not None:
        return out.copy_(prediction)
    return prediction.to(dtype or differences[0].dtype, copy=change is None)


def _change(differences: Sequence[Tensor], coefficients: Tensor | Sequence[float], base: Tensor) -> Tensor | None:
    """(c_0 - 1) D_0 + sum_{i >= 1} c_i D_i in the dtype of `base`; None where it is known to be 0."""
    change: Tensor | None = None
    for order in range(len(coefficients)):
        coefficient = coefficients[order]
        if order == 0:
            # Taylor's and Newton's c_0 is 1, and this term nothing.
            coefficient = coefficient - 1.0
        difference = base if order == 0 else differences[order].to(base.dtype)
        if isinstance(coefficient, Tensor):
            coefficient = coefficient.to(base)
            term = torch.where(coefficient == 0, _NOTHING, coefficient * difference)
        elif coefficient != 0:
            term = coefficient * difference
        else:
            continue
        change = term if change is None else change.add_(term)
    return change

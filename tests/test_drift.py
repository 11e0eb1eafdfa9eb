"""Errors of predictions, and how near one result is to another, on devices that have no float64."""

from __future__ import annotations

import pytest
import torch
from no_float64 import NoFloat64

from ticache.drift import _errors
from ticache.fidelity import psnr


def test_errors_are_computed_without_float64_on_the_device() -> None:
    prediction, truth, weights = torch.rand(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = _errors(prediction, truth, weights)
    assert expected["inside"] is not None
    on_device = [tensor.as_subclass(NoFloat64) for tensor in (prediction, truth, weights)]
    assert _errors(on_device[0], on_device[1], on_device[2]) == expected


@pytest.mark.parametrize("region", [None, torch.eye(4)])
def test_psnr_is_computed_without_float64_on_the_device(region: torch.Tensor | None) -> None:
    result, reference = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = psnr(result, reference, region)
    assert psnr(result.as_subclass(NoFloat64), reference.as_subclass(NoFloat64), region) == expected

"""The settings: checked once, presets fill what is left out, JSON there and back."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import ticache
from ticache import CacheConfig

CONFIGS = [
    CacheConfig(),
    CacheConfig(N=5, order=1, cut="output", boundary=0.72, dtype=torch.float16, offload="cpu"),
    CacheConfig(schedule=[0, 3, 6]),  # pyright: ignore[reportArgumentType]
    CacheConfig(cut="branches", resnets=True, forecaster="chebyshev", axis="logsnr", warmup=2, noise_order=None),
    CacheConfig.from_preset("paper", N=3),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_there_and_back(config: CacheConfig) -> None:
    assert CacheConfig.from_json(config.to_json()) == config


def test_defaults_are_the_contract() -> None:
    config = CacheConfig()
    assert (config.cut, config.forecaster, config.schedule) == ("outer", "newton", "spread")
    assert (config.axis, config.boundary, config.steps) == ("step", 0, None)


def test_a_list_of_steps_sets_steps() -> None:
    config = CacheConfig(schedule=[6, 0, 3])  # pyright: ignore[reportArgumentType]
    assert config.steps == (0, 3, 6)
    assert config == CacheConfig(steps=(0, 3, 6))
    assert config.replaced(schedule="late").steps is None


def test_presets_give_way_to_what_is_given() -> None:
    paper = CacheConfig.from_preset("paper")
    assert (paper.forecaster, paper.schedule, paper.boundary) == ("taylor", "uniform", 0.72)
    assert (paper.N, paper.order, paper.cut) == (CacheConfig().N, CacheConfig().order, CacheConfig().cut)
    assert CacheConfig.from_preset("paper", boundary=0).boundary == 0
    assert [CacheConfig.from_preset(name).N for name in ("fast", "balanced", "faithful")] == [5, 3, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"N": 0}, "N must be >= 1, got 0"),
        ({"order": -1}, "order must be >= 0, got -1"),
        ({"order": 5}, "order must be 0 to 4, got 5"),
        ({"boundary": 1.7}, r"boundary must be an int, or a fraction in \[0, 1\], got 1.7"),
        ({"boundary": -2}, "boundary must be >= 0, got -2"),
        ({"cut": "inner"}, "cut must be one of 'output', 'outer', 'branches', got 'inner'"),
        ({"forecaster": "lagrange"}, "forecaster must be one of"),
        ({"axis": "sigma"}, "axis must be one of"),
        ({"schedule": "soon"}, "schedule must be one of"),
        ({"schedule": [3, 6]}, "must begin with 0"),
        ({"schedule": []}, "must begin with 0"),
        ({"schedule": [0, -3]}, "steps must be >= 0, got -3"),
        ({"warmup": -1}, "warmup must be >= 0, got -1"),
        ({"depth": 1, "cut": "output"}, "depth goes with cut='outer' only"),
        ({"resnets": True}, "resnets goes with cut='branches' only"),
        ({"dtype": torch.int8}, "dtype must be a floating-point torch dtype"),
        ({"offload": "disk"}, "offload must be one of None, 'cpu'"),
        ({"backend": "cuda"}, "backend must be one of"),
    ],
)
def test_wrong_values_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheConfig(**settings)


@pytest.mark.parametrize("settings", [{"N": 2.5}, {"N": True}, {"boundary": "half"}, {"keep": 1}, {"schedule": 3}])
def test_wrong_types_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(settings))):
        CacheConfig(**settings)


def test_json_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="callable"):
        CacheConfig(schedule=lambda step: True).to_json()
    with pytest.raises(ValueError, match="got"):
        CacheConfig.from_json('{"M": 3}')
    with pytest.raises(ValueError, match="preset must be one of"):
        CacheConfig.from_preset("turbo")


def test_the_signature_of_apply_shows_the_real_defaults() -> None:
    shown = inspect.signature(ticache.apply).parameters
    for field in dataclasses.fields(CacheConfig):
        if field.name in shown:
            assert shown[field.name].default == field.default, field.name
    assert "_given" not in shown
    assert {"N", "order", "cut", "schedule", "calibration"} <= set(shown)

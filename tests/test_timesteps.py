"""Where a call stands in a list of timesteps, and which lists are a run's."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from no_float64 import NoFloat64
from ticache_models import ddim, make_inputs, make_unet
from torch import Tensor

import ticache
from ticache.timesteps import is_monotone, is_part, log_snr

# diffusers' sigma schedulers call np.array on a tensor, which numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")


@pytest.mark.parametrize(
    ("values", "expected"),
    [((3, 2, 1), True), ((1, 2, 3), True), ((3, 3, 1), False), ((1, 3, 2), False), ((3, 1, 2), False), ((1,), True)],
)
def test_a_run_goes_one_way(values: tuple[float, ...], expected: bool) -> None:
    assert is_monotone(values) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        ((1, 2), (1, 2, 3), True),
        ((2, 3), (1, 2, 3), True),
        ((1, 3), (1, 2, 3), False),
        ((1, 2), (), False),
        ((1, 2, 3), (1, 2), False),
    ],
)
def test_a_part_has_no_gap(part: tuple[float, ...], whole: tuple[float, ...], expected: bool) -> None:
    assert is_part(part, whole) == expected


@pytest.mark.parametrize("known", ["steps", "scheduler"])
@pytest.mark.parametrize("listed", [False, True])
def test_random_timesteps_are_no_run(known: str, listed: bool) -> None:
    """A validation loop: other pictures at random timesteps, also where these are some of the scheduler's."""
    unet, scheduler = make_unet(), ddim()
    scheduler.set_timesteps(9)
    order = [0, 1, 2, 4, 3, 5, 6, 8, 7]
    timesteps = scheduler.timesteps[order] if listed else torch.tensor([900, 850, 700, 720, 650, 500, 400, 300, 350])
    samples, conditions = make_inputs(batch=9)
    settings: dict[str, Any] = {"num_steps": 9} if known == "steps" else {"scheduler": scheduler}
    with torch.no_grad(), ticache.apply(unet, N=3, **settings) as session:
        for index in range(9):
            tokens = conditions["encoder_hidden_states"][index : index + 1]
            unet(samples[index : index + 1], timesteps[index], encoder_hidden_states=tokens)
        report = session.report().to_dict()
    assert report["predicted_calls"] == 0
    assert sum(report["unattributed"].values()) == 9
    assert "up and down" in next(iter(report["unattributed"]))


@pytest.mark.parametrize("name", ["KDPM2AncestralDiscreteScheduler", "PNDMScheduler"])
def test_a_copy_of_a_schedulers_own_order_is_a_run(name: str) -> None:
    """These lists go up and down, or stand still, by the sampler's own order."""
    unet, scheduler = make_unet(), getattr(diffusers, name)()
    scheduler.set_timesteps(10)
    assert not is_monotone(scheduler.timesteps.tolist())
    sample, conditions = make_inputs(batch=1)
    with torch.no_grad(), ticache.apply(unet, N=2, scheduler=scheduler, noise_order=None) as session:
        for timestep in scheduler.timesteps.clone():
            unet(sample, timestep, **conditions)
        report = session.report().to_dict()
    assert report["predicted_calls"] > 0
    assert report["unattributed"] == {}


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_signal_to_noise_is_computed_without_float64_on_the_device(name: str) -> None:
    scheduler: Any = getattr(diffusers, name)()
    scheduler.set_timesteps(5)
    expected = log_snr(scheduler)
    for attribute in ("timesteps", "alphas_cumprod", "sigmas"):
        value = getattr(scheduler, attribute, None)
        if isinstance(value, Tensor):
            setattr(scheduler, attribute, value.float().as_subclass(NoFloat64))
    with pytest.raises(TypeError, match="no float64"):
        scheduler.timesteps.double()
    assert log_snr(scheduler) == expected

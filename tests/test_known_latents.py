"""Latents that somebody replaced in mid-run: a full step and a fresh history, told by identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from ticache_models import ddim, make_inputs, make_unet
from torch import Tensor, nn

import ticache
from ticache.inputs import KnownLatents

# diffusers' sigma schedulers call np.array on a tensor, which numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

REASON = "the latents are not those of the scheduler's last step"


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return make_unet()


def test_known_latents_are_known_by_identity() -> None:
    known, sample = KnownLatents(), torch.zeros(2, 4, 8, 8)
    known.add(sample)
    assert sample in known
    assert sample[:, :2, 1:] in known
    assert sample.clone() not in known
    sample[0] = 1
    assert sample not in known
    known.add(sample)
    assert sample in known


def loop(unet: Any, scheduler: Any, change: Callable[[int, Tensor], Tensor]) -> None:
    """A hand-written loop of 8 steps; `change(step, sample)` is what goes on after a step."""
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(8)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            output = unet(scheduler.scale_model_input(sample, t), t, **conditions).sample
            sample = change(step, scheduler.step(output, t, sample).prev_sample)


def write(step: int, sample: Tensor) -> Tensor:
    return sample.mul_(2) if step == 4 else sample


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("change", [lambda step, sample: sample + 1 if step == 4 else sample, write])
def test_replaced_latents_are_a_full_step(unet: nn.Module, name: str, change: Callable[[int, Tensor], Tensor]) -> None:
    """Euler's scheduler scales what it gives before it goes to the UNet."""
    scheduler = getattr(diffusers, name)()
    with ticache.apply(unet, schedule=[0, 1], scheduler=scheduler) as session:
        loop(unet, scheduler, change)
        report = session.report().to_dict()
    assert report["streams"][0]["full"] == [0, 1, 5]
    assert report["fallbacks"] == {REASON: 1}
    assert {"step", "scale_model_input"} & set(vars(scheduler)) == set()


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_loop_that_changes_every_sample_stays_cached(unet: nn.Module, name: str) -> None:
    """Blending with known latents at every step, as inpainting does."""
    scheduler = getattr(diffusers, name)()
    with ticache.apply(unet, schedule=[0, 1], scheduler=scheduler) as session:
        loop(unet, scheduler, lambda _, sample: 0.9 * sample + 0.1)
        report = session.report().to_dict()
    assert report["streams"][0]["full"] == [0, 1]
    assert report["fallbacks"] == {}


def test_what_is_predicted_after_a_change_comes_from_after_it(unet: Any) -> None:
    """Also where the step after the change is full by the schedule."""
    scheduler = ddim()

    def change(step: int, sample: Tensor) -> Tensor:
        return sample * 30 + 1 if step == 3 else sample

    with ticache.apply(unet, schedule=[0, 1, 4], order=2, keep=True, scheduler=scheduler) as session:
        loop(unet, scheduler, change)
        (sites,) = session.kept().values()
    assert all(len(differences) == 1 for differences in sites.values())

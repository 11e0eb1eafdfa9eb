"""Samplers that add noise are known, all of diffusers'; arguments are found and handed on as they came."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from ticache_models import make_unet
from torch import Tensor

from ticache.inputs import Arguments, PipelineInfo

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

SCHEDULERS = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
# Their steps cannot be tried here: they need what is not installed, arguments of their own, or are for tokens.
NOISY_BY_NAME = {
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMWuerstchenScheduler",
    "DPMSolverSDEScheduler",
    "HeliosDMDScheduler",
    "KarrasVeScheduler",
    "RFD4ProteinaScheduler",
    "RePaintScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
}
NOT_TRIED = {
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "HeliosScheduler",
    "PiflowScheduler",
    "VQDiffusionScheduler",
}


def depends_on_chance(scheduler: Any, **asked: Any) -> bool:
    """Do two runs of the scheduler's steps end differently under another seed?"""
    ends = []
    outputs = torch.randn(16, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2):
        sample: Tensor = outputs[0]
        scheduler.set_timesteps(4)
        torch.manual_seed(seed)
        for index, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else None
            sample = scheduler.step(outputs[index], t, sample, **asked, return_dict=False)[0]
        ends.append(sample)
    return not torch.equal(*ends)


@pytest.mark.filterwarnings("ignore")  # what each scheduler says of its defaults
@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n not in NOISY_BY_NAME | NOT_TRIED])
def test_every_scheduler_that_adds_noise_is_known(name: str) -> None:
    kind: Any = getattr(diffusers, name)
    scheduler = kind()
    if "eta" in inspect.signature(scheduler.step).parameters and name != "TCDScheduler":
        assert PipelineInfo(scheduler=scheduler).adds_noise(1.0)
    assert PipelineInfo(scheduler=scheduler).adds_noise(None) == depends_on_chance(scheduler)


@pytest.mark.parametrize("name", sorted(NOISY_BY_NAME))
def test_a_scheduler_that_cannot_be_tried_here_is_known_by_name(name: str) -> None:
    assert PipelineInfo(scheduler=type(name, (), {})()).adds_noise(None)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}),
    ],
)
def test_noise_asked_for_in_a_schedulers_settings_is_known(name: str, settings: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**settings)
    assert depends_on_chance(scheduler)
    assert PipelineInfo(scheduler=scheduler).adds_noise(None)


@pytest.mark.parametrize("positional", [0, 1, 2, 3, 5])
def test_arguments_are_handed_on_as_they_came(positional: int) -> None:
    class Free(diffusers.UNet2DConditionModel):
        def forward(self, sample: Any, *args: Any, **kwargs: Any) -> Any: ...

    values = {"sample": 1, "timestep": 2, "encoder_hidden_states": 3, "class_labels": 4, "timestep_cond": 5}
    args = tuple(values.values())[:positional]
    kwargs = dict(list(values.items())[positional:])
    for kind in (diffusers.UNet2DConditionModel, Free):
        arguments = Arguments(kind.__new__(kind))
        inputs = arguments.bind(args, kwargs)
        assert inputs.bound == values
        assert inputs.arguments({**inputs.bound, "sample": 7}) == (
            (7, *args[1:]) if positional else (),
            kwargs if positional else {**kwargs, "sample": 7},
        )


def test_arguments_beyond_the_signature_are_kept() -> None:
    arguments = Arguments(make_unet("unconditional"))
    args = tuple(range(9))
    inputs = arguments.bind(args, {"more": 9})
    assert inputs.arguments(inputs.bound) == (args, {"more": 9})

"""Guidance put into a model, and two steps of a sampler into one: exact where it is algebra, and on a tiny network."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fye_pipeline.training.distillation import (
    Noising,
    Predict,
    distillation_loss,
    guided,
    halved,
    stage_target,
    trailing_times,
)

SCHEDULER: Any = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
    set_alpha_to_one=True,
    steps_offset=1,
)
NOISING = Noising.of(SCHEDULER)


def curved(latents: Tensor, times: Tensor, conditions: Any) -> Tensor:
    """A teacher that no single step could follow by chance."""
    return torch.sin(3 * latents) + times.to(latents)[:, None] / 1000


@pytest.mark.parametrize("steps", [4, 8, 30, 32])
def test_times_are_those_of_the_sampler(steps: int) -> None:
    SCHEDULER.set_timesteps(steps)
    assert trailing_times(steps) == SCHEDULER.timesteps.tolist()


def test_a_step_is_that_of_the_sampler() -> None:
    SCHEDULER.set_timesteps(8)
    latents = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    times = [*trailing_times(8), -1]
    for start, end in pairwise(times):
        now, then = torch.tensor([start] * 2), torch.tensor([end] * 2)
        v = curved(latents, now, None)
        made = NOISING.ddim(latents, v, now, then)
        wanted = SCHEDULER.step(v, start, latents, return_dict=False)[0]
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
        latents = made


@pytest.mark.parametrize("step", range(4))
def test_a_students_step_ends_where_two_of_the_teachers_do(step: int) -> None:
    """Also the first, from pure noise, and the last, to none."""
    latents = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    number = torch.tensor([step] * 3)
    v = halved(curved, NOISING, 4)(latents, number, None)
    teacher, student = (torch.tensor([*trailing_times(count), -1]) for count in (8, 4))
    reached = latents
    for each in (2 * step, 2 * step + 1):
        now, then = (teacher[torch.tensor([each + more] * 3)] for more in (0, 1))
        reached = NOISING.ddim(reached, curved(reached, now, None), now, then)
    made = NOISING.ddim(latents, v, student[number], student[number + 1])
    torch.testing.assert_close(made, reached, rtol=0, atol=1e-9)


def test_guidance_is_the_difference_that_conditions_make() -> None:
    def predict(latents: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        return latents + conditions

    made = guided(predict, torch.zeros_like, 3.0)(torch.ones(1, 2), torch.tensor([5]), torch.full((1, 2), 2.0))
    assert made.tolist() == [[7.0, 7.0]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, latents: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        phase = times.float()[:, None] / 1000
        return self.layers(torch.cat([latents, phase, torch.sin(6 * phase), conditions], dim=-1))


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two clouds, one for each condition."""
    kind = torch.randint(2, (64,), generator=generator)
    conditions = nn.functional.one_hot(kind, 2).float()
    return 2 * conditions - 1 + 0.2 * torch.randn(64, 2, generator=generator), conditions


def taught(network: nn.Module, number: int, steps: int) -> nn.Module:
    """The student of a stage, which begins with the weights of the one before."""
    student = copy.deepcopy(network).requires_grad_(True).train()
    target = stage_target(network, NOISING, number, steps, torch.zeros_like, 2.0)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(number)
    for _ in range(300):
        distillation_loss(student, target, NOISING, *draw(generator), steps, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    return student.requires_grad_(False).eval()


def sample(predict: Predict, noise: Tensor, conditions: Tensor, steps: int) -> Tensor:
    """From noise to clean latents in so many deterministic steps."""
    latents = noise
    for start, end in pairwise([*trailing_times(steps), -1]):
        now, then = (torch.full((len(noise),), time) for time in (start, end))
        latents = NOISING.ddim(latents, predict(latents, now, conditions), now, then)
    return latents


def test_four_steps_without_guidance_end_near_thirty_two_with_it() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net()
    optimizer, generator = torch.optim.Adam(network.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(800):
        clean, conditions = draw(generator)
        kept = conditions * (torch.rand(64, 1, generator=generator) > 0.2)
        times = torch.randint(1000, (64,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal, spread = NOISING.at(times, clean)
        predicted = network(signal * clean + spread * noise, times, kept)
        nn.functional.mse_loss(predicted, signal * noise - spread * clean).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.requires_grad_(False)
    student = network
    for number, steps in enumerate((32, 16, 8, 4)):
        student = taught(student, number, steps)
    noise = torch.randn(256, 2, generator=generator)
    conditions = nn.functional.one_hot(torch.arange(256) % 2, 2).float()
    wanted = sample(guided(network, torch.zeros_like, 2.0), noise, conditions, 32)
    few = sample(guided(network, torch.zeros_like, 2.0), noise, conditions, 4)
    made = sample(student, noise, conditions, 4)
    assert (made - wanted).abs().mean() < (few - wanted).abs().mean() / 2

"""Fewer steps: guidance put into the model, then every two steps of a sampler into one.

Guidance distillation is of Meng et al. (2023), progressive halving of Salimans and Ho (2022); both for v-prediction and
deterministic DDIM, whatever the network is and whatever it is given beside latents and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Predict = Callable[[Tensor, Tensor, Any], Tensor]  # latents at times [B], time steps [B], conditions -> v
Target = Callable[[Tensor, Tensor, Any], Tensor]  # latents, number of the student's step [B], conditions -> v


@dataclass(frozen=True)
class Noising:
    """How much of signal and of noise latents have at each of the training's time steps.

    alphas: cumulative products [T], as a scheduler of diffusers has them. Time -1 is without noise.
    """

    alphas: Tensor

    @classmethod
    def of(cls, scheduler: Any) -> Noising:
        """That of a scheduler."""
        return cls(scheduler.alphas_cumprod.double())

    def at(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at times [B], to be multiplied with `like` [B, ...]."""
        known = self.alphas.to(times.device)
        share = torch.where(times < 0, torch.ones_like(known[:1]), known[times.clamp(min=0)])
        shape = (-1, *[1] * (like.ndim - 1))
        return share.sqrt().to(like.dtype).view(shape), (1 - share).sqrt().to(like.dtype).view(shape)

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Clean latents at times."""
        signal, spread = self.at(times, clean)
        return signal * clean + spread * noise

    def ddim(self, latents: Tensor, v: Tensor, times: Tensor, until: Tensor) -> Tensor:
        """One deterministic step from times to others (DDIM in v, Salimans and Ho, Eq. 8)."""
        signal, spread = self.at(times, latents)
        clean, noise = signal * latents - spread * v, spread * latents + signal * v
        later_signal, later_spread = self.at(until, latents)
        return later_signal * clean + later_spread * noise

    def one_step(self, latents: Tensor, reached: Tensor, times: Tensor, until: Tensor) -> Tensor:
        """The v whose single step from latents at `times` ends in those reached at `until`.

        The clean latents that both imply are (z'' - s'' / s z) / (a'' - s'' / s a); see Appendix G of the paper.
        """
        signal, spread = self.at(times, latents)
        later_signal, later_spread = self.at(until, latents)
        ratio = later_spread / spread
        clean = (reached - ratio * latents) / (later_signal - ratio * signal)
        return (signal * latents - clean) / spread


def trailing_times(steps: int, trained: int = 1000) -> list[int]:
    """The times of a sampler with `steps` steps, latest first, as diffusers' trailing spacing has them."""
    return [round(trained - step * trained / steps) - 1 for step in range(steps)]


def guided(predict: Predict, without: Callable[[Any], Any], scale: float) -> Predict:
    """A teacher with guidance, in one call of the student's: v0 + scale (v - v0), v0 from conditions without."""

    def predicted(latents: Tensor, times: Tensor, conditions: Any) -> Tensor:
        plain = predict(latents, times, without(conditions))
        return plain + scale * (predict(latents, times, conditions) - plain)

    return predicted


def halved(predict: Predict, noising: Noising, steps: int) -> Target:
    """What a student with `steps` steps must predict so that each of them ends where two of the teacher's do.

    -> target(latents, number of the step [B], conditions).
    """
    student = torch.tensor([*trailing_times(steps), -1])
    teacher = torch.tensor([*trailing_times(2 * steps), -1])

    def target(latents: Tensor, step: Tensor, conditions: Any) -> Tensor:
        start, between, end = (teacher[2 * step + more].to(latents.device) for more in range(3))
        half = noising.ddim(latents, predict(latents, start, conditions), start, between)
        reached = noising.ddim(half, predict(half, between, conditions), between, end)
        return noising.one_step(
            latents, reached, student[step].to(latents.device), student[step + 1].to(latents.device)
        )

    return target


def at_steps(predict: Predict, steps: int) -> Target:
    """A teacher's own v as the target, at the times of a sampler with so many steps."""
    times = torch.tensor(trailing_times(steps))
    return lambda latents, step, conditions: predict(latents, times[step].to(latents.device), conditions)


def stage_target(
    teacher: Predict, noising: Noising, number: int, steps: int, without: Callable[[Any], Any], scale: float
) -> Target:
    """What a stage teaches: the first (number 0) the guided teacher at its own steps, later ones two steps as one."""
    return at_steps(guided(teacher, without, scale), steps) if number == 0 else halved(teacher, noising, steps)


def distillation_loss(
    student: Predict,
    target: Target,
    noising: Noising,
    clean: Tensor,
    conditions: Any,
    steps: int,
    generator: torch.Generator,
    *,
    noise_scale: float = 1.0,
) -> Tensor:
    """Mean squared error of the student's v at steps drawn for each of the clean latents [B, ...].

    noise_scale: what sampling multiplies its initial noise by, so that the student sees latents as it will meet them.
    """
    times = torch.tensor(trailing_times(steps))
    step = torch.randint(steps, (len(clean),), generator=generator)
    noise = noise_scale * torch.randn(clean.shape, generator=generator).to(clean.device)
    latents = noising.noised(clean, noise, times[step].to(clean.device))
    with torch.no_grad():
        wanted = target(latents, step, conditions)
    return functional.mse_loss(student(latents, times[step].to(clean.device), conditions), wanted)

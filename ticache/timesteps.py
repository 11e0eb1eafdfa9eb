"""Where a call stands: the position of its timestep in the scheduler's list, found without waiting for the device.

A pipeline hands each call `t` from `for t in scheduler.timesteps`, which is a view: its address tells the position,
also where a timestep occurs twice (Heun, PNDM) and also on a GPU, where reading the value would wait. Where the
timestep is a copy, its value is looked up instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Timesteps:
    """One list of timesteps: set once by a scheduler, or found under a timestep that is a view of a longer list.

    order: model calls per step of the scheduler, 2 for Heun and KDPM2.
    set_by_scheduler: no call can follow it further once the scheduler has set another.
    """

    def __init__(
        self,
        source: Tensor,
        order: int = 1,
        logsnr: tuple[float, ...] | None = None,
        *,
        set_by_scheduler: bool = False,
    ):
        self.source = source  # held, so that its address stays its own
        self.values: tuple[float, ...] = tuple(source.tolist())
        self.order = order
        self.set_by_scheduler = set_by_scheduler
        self._logsnr = logsnr

    def __len__(self) -> int:
        return len(self.values)

    def position_of(self, timestep: Tensor) -> int | None:
        """The position of a timestep that is a view of this list, None if it is not."""
        source = self.source
        if timestep.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
            return None
        if timestep.device != source.device or timestep.dtype != source.dtype or not _one_element(timestep):
            return None
        position, rest = divmod(int(timestep.storage_offset() - source.storage_offset()), int(source.stride(0)))
        return position if rest == 0 and 0 <= position < len(self.values) else None

    def values_in(self, dtype: torch.dtype | None) -> tuple[float, ...]:
        """The timesteps as a caller who converted them to `dtype` would pass them."""
        if dtype is None or dtype == self.source.dtype:
            return self.values
        return tuple(torch.tensor(self.values, dtype=torch.float64).to(dtype).tolist())

    def coordinate(self, position: int, axis: str) -> float:
        """Where a position lies on the axis "timestep" or "logsnr", increasing along the run."""
        if axis == "timestep":
            return -self.values[position]
        if self._logsnr is None:
            raise ValueError("axis='logsnr' needs a scheduler with alphas_cumprod or sigmas")
        return self._logsnr[position]


@dataclass(frozen=True)
class StepPosition:
    """Where one call stands. `position` is None where only the value is known; `timesteps` None where no list is."""

    timesteps: Timesteps | None
    position: int | None
    value: float
    dtype: torch.dtype | None = None


class TimestepTracker:
    """Finds the place of each call. Reads the scheduler's list once each time it is set."""

    def __init__(self) -> None:
        self._lists: list[Timesteps] = []  # newest last; the newest is the scheduler's, or one found

    def locate(self, timestep: Any, scheduler: Any) -> StepPosition | str:
        """The place of a call at `timestep` (number or tensor), or why it has none."""
        current = self._of_scheduler(scheduler)
        if not isinstance(timestep, Tensor):
            return StepPosition(current, None, float(timestep))
        if timestep.device.type == "meta":
            return "its timestep has no value"
        for timesteps in reversed(self._lists):
            position = timesteps.position_of(timestep)
            if position is not None:
                return StepPosition(timesteps, position, timesteps.values[position])
        found = _list_under(timestep)
        if found is not None and is_monotone(found.values):
            position = found.position_of(timestep)
            assert position is not None
            self._keep(found)
            return StepPosition(found, position, found.values[position])
        # A copy of the scheduler's own list may go up and down as that does; any other is no run's (random timesteps).
        own = () if current is None else current.values_in(timestep.dtype)
        if found is not None and not is_part(found.values, own):
            return "its timestep is one of a list that goes up and down, as no run does"
        # The last resort: the timestep was copied. On a GPU this waits for the device.
        values = set(timestep.flatten()[:1].tolist() if _one_element(timestep) else timestep.flatten().tolist())
        if len(values) != 1:
            return "its samples are at several timesteps"
        return StepPosition(current, None, float(values.pop()), timestep.dtype)

    def _of_scheduler(self, scheduler: Any) -> Timesteps | None:
        source = getattr(scheduler, "timesteps", None)
        # Before `set_timesteps` a scheduler lists its training timesteps, which no run follows.
        if not isinstance(source, Tensor) or source.ndim != 1 or source.numel() == 0 or source.device.type == "meta":
            return None
        if getattr(scheduler, "num_inference_steps", source) is None:
            return None
        for timesteps in self._lists:
            if timesteps.source is source:
                return timesteps
        order = int(getattr(scheduler, "order", 1))
        timesteps = Timesteps(source, order, log_snr(scheduler), set_by_scheduler=True)
        self._keep(timesteps)
        return timesteps

    def _keep(self, timesteps: Timesteps) -> None:
        self._lists.append(timesteps)
        del self._lists[:-16]


def log_snr(scheduler: Any) -> tuple[float, ...] | None:
    """log(alpha^2 / sigma^2) at each of the scheduler's timesteps, None if it tells neither alphas nor sigmas."""
    timesteps = scheduler.timesteps.cpu().double().numpy()  # no Apple GPU has float64
    sigmas = getattr(scheduler, "sigmas", None)
    continuous = getattr(getattr(scheduler, "config", None), "timestep_type", None) == "continuous"
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(alphas, Tensor) and not continuous:
        alphas = alphas.cpu().double().numpy()
        a = np.interp(timesteps, np.arange(len(alphas)), alphas)
        return tuple(np.log(np.maximum(a, 1e-12) / np.maximum(1 - a, 1e-12)).tolist())
    if isinstance(sigmas, Tensor) and len(sigmas) >= len(timesteps):
        return tuple(-2 * math.log(max(sigma, 1e-12)) for sigma in sigmas[: len(timesteps)].tolist())
    return None


def _one_element(tensor: Tensor) -> bool:
    """Does the tensor show one element of its storage, however often it is repeated?"""
    return all(size == 1 or stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def is_monotone(values: Sequence[float]) -> bool:
    """Does each value lie on the same side of the one before it, as the timesteps of a run do?"""
    pairs = list(itertools.pairwise(values))
    return all(a > b for a, b in pairs) or all(a < b for a, b in pairs)


def is_part(part: tuple[float, ...], whole: tuple[float, ...]) -> bool:
    """Does `part` stand in `whole`, in its order and without a gap?"""
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))


def _list_under(timestep: Tensor) -> Timesteps | None:
    """The 1-D list that a timestep is a view of, where there is one: its whole storage, unless all of it is equal."""
    count = timestep.untyped_storage().nbytes() // timestep.element_size()
    if not 1 < count <= 10_000 or not _one_element(timestep):
        return None
    timesteps = Timesteps(timestep.detach().as_strided((count,), (1,), 0))
    return timesteps if len(set(timesteps.values)) > 1 else None

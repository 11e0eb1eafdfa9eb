"""The calls that a search compares, and how each is made: cached or not, always with the same noise."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ticache.api import apply
from ticache.config import CacheConfig
from ticache.fidelity import as_tensor
from ticache.search import Candidate

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One run: its result [..., C, H, W], T, and how many times fewer operations the UNet took (None: unknown)."""

    result: Tensor
    num_steps: int
    flops_ratio: float | None


def settings_of(candidate: Candidate, num_steps: int, base: CacheConfig) -> CacheConfig:
    """A candidate as settings; N is the mean refresh interval."""
    return base.replaced(
        N=max(1, round(num_steps / len(candidate.steps))),
        steps=candidate.steps,
        order=candidate.order,
        cut=candidate.cut,
        forecaster=candidate.forecaster,
    )


class Calls:
    """The calls, those of the check last or drawn from them, and the region of each."""

    def __init__(self, calls: Sequence[Call], check: Sequence[Call] | None, region: Any, seed: int):
        if not calls or not all(isinstance(call, Mapping) for call in [*calls, *(check or ())]):
            raise ValueError("calls must be a list of mappings, each the arguments of one call by name")
        self.calls: list[Call] = [*calls, *(check or ())]
        order = list(range(len(calls)))
        if check is None:
            random.Random(seed).shuffle(order)
            half = -(-len(calls) // 2)
            self.calibration, self.check = sorted(order[:half]), sorted(order[half:])
        else:
            self.calibration, self.check = order, list(range(len(calls), len(self.calls)))
        if isinstance(region, list | tuple):
            if len(region) != len(self.calls):
                raise ValueError(
                    f"region must be one mask or one for each of {len(self.calls)} calls, got {len(region)}"
                )
            masks = list(region)
        else:
            masks = [region] * len(self.calls)
        self.regions: list[Tensor | None] = [None if mask is None else torch.as_tensor(mask) for mask in masks]


class Maker:
    """Makes one call, cached or not, always with the same noise."""

    def __init__(
        self,
        target: Any,
        run: Callable[..., Any],
        calls: Sequence[Call],
        base: CacheConfig,
        seed: int,
        unet: nn.Module,
        options: dict[str, Any],
    ):
        self._target, self._run, self._calls, self._base = target, run, calls, base
        self._seed, self._options = seed, options
        parameter = next(unet.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self.num_steps = 0

    def __call__(self, index: int, candidate: Candidate | None) -> Outcome:
        call = self._calls[index]
        # With every step full the hooks only count, and the result is the uncached one to the last bit.
        config = CacheConfig(N=1, schedule="uniform")
        if candidate is not None:
            config = settings_of(candidate, max(self.num_steps, len(candidate.steps)), self._base)
        with (
            apply(self._target, config, **self._options) as session,
            same_noise(call, self._seed + index, self._device),
        ):
            result = as_tensor(self._run(**call))
            report = session.report().to_dict()
        taken = [len(stream["full"]) + len(stream["predicted"]) for stream in report["streams"]]
        if not taken:
            raise ValueError("run made no call of the UNet that could be told to belong to a denoising loop")
        self.num_steps = max(taken)
        return Outcome(result, self.num_steps, report["flops_ratio"])


@contextmanager
def same_noise(call: Call, seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of a run: from the call's generators, wound back afterwards, else from `seed`.

    The global generators are as before when it ends.
    """
    generators = [each for value in call.values() for each in _generators(value)]
    states = [generator.get_state() for generator in generators]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _generators(value: Any) -> list[torch.Generator]:
    if isinstance(value, torch.Generator):
        return [value]
    return [each for each in value if isinstance(each, torch.Generator)] if isinstance(value, list | tuple) else []


def digest_of(value: Any) -> str:
    """A name for arguments of a call: by content for numbers, text, tensors, arrays and pictures, else by kind."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:24]


def _feed(digest: Any, value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _feed(digest, value[name])
    elif isinstance(value, list | tuple):
        for each in value:
            _feed(digest, each)
    elif isinstance(value, torch.Generator):
        _feed(digest, value.get_state())
    elif isinstance(value, Tensor) or hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
        tensor = value.detach().cpu().double() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
        digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        digest.update(repr(value).encode())

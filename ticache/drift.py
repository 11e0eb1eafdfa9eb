"""How far predictions are from the truth: some predicted steps of the last run, computed again in full.

The inputs of those steps, and of the full steps that they were predicted from, are held for it with `keep=True` only,
as copies: a loop may change them in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ticache.cache import StreamCache
from ticache.call import Key
from ticache.config import CacheConfig
from ticache.host import RESIDUALS, tensors_in

NOT_RECORDED = "the calls' inputs were not recorded; apply with keep=True and run again"
STEPS_PER_STREAM = 3


@dataclass
class _Held:
    """The inputs of one call: full, or predicted from the full ones before it."""

    inputs: dict[str, Any]
    full: bool
    coordinate: float
    config: CacheConfig
    boundary: int
    span: tuple[float, float]


@dataclass
class Drift:
    """The inputs of some steps of the last run, by stream."""

    config: CacheConfig
    refusal: str | None = None
    nbytes: int = 0  # of inputs held
    _steps: dict[int, dict[int, _Held]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin_run()

    def begin_run(self) -> None:
        """A new run: let go of the last one's inputs."""
        self.refusal = None if self.config.keep else NOT_RECORDED
        self._steps, self.nbytes = {}, 0

    def note(self, number: int, step: int, cache: StreamCache, full: bool, bound: dict[str, Any], at: float) -> None:
        """Hold copies of a step's inputs, if it is one of those to look at again."""
        if self.refusal is not None or step not in self._wanted(cache):
            return
        if any(bound.get(name) is not None for name in RESIDUALS):
            self.refusal = "not measured with a ControlNet or an adapter: its features are not kept"
            self._steps, self.nbytes = {}, 0
            return
        inputs = _copied(bound)
        self.nbytes += sum(tensor.nbytes for tensor in tensors_in(inputs))
        self._steps.setdefault(number, {})[step] = _Held(inputs, full, at, cache.config, cache.boundary, cache.span)

    def measure(
        self,
        features: Callable[[dict[str, Any]], dict[Key, Tensor]],
        predict: Callable[[StreamCache, int, dict[str, Any], float], Callable[[Key], Tensor | None]],
        weights: Callable[[dict[str, Any], Key, Tensor], Tensor | None],
        names: Callable[[Key], str],
    ) -> list[dict[str, Any]]:
        """The relative error of every site at every step held: ||prediction - truth|| / ||truth||.

        features: runs a call in full and gives its sites' features. predict: the predictor of a step from a cache.
        weights: the region's for a feature, None without a region; inside is where it is above one half.
        """
        entries = []
        for number, steps in self._steps.items():
            truth = {step: features(held.inputs) for step, held in sorted(steps.items())}
            for step, held in sorted(steps.items()):
                if held.full:
                    continue
                cache = StreamCache(held.config, None, steps=(0,))
                cache.boundary, cache.span = held.boundary, held.span
                for earlier, other in sorted(steps.items()):
                    if earlier < step and other.full:
                        cache.begin_full(other.coordinate)
                        for key, feature in truth[earlier].items():
                            cache.take(key, feature)
                predicted = predict(cache, step, held.inputs, held.coordinate)
                for key, feature in truth[step].items():
                    prediction = predicted(key)
                    assert prediction is not None
                    errors = _errors(prediction, feature, weights(held.inputs, key, feature))
                    entries.append({"stream": number, "step": step, "site": names(key), **errors})
        return entries

    def _wanted(self, cache: StreamCache) -> frozenset[int]:
        """Some predicted steps, and the full steps each is predicted from."""
        if cache.reference_steps is None:
            cache.reference_steps = self._choose(cache)
        return cache.reference_steps

    def _choose(self, cache: StreamCache) -> frozenset[int]:
        full = cache.full_steps.listed()
        predicted = [step for step in range(cache.full_steps.num_steps or 0) if step not in full]
        if not predicted:
            return frozenset()
        count = min(STEPS_PER_STREAM, len(predicted))
        chosen = {predicted[(2 * i + 1) * len(predicted) // (2 * count)] for i in range(count)}
        depth = len(full) if cache.config.forecaster == "chebyshev" else cache.config.order + 1
        behind = {step for c in chosen for step in [f for f in full if f < c][-depth:]}
        return frozenset(chosen | behind)


def _copied(value: Any) -> Any:
    """The same arguments, with tensors of their own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value


def _errors(prediction: Tensor, truth: Tensor, weights: Tensor | None) -> dict[str, float | None]:
    prediction, truth = prediction.cpu().double(), truth.cpu().double()  # no Apple GPU has float64
    difference, truth = (prediction - truth).square(), truth.square()
    result: dict[str, float | None] = {"error": _ratio(difference, truth), "inside": None, "outside": None}
    if weights is not None:
        inside = (weights > 0.5).cpu().expand_as(truth)
        result["inside"] = _ratio(difference[inside], truth[inside])
        result["outside"] = _ratio(difference[~inside], truth[~inside])
    return result


def _ratio(difference: Tensor, truth: Tensor) -> float | None:
    if truth.numel() == 0:
        return None
    return float((difference.sum() / truth.sum().clamp_min(1e-300)).sqrt())

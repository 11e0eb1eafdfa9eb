"""How far predictions are from the truth: some predicted steps of the last run, computed again in full.

Only where the cache was made with `keep=True` are the inputs of those steps, and of the full steps that they were
predicted from, recorded: copies, since a loop may change its tensors in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ticache.feature_cache import FeatureCache, Weights
from ticache.forward_context import Key
from ticache.inputs import CallInputs, tensors_in
from ticache.streams import Stream

STEPS_PER_STREAM = 3
NOT_RECORDED = "the calls' inputs were not recorded; apply with keep=True and run again"


@dataclass
class _Recorded:
    """The inputs of one call: full, or predicted from the full ones before it.

    cache: of its stream. coefficients: those of the prediction where they were known before it.
    """

    inputs: CallInputs
    full: bool
    coordinate: float
    cache: FeatureCache
    coefficients: list[float] | None


class PredictionErrors:
    """The inputs of some steps of the last run, by stream. refusal: why nothing can be measured."""

    def __init__(self, keep: bool):
        self._keep = keep
        self.begin_run()

    def begin_run(self, refusal: str | None = None) -> None:
        """A new run: let go of the last one's inputs."""
        self.refusal = refusal if self._keep else NOT_RECORDED
        self.nbytes = 0
        self._steps: dict[int, dict[int, _Recorded]] = {}

    def note(self, stream: Stream, inputs: CallInputs, *, full: bool, axis: str) -> None:
        """Record the inputs of a step, if it is one of those to look at again."""
        cache: FeatureCache = stream.cache
        if cache.reference_steps is None:
            cache.reference_steps = self._choose(cache)
        if self.refusal is not None or stream.step not in cache.reference_steps:
            return
        if inputs.has_residuals:
            self.begin_run("not measured with a ControlNet or an adapter: its features are not kept")
            return
        copied = replace(inputs, bound=_copied(inputs.bound))
        self.nbytes += sum(tensor.nbytes for tensor in tensors_in(copied.bound))
        coordinate = stream.coordinate(axis, stream.step)
        assert coordinate is not None
        used = cache.coefficients.get(stream.step)
        self._steps.setdefault(stream.number, {})[stream.step] = _Recorded(copied, full, coordinate, cache, used)

    def measure(
        self,
        features: Callable[[CallInputs], dict[Key, Tensor]],
        region: Callable[[CallInputs, int], Weights | None],
        order: Callable[[int], int],
        temporal: frozenset[int],
        names: Callable[[Key], str],
    ) -> list[dict[str, Any]]:
        """The relative error of every feature at every step recorded: ||prediction - truth|| / ||truth||.

        features: runs a call in full and gives its features. order: what the sampler allows of one. region: the weights
        in force at a step, None without a region; inside is where they are above one half.
        """
        entries = []
        for number, steps in self._steps.items():
            truth = {step: features(recorded.inputs) for step, recorded in sorted(steps.items())}
            for step, recorded in sorted(steps.items()):
                if recorded.full:
                    continue
                cache = FeatureCache(recorded.cache.config, None, temporal)
                cache.span = recorded.cache.span
                for earlier, other in sorted(steps.items()):
                    if earlier < step and other.full:
                        cache.nodes.insert(0, other.coordinate)
                        for key, feature in truth[earlier].items():
                            cache.store(key, feature)
                coefficients = recorded.coefficients
                if coefficients is None:
                    coefficients = cache.coefficients_at(recorded.coordinate, order(cache.config.order))
                weights = region(recorded.inputs, step)
                for key, feature in truth[step].items():
                    history = cache.histories[key]
                    prediction = history.predict(coefficients, weights if step < recorded.cache.boundary else None)
                    inside = None if weights is None else weights(feature, history.temporal)
                    entries.append(
                        {"stream": number, "step": step, "site": names(key), **_errors(prediction, feature, inside)}
                    )
        return entries

    def _choose(self, cache: FeatureCache) -> frozenset[int]:
        """Some predicted steps, and the full steps each is predicted from."""
        full = cache.full_steps.listed()
        predicted = [step for step in range(cache.num_steps or 0) if step not in full]
        if not predicted:
            return frozenset()
        count = min(STEPS_PER_STREAM, len(predicted))
        chosen = {predicted[(2 * i + 1) * len(predicted) // (2 * count)] for i in range(count)}
        depth = len(full) if cache.config.forecaster == "chebyshev" else cache.config.order + 1
        behind = {step for c in chosen for step in [f for f in full if f < c][-depth:]}
        return frozenset(chosen | behind)


def _copied(value: Any) -> Any:
    """Arguments with a copy of every tensor in them."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value)({name: _copied(item) for name, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value


def _errors(prediction: Tensor, truth: Tensor, weights: Tensor | None) -> dict[str, float | None]:
    prediction, truth = prediction.cpu().double(), truth.cpu().double()  # no Apple GPU has float64
    difference, truth = (prediction - truth).square(), truth.square()
    result: dict[str, float | None] = {"error": _ratio(difference, truth), "inside": None, "outside": None}
    if weights is not None:
        inside = torch.broadcast_to((weights > 0.5).cpu(), truth.shape)
        result["inside"] = _ratio(difference[inside], truth[inside])
        result["outside"] = _ratio(difference[~inside], truth[~inside])
    return result


def _ratio(difference: Tensor, truth: Tensor) -> float | None:
    if truth.numel() == 0:
        return None
    return float((difference.sum() / truth.sum().clamp_min(1e-300)).sqrt())

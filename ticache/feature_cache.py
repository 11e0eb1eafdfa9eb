"""What one stream keeps of its last full steps, feature by feature, and the predictions made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ticache import forecast, ops
from ticache.config import CacheConfig
from ticache.schedule import FullSteps, boundary_step

Key = tuple[str | int, int]
Weights = Callable[[Tensor, bool], Tensor]  # (a feature, is its first axis all places of a sample?) -> the region's


@dataclass(eq=False)
class FeatureHistory:
    """The differences (or, for `chebyshev`, the snapshots) of one feature over one run.

    temporal: the feature is [B h w, F, C], as in temporal attention.
    """

    config: CacheConfig
    temporal: bool
    tensors: list[Tensor] = field(default_factory=list)
    _like: Tensor = field(default_factory=lambda: torch.empty(()))  # the feature's shape, dtype and device; no memory
    _predict: Callable[..., Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def update(self, feature: Tensor) -> None:
        """Take in the feature of a full step, [*shape] as at every earlier full step. Copies; never keeps `feature`."""
        config, feature = self.config, feature.detach()
        self._like = like = feature.new_empty(()).expand(feature.shape)
        if config.offload is not None:
            feature = feature.to(config.offload)
        if config.forecaster == "chebyshev":
            if len(self.tensors) == forecast.CHEBYSHEV_SNAPSHOTS:
                self.tensors.pop()
            self.tensors.insert(0, self._empty_like(feature).copy_(feature))
        else:
            if len(self.tensors) <= (0 if config.forecaster == "reuse" else config.order):
                # The highest difference is written and never read, so it may begin uninitialised.
                self.tensors.append(self._empty_like(feature))
            ops.update_differences(feature, self.tensors, backend=config.backend)
        self._predict = ops.predictor(config.backend, like.device, config.dtype or like.dtype, like.dtype)

    def predict(self, coefficients: Sequence[float], weights: Weights | None = None) -> Tensor:
        """D_0 + mask * (sum_i c_i D_i - D_0) in the feature's dtype, on its device; always a new tensor."""
        assert self._predict is not None
        used = self.tensors[: len(coefficients)]
        if self.config.offload is not None:  # fetched for each prediction
            used = [tensor.to(self._like.device, non_blocking=True) for tensor in used]
        mask = None if weights is None else weights(self._like, self.temporal)
        return self._predict(used, coefficients, mask, dtype=self._like.dtype)

    def _empty_like(self, feature: Tensor) -> Tensor:
        empty = torch.empty_like(feature, dtype=self.config.dtype or feature.dtype, requires_grad=False)
        return empty.pin_memory() if self.config.offload is not None and self._like.device.type == "cuda" else empty


class FeatureCache:
    """The cache of one stream of `num_steps` steps (None: unknown).

    weights: of predicted steps on the features of the last full ones, the newest first, in place of the forecaster's
    while the full steps are those of the schedule. temporal: which cut modules put out [B h w, F, C].
    """

    def __init__(
        self,
        config: CacheConfig,
        num_steps: int | None,
        temporal: frozenset[int] = frozenset(),
        weights: Mapping[int, tuple[float, ...]] | None = None,
    ):
        self.refusal: str | None = None
        if num_steps is None and config.needs_num_steps:
            self.refusal = "the number of steps is unknown"
            config = config.replaced(N=1, schedule="uniform", boundary=0)
        self.full_steps = FullSteps(
            num_steps, N=config.N, schedule=config.schedule, steps=config.steps, warmup=config.warmup
        )
        self.num_steps = num_steps
        self.listed = frozenset(self.full_steps.listed()) if not callable(config.schedule) else frozenset()
        self.boundary = boundary_step(config.boundary, num_steps)
        self.histories: dict[Key, FeatureHistory] = {}
        self.kept: dict[Key, FeatureHistory] = {}  # after the end, where that was asked for
        self.nodes: list[float] = []  # coordinates of the full steps, newest first
        self.span = (0.0, 1.0)
        self.point: int | None = None
        self.control_scale: object = None
        self.adapters: tuple[Any, ...] | None = None
        self.latents_known = False
        self.reference_steps: frozenset[int] | None = None
        self.recording: Any = None  # with schedule="auto": what records a run in full, and what it is of
        self.coefficients: dict[int, list[float]] = {}  # of the steps to come, until the next full one
        self._temporal = temporal
        self._weights = weights or {}
        self._stored: list[int] = []  # the full steps of `nodes`
        self.config = config

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(history.nbytes for history in (*self.histories.values(), *self.kept.values()))

    def release(self) -> None:
        """Let go of everything kept."""
        self.histories, self.nodes, self.coefficients, self._stored = {}, [], {}, []

    def end(self) -> None:
        """The stream has ended: free what it kept, unless it was asked for."""
        if self.config.keep:
            self.kept = self.histories
        self.release()

    def begin_full(self, step: int, order: int, coordinates: Sequence[float]) -> None:
        """A full step is about to be stored; coordinates: where it, and as many later ones as are known, lie."""
        self.nodes.insert(0, coordinates[0])
        del self.nodes[forecast.CHEBYSHEV_SNAPSHOTS :]
        self._stored.insert(0, step)
        self.coefficients = {}
        if callable(self.config.schedule):
            return  # nobody knows how far it is to the next full step
        for later, coordinate in enumerate(coordinates[1:], step + 1):
            if later in self.full_steps:
                break
            weights = self._weights.get(later)
            if weights is not None and self._follows_schedule(len(weights)):
                self.coefficients[later] = [1.0, *forecast.to_difference_coefficients(weights)[1:]]
            else:
                self.coefficients[later] = self.coefficients_at(coordinate, order)

    def _follows_schedule(self, count: int) -> bool:
        """Are the last full steps, so many, the last of those that the weights are for?"""
        listed = [step for step in self.config.steps or () if step <= self._stored[0]]
        return self._stored[:count] == listed[: -count - 1 : -1]

    def store(self, key: Key, feature: Tensor) -> None:
        """Take in one feature of a full step."""
        if key not in self.histories:
            self.histories[key] = FeatureHistory(self.config, key[0] in self._temporal)
        self.histories[key].update(feature)

    def predict(self, key: Key, coefficients: Sequence[float], weights: Weights | None) -> Tensor | None:
        """The prediction of a feature, None for one that is not kept. weights: the region's."""
        history = self.histories.get(key)
        return None if history is None else history.predict(coefficients, weights)

    def coefficients_at(self, coordinate: float, order: int) -> list[float]:
        """What to multiply each kept tensor by, for a prediction at `coordinate`."""
        if self.config.forecaster == "chebyshev":
            return forecast.chebyshev_weights(self.nodes, coordinate, self.span)
        return forecast.coefficients(self.config.forecaster, self.nodes, coordinate, order)

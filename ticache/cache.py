"""What one stream keeps: the histories of its sites, where its full steps lay, and what follows for the next step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ticache import forecast
from ticache.call import Key
from ticache.config import CacheConfig
from ticache.history import History
from ticache.schedule import FullSteps, boundary_step
from ticache.streams import Stream


def needs_num_steps(config: CacheConfig) -> bool:
    """Do these settings make sense only where the number of steps is known?"""
    named = config.schedule in ("spread", "late", "auto")
    return named or isinstance(config.boundary, float) or config.forecaster == "chebyshev"


class StreamCache:
    """The cache of one stream of `num_steps` steps (None: unknown). steps: full steps, in place of the schedule's."""

    def __init__(self, config: CacheConfig, num_steps: int | None, steps: tuple[int, ...] | None = None):
        self.refusal: str | None = None
        if steps is not None:
            config = config.replaced(steps=steps, boundary=0)
        elif num_steps is None and needs_num_steps(config):
            self.refusal = "the number of steps is unknown"
            config = config.replaced(N=1, schedule="uniform", boundary=0)
        self.full_steps = FullSteps(
            num_steps, N=config.N, schedule=config.schedule, steps=config.steps, warmup=config.warmup
        )
        self.boundary = boundary_step(config.boundary, num_steps)
        self.histories: dict[Key, History] = {}
        self.nodes: list[float] = []  # coordinates of the full steps, newest first
        self.span = (0.0, 1.0)
        self.site: int | None = None
        self.control_scale: Any = None
        self.recording: Any = None  # with schedule="auto", of a run that is made in full: its recorder and its kind
        self.adapters: Any = None
        self.latents_known = False
        self.reference_steps: frozenset[int] | None = None
        self.config = config

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(history.nbytes for history in self.histories.values())

    def release(self) -> None:
        """Let go of everything kept."""
        self.histories = {}
        self.nodes = []

    def begin_full(self, coordinate: float) -> None:
        """A full step at `coordinate` is about to be taken in."""
        self.nodes.insert(0, coordinate)
        del self.nodes[forecast.CHEBYSHEV_SNAPSHOTS :]

    def take(self, key: Key, feature: Tensor) -> None:
        """Take in one feature of a full step."""
        history = self.histories.get(key)
        if history is None:
            config = self.config
            history = self.histories[key] = History(
                forecaster=config.forecaster,
                order=config.order,
                dtype=config.dtype,
                offload=config.offload,
                backend=config.backend,
            )
        history.update(feature)

    def coefficients(self, coordinate: float, order: int) -> list[float]:
        """What to multiply each kept tensor by, for a prediction at `coordinate`."""
        if self.config.forecaster == "chebyshev":
            return forecast.chebyshev_weights(self.nodes, coordinate, self.span)
        return forecast.coefficients(self.config.forecaster, self.nodes, coordinate, order)

    def predictor(
        self, coefficients: list[float], weights: Callable[[Key, Tensor], Tensor] | None
    ) -> Callable[[Key], Tensor | None]:
        """The function that predicts a feature, None for one that is not kept; `weights`: the region's."""

        def predict(key: Key) -> Tensor | None:
            history = self.histories.get(key)
            if history is None:
                return None
            return history.predict(coefficients, weights(key, history.example) if weights is not None else None)

        return predict


def coordinate(stream: Stream, axis: str) -> float:
    """Where a stream's present step lies on an axis, increasing along the run."""
    if axis == "step":
        return float(stream.step)
    if stream.group.timeline is None:
        return -stream.group.value
    return stream.group.timeline.coordinate(stream.group.position, axis)


def span(stream: Stream, axis: str) -> tuple[float, float]:
    """A stream's whole range on an axis. The number of its steps must be known."""
    assert stream.num_steps is not None
    last, timeline = stream.num_steps - 1, stream.group.timeline
    if axis == "step" or timeline is None:
        return 0.0, float(last)
    end = min(stream.first + last * stream.group.stride, len(timeline) - 1)
    return timeline.coordinate(stream.first, axis), timeline.coordinate(end, axis)


def coordinates(stream: Stream, num_steps: int, axis: str) -> tuple[float, ...]:
    """Where a stream's steps lie on an axis; 0, 1, 2, ... where some would coincide or nothing tells."""
    timeline = stream.group.timeline
    if axis != "step" and timeline is not None:
        found = tuple(timeline.coordinate(position, axis) for position in _positions(stream, num_steps))
        if len(found) == num_steps and all(b > a for a, b in itertools.pairwise(found)):
            return found
    return tuple(float(step) for step in range(num_steps))


def timesteps(stream: Stream, num_steps: int) -> tuple[float, ...] | None:
    """The timesteps of a stream's steps, None where no list tells."""
    timeline = stream.group.timeline
    found = () if timeline is None else tuple(timeline.values[at] for at in _positions(stream, num_steps))
    return found if len(found) == num_steps else None


def _positions(stream: Stream, num_steps: int) -> range:
    """The places of a stream's steps in its timeline, as far as that goes."""
    assert stream.group.timeline is not None
    end = min(stream.first + num_steps * stream.group.stride, len(stream.group.timeline))
    return range(stream.first, end, stream.group.stride)

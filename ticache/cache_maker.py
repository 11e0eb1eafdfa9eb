"""What a stream that begins is predicted with: the settings, tuned full steps mapped to its length, or a recording.

With `schedule="auto"` the first run of a kind is made in full and recorded, later ones are predicted as it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ticache.best_steps import Choice
from ticache.calibration import FEATURES, MAX_STEPS, Calibration, Kind, Recorder, Recording
from ticache.config import CacheConfig
from ticache.cut_plan import CutPlan
from ticache.feature_cache import FeatureCache
from ticache.inputs import CallInputs, PipelineInfo
from ticache.provenance import TuningCheck
from ticache.streams import Stream

FittedWeights = Mapping[int, tuple[float, ...]]  # of each predicted step


@dataclass(frozen=True)
class Run:
    """What is known of a stream when it begins.

    guidance: the scale with which the two halves of a call's rows are combined, None where it is not known or nothing
    is combined. coordinates, timesteps: of the steps; timesteps None without a scheduler. max_order: what the sampler
    allows.
    """

    kind: Kind
    guidance: float | None
    coordinates: tuple[float, ...]
    timesteps: tuple[float, ...] | None
    max_order: int


class CacheMaker:
    """Makes the caches of one UNet's streams; with `schedule="auto"` owns the recordings, and what they say."""

    def __init__(self, plan: CutPlan, config: CacheConfig, pipeline: PipelineInfo, check: TuningCheck):
        self.calibration = Calibration() if config.calibration is None else config.calibration.copy()
        self.notes: list[str] = []
        self.recorded: Run | None = None  # the last one
        self._plan = plan
        self._config = config
        self._pipeline = pipeline
        self._check = check
        self._choices: dict[Run, Choice] = {}

    def make(
        self, stream: Stream, inputs: CallInputs, adds_noise: Callable[[], bool], *, first: bool, whole: bool
    ) -> FeatureCache:
        """The cache of a stream whose first call has these inputs; with `schedule="auto"` it may be one that records.

        adds_noise: does the sampler? first: does a run begin with it? whole: does it begin where its run does?
        ValueError where tuned settings meet another scheduler or number of steps and that was not wanted.
        """
        config, recording = self._config, None
        mapped = self._check.steps(config.steps or (), stream.num_steps, self._pipeline.scheduler)
        if mapped is not None:
            config = config.replaced(steps=mapped)
        weights: FittedWeights = {}
        if config.schedule == "auto" and stream.num_steps is not None:
            if first:
                self.notes = []
            run = self._run(stream, stream.num_steps, inputs, adds_noise)
            config, weights, recorder = self._auto(run, inputs.batch, whole=whole)
            recording = None if recorder is None else (recorder, run)
        cache = FeatureCache(config, stream.num_steps, weights=weights, temporal=self._plan.temporal)
        cache.recording = recording
        cache.refusal = cache.refusal or self._pipeline.few_step_model(stream.num_steps)
        if config.forecaster == "chebyshev" and cache.refusal is None:
            cache.span = stream.span(self._config.axis)
        return cache

    def end(self, recorder: Recorder, run: Run) -> None:
        """A recorded stream has ended: keep its recording, and choose at once, so that the next run need not."""
        recording = recorder.finish(run.timesteps)
        if recording is None:
            self._tell("the run's features could not be recorded: they are not finite, or not those of every step")
            return
        self.calibration.add(recording)
        self.recorded = run
        self._choices = {}
        self._choice(self.calibration.recordings[run.kind], run)

    def best(self, count: int, orders: Sequence[int], forecasters: Sequence[str]) -> Choice | None:
        """The best with `count` full steps for the run recorded last, None without one."""
        run = self.recorded
        return None if run is None else _choose(self.calibration.recordings[run.kind], run, count, orders, forecasters)

    def _run(self, stream: Stream, num_steps: int, inputs: CallInputs, adds_noise: Callable[[], bool]) -> Run:
        guidance = self._pipeline.guidance() if inputs.batch % 2 == 0 else None
        cap, config = self._config.noise_order, self._config
        cut = {"cut": config.cut, "depth": config.depth, "resnets": config.resnets}
        return Run(
            kind=Kind.of(self._pipeline.scheduler, num_steps, guided=guidance is not None, **cut),
            guidance=guidance,
            coordinates=stream.coordinates(config.axis),
            timesteps=stream.listed_timesteps(),
            max_order=cap if cap is not None and adds_noise() else 3,
        )

    def _auto(self, run: Run, rows: int, *, whole: bool) -> tuple[CacheConfig, FittedWeights, Recorder | None]:
        """The settings of a stream of `rows` samples a call, the weights of its steps, and what records it if anything.

        whole: does it begin where its run does?
        """
        config, kind = self._config, run.kind
        recording = self.calibration.find(kind)
        if recording is None and (kind.num_steps > MAX_STEPS or not whole):
            why = f"of more than {MAX_STEPS} steps" if whole else "that begin in the middle"
            self._tell(f"runs {why} are not recorded: the schedule is 'spread'")
            return config.replaced(schedule="spread"), {}, None
        if recording is None:
            self._tell(f"this run of {kind.num_steps} steps is recorded in full; the next is cached")
            features = sum(cut.role != "skipped" for cut in self._plan.modules)  # they share the numbers that are kept
            every = config.replaced(schedule="uniform", N=1, boundary=0)
            return every, {}, Recorder(kind, rows, max(FEATURES // features, 64))
        choice = self._choice(recording, run)
        told = f"full steps, {choice.forecaster} weights and order {choice.order} are from a recording"
        if recording.kind.num_steps != kind.num_steps:
            told += f" of {recording.kind.num_steps} steps, mapped to {kind.num_steps}"
        self._tell(told)
        # Fitted weights are for these full steps; where others come between, Newton's stand in.
        name = "newton" if choice.weights else choice.forecaster
        return config.replaced(steps=choice.steps, forecaster=name, order=choice.order), choice.weights, None

    def _choice(self, recording: Recording, run: Run) -> Choice:
        if run not in self._choices:
            count = math.ceil(run.kind.num_steps / self._config.N)
            orders = tuple(order for order in (1, 2, 3) if order <= run.max_order) or (0,)
            self._choices[run] = _choose(recording, run, count, orders)
        return self._choices[run]

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _choose(
    recording: Recording, run: Run, count: int, orders: Sequence[int], forecasters: Sequence[str] | None = None
) -> Choice:
    told = {"guidance": run.guidance, "coordinates": run.coordinates, "timesteps": run.timesteps}
    return recording.choose(count, **told, orders=orders, forecasters=forecasters)

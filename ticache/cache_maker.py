"""What a stream that begins is predicted with: the settings, tuned full steps mapped to its length, or a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ticache.auto_schedule import AutoSchedule, Run
from ticache.calibration import Kind, features_text, scheduler_text
from ticache.config import CacheConfig
from ticache.cut_plan import CutPlan
from ticache.feature_cache import FeatureCache
from ticache.inputs import CallInputs, PipelineInfo
from ticache.provenance import TuningCheck
from ticache.streams import Stream


class CacheMaker:
    """Makes the caches of one UNet's streams; owns the recordings of `schedule="auto"`."""

    def __init__(self, plan: CutPlan, config: CacheConfig, pipeline: PipelineInfo, check: TuningCheck):
        self.auto = AutoSchedule(config, sum(cut.role != "skipped" for cut in plan.modules))
        self._plan = plan
        self._config = config
        self._pipeline = pipeline
        self._check = check

    def make(
        self, stream: Stream, inputs: CallInputs, adds_noise: Callable[[], bool], *, first: bool, whole: bool
    ) -> FeatureCache:
        """The cache of a stream whose first call has these inputs; with `schedule="auto"` it may be one that records.

        adds_noise: does the sampler? first: does a run begin with it? whole: does it begin where its run does?
        ValueError where tuned settings meet another scheduler or number of steps and that was not wanted.
        """
        config, recording = self._config_for(stream), None
        weights: Mapping[int, tuple[float, ...]] = {}
        if self._config.schedule == "auto" and stream.num_steps is not None:
            run = self._auto_run(stream, stream.num_steps, inputs, adds_noise)
            config, weights, recorder = self.auto.begin(run, first=first, whole=whole)
            recording = None if recorder is None else (recorder, run)
        cache = FeatureCache(config, stream.num_steps, weights=weights, temporal=self._plan.temporal)
        cache.recording = recording
        cache.refusal = cache.refusal or self._pipeline.few_step_model(stream.num_steps)
        if config.forecaster == "chebyshev" and cache.refusal is None:
            cache.span = stream.span(self._config.axis)
        return cache

    def _config_for(self, stream: Stream) -> CacheConfig:
        """The settings, tuned full steps mapped onto the stream's length; ValueError where that was not wanted."""
        self._check.check_scheduler(self._pipeline.scheduler)
        steps = self._check.steps(self._config.steps or (), stream.num_steps)
        return self._config if steps is None else self._config.replaced(steps=steps)

    def _auto_run(self, stream: Stream, num_steps: int, inputs: CallInputs, adds_noise: Callable[[], bool]) -> Run:
        guidance = self._pipeline.guidance() if inputs.batch % 2 == 0 else None
        cap, config = self._config.noise_order, self._config
        kind = Kind(
            scheduler=scheduler_text(self._pipeline.scheduler),
            num_steps=num_steps,
            guided=guidance is not None,
            features=features_text(config.cut, config.depth, config.resnets),
        )
        return Run(
            kind=kind,
            rows=inputs.batch,
            guidance=guidance,
            coordinates=stream.coordinates(config.axis),
            timesteps=stream.listed_timesteps(),
            max_order=cap if cap is not None and adds_noise() else 3,
        )

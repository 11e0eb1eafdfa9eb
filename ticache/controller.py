"""Decides at each call of a cached UNet what runs, and takes in what was computed: the one owner of a cache's state."""

from __future__ import annotations

import logging
import threading
import warnings
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ticache import controlnet, probe
from ticache.cache_maker import CacheMaker
from ticache.calibration import Calibration
from ticache.config import CacheConfig
from ticache.cut_plan import CutPlan
from ticache.feature_cache import FeatureCache
from ticache.flops import ShapeWatch
from ticache.forward_context import POINT, CurrentForward, ForwardContext, Key
from ticache.hooks import Attachment, ControlNetHook
from ticache.inputs import Adapters, Arguments, CallInputs, KnownLatents, PipelineInfo, latents_of, training_call
from ticache.prediction_error import PredictionErrors
from ticache.provenance import TuningCheck, model_identity
from ticache.records import CallRecord, Records
from ticache.region import RegionMask
from ticache.streams import Stream, Streams
from ticache.timesteps import Timesteps, TimestepTracker

logger = logging.getLogger("ticache")


class Controller:
    """Streams, caches and records of one cached UNet. `before` and `after` are its forward hooks."""

    def __init__(self, unet: nn.Module, plan: CutPlan, config: CacheConfig, pipeline: PipelineInfo, check: TuningCheck):
        self.unet = unet
        self.plan = plan
        self.config = config
        self.pipeline = pipeline
        self.check = check
        self.arguments = Arguments(unet)
        self.region = RegionMask()
        self.disabled: str | None = None
        self.session: Any = None
        self.maker = CacheMaker(plan, config, pipeline, check)
        self.current = CurrentForward()
        self.latents = KnownLatents()
        self._start()
        self.attachment = Attachment(self)

    def _start(self) -> None:
        """Everything that calls leave behind, and a copy does not take over."""
        self.records = Records()
        self.streams = Streams(self.pipeline.run_length)
        self.kept: dict[int, FeatureCache] = {}
        self.timesteps = TimestepTracker()
        self.stream_name: ContextVar[Any] = ContextVar("stream_name", default=None)
        self.paused = 0
        self.control = controlnet.Control()
        self.adapters = Adapters(self.unet)
        self.errors = PredictionErrors(self.config.keep)
        self._shapes: dict[Any, dict[int, Any]] = {}
        self._lock = threading.RLock()
        self._watch: ShapeWatch | None = None
        self._is_probed = self._told_training = False

    def __getstate__(self) -> dict[str, Any]:
        """What a deep copy or a pickle takes along: the settings, never a run."""
        kept = ("unet", "plan", "config", "pipeline", "check", "maker", "arguments", "attachment", "session", "region")
        return {name: getattr(self, name) for name in (*kept, "disabled", "current", "latents")}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self._start()

    @property
    def held_bytes(self) -> int:
        """Bytes of cached tensors, and of recorded inputs, held now."""
        streams = [stream for group in self.streams.groups for stream in group.streams.values()]
        caches = {id(cache): cache for cache in (*self.kept.values(), *(stream.cache for stream in streams)) if cache}
        return sum(cache.nbytes for cache in caches.values()) + self.errors.nbytes

    @property
    def calibration(self) -> Calibration | None:
        """What the runs made in full tell about later ones; None before the first has ended."""
        with self._lock:
            found = self.maker.calibration
            if not found.recordings:
                return None
            if found.model is None:
                found.model = model_identity(self.unet)
            return found.copy()

    def reset(self) -> None:
        """Forget every run, and all that is kept."""
        with self._lock:
            self.streams.clear()
            self._let_go()

    def _let_go(self) -> None:
        """Of what the last run was asked to leave behind."""
        self.errors.begin_run()
        self.kept = {}

    @torch.compiler.disable
    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a UNet call: attribute it, decide between full and predicted, prepare the predictions."""
        if self.current.get() is not None:
            self._recover()
        if self.paused or self.disabled is not None:
            return None
        with self._lock:
            if not self.attachment.follow():
                self._shapes = {}
                self.adapters = Adapters(self.unet)
                self.streams.clear()
            inputs = self.arguments.bind(args, kwargs)
            stream, why_full = self._attribute(inputs)
            if stream is None:
                context = ForwardContext(full=True, shapes={}, writable=False)
            else:
                context = (self._predicted if why_full is None else self._full)(stream, inputs)
                if self.config.keep:
                    self.errors.note(stream, inputs, full=context.full, axis=self.config.axis)
            if self.attachment.controlnet is None and not inputs.has_residuals:
                bound = inputs.bound
            elif context.full:
                bound = self.control.restored(inputs.bound)
            else:
                bound = self.control.predicted(inputs.bound, self.plan, context)
            context.stream, context.inputs = stream, inputs
            if context.full:
                context.watch = self._shape_watch(inputs)
        self.current.set(context)
        return None if bound is inputs.bound else inputs.arguments(bound)

    @torch.compiler.disable
    def after(self, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """After a UNet call, also one that failed: take in what a full step computed."""
        context = self.current.get()
        if context is None:
            return
        with self._lock:
            if output is None:
                self._recover()
                return
            self.current.set(None)
            context.end()
            stream, inputs = context.stream, context.inputs
            if context.watch is not None:
                context.watch.stop()
                names = [cut.name for cut in self.plan.modules]
                self.records.count_flops(inputs.kind, context.watch, names)
            if stream is None:
                self.records.run.others[inputs.kind] += 1  # without end: no time of theirs is held
            else:
                if context.full:
                    self._take_in(stream, context)
                of_stream = (stream.number, stream.step, stream.num_steps)
                call = CallRecord(context.full, inputs.kind, context.seconds, context.events, *of_stream)
                self.records.run.calls.append(call)
                self.streams.complete(stream)
                if stream.cache.recording is not None and stream.done:
                    self.maker.end(*stream.cache.recording)
            self.attachment.listen(more=bool(self.streams.groups))
            if context.full and not self._is_probed:
                self._probe(context, output)  # last, so that neither its time nor its operations count as the call's

    def _take_in(self, stream: Stream, context: ForwardContext) -> None:
        """Store what a full step computed."""
        self._shapes.setdefault(context.inputs.kind, context.shapes)
        stream.cache.point = context.point
        if context.store is not None:
            for key, feature in context.features.items():
                context.store(key, feature)
        self.records.run.peak_bytes = max(self.records.run.peak_bytes, self.held_bytes)

    def run_controlnet(self, hook: ControlNetHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of a ControlNet's forward: leave it out where the UNet's call will be predicted."""
        inputs = hook.arguments.bind(args, kwargs)
        skip = False
        if not self.paused and self.disabled is None:
            with self._lock:
                place = self.timesteps.locate(inputs.timestep, self.pipeline.scheduler)
                if not isinstance(place, str):
                    streams = self.streams.expecting(place, inputs.tokens)
                    skip = bool(streams) and all(self._will_predict(stream) for stream in streams)
        return self.control.run(hook, args, kwargs, inputs, skip)

    def run(self, context: ForwardContext, bound: dict[str, Any], inputs: CallInputs) -> Any:
        """The UNet's output in a call of our own making, which no record counts."""
        with self._lock, torch.no_grad():
            before = self.current.get()
            self.current.set(context)
            try:
                args, kwargs = inputs.arguments(bound)
                # Past every hook on the UNet's call: the user counts their own.
                return self.unet.forward(*args, **kwargs)
            finally:
                self.current.set(before)

    def measure_errors(self) -> list[dict[str, Any]]:
        """Run some predicted steps of the last run in full, and compare."""

        def features(inputs: CallInputs) -> dict[Key, Tensor]:
            context = ForwardContext(full=True, shapes={}, writable=self._writable(inputs))
            self.run(context, inputs.bound, inputs)
            return context.features

        def region(inputs: CallInputs, step: int) -> Any:
            return self.region.at(step, inputs.batch, inputs.frames)

        return self.errors.measure(features, region, self._order, self.plan.temporal, self.feature_name)

    def feature_name(self, key: Key) -> str:
        """What a kept feature is called in reports."""
        what, index = key
        if isinstance(what, int):
            return self.plan.modules[what].name
        return self.config.cut if key == POINT else f"ControlNet {what} {index}"

    def close(self) -> None:
        """The cache is taken off: free everything, leave no hook behind."""
        self.reset()
        if self._watch is not None:
            self._watch.close()
        self.attachment.detach()

    def _probe(self, context: ForwardContext, output: Any) -> None:
        """Does the cut fit this UNet? Asked at the first full call that can tell; where not, nothing is cached."""
        self._is_probed, misfit, call = probe.prepare(self.unet, self.plan, context, self.current.compiled)
        if call is not None:
            misfit = probe.compare(self.run(*call, context.inputs), output) or misfit
        if misfit is not None:
            self.disabled = f"cut={self.config.cut!r} does not fit {type(self.unet).__name__}: {misfit}; not cached"
            warnings.warn(f"ticache: {self.disabled}", UserWarning, stacklevel=3)

    def _recover(self) -> None:
        """Clear up after a call that never came to its end (Ctrl-C within it)."""
        context = self.current.get()
        if context is None:
            return
        self.current.set(None)
        if context.watch is not None:
            context.watch.stop()
        if context.stream is not None:
            self.streams.drop(context.stream.group)

    def _attribute(self, inputs: CallInputs) -> tuple[Stream | None, str | None]:
        """The call's stream, and why it runs in full (None: it is predicted)."""
        sample = inputs.sample
        if sample is None:
            return self._unattributed("it has no sample tensor")
        if self.attachment.conflict is not None:
            return self._unattributed(self.attachment.conflict)
        if self.unet.training or torch.is_grad_enabled():
            training = training_call(self.unet, inputs)
            if training is not None:
                why, what = training
                if not self._told_training:
                    self._told_training = True
                    logger.warning("calls run in full, because %s; to have them cached, %s", why, what)
                return self._unattributed(f"{why} ({what})")
        if self.region.given is not None:
            self.region.check(inputs.batch, inputs.frames)
        place = self.timesteps.locate(inputs.timestep, self.pipeline.scheduler)
        if isinstance(place, str):
            return self._unattributed(place)
        key = (sample.shape, sample.dtype, sample.device, torch.is_inference_mode_enabled(), self.stream_name.get())
        found = self.streams.attribute(place, key, inputs.tokens, inputs.extras)
        stream = found.stream
        if found.new_run and stream is not None:
            self._retire_interrupted(stream.group.timesteps)
            self.records.begin_run()
            self._let_go()
        if found.note is not None:
            self.records.unattributed(found.note)
        if stream is None:
            return None, found.note
        if stream.cache is None:
            try:
                # A run that did not begin here tells nothing of a whole one.
                cache = self.maker.make(stream, inputs, self.adds_noise, first=found.new_run, whole=found.note is None)
            except ValueError:
                self.streams.drop(stream.group)
                raise
            stream.cache = cache
            if self.config.keep:
                self.kept[stream.number] = cache
        return stream, self._why_full(stream, inputs)

    def _retire_interrupted(self, timesteps: Timesteps | None) -> None:
        """A pipeline that has set its scheduler for a new run does not go on with an earlier one."""
        if self.pipeline.pipe is not None and timesteps is not None and timesteps.set_by_scheduler:
            self.streams.retire(
                lambda group: group.timesteps is not timesteps and getattr(group.timesteps, "set_by_scheduler", False)
            )

    def _unattributed(self, note: str) -> tuple[None, str]:
        self.records.unattributed(note)
        return None, note

    def _why_full(self, stream: Stream, inputs: CallInputs) -> str | None:
        """Why a stream's present step runs in full; anything but the schedule is counted as a fallback."""
        cache: FeatureCache = stream.cache
        why = self._changed(cache, inputs)
        if why is not None:
            cache.release()
        elif stream.step in cache.listed or (stream.step not in cache.coefficients and stream.step in cache.full_steps):
            return "scheduled"
        why = why or cache.refusal
        if why is None and not cache.nodes:
            why = "nothing is kept to predict from"
        if why is None and inputs.kind not in self._shapes:
            why = "an input has a shape that no full step has seen"
        if why is not None:
            self.records.run.fallbacks[why] += 1
        return why

    def _changed(self, cache: FeatureCache, inputs: CallInputs) -> str | None:
        """What has changed since the last full step, so that nothing can be predicted from what is kept."""
        in_force = self.adapters.in_force(inputs.bound)
        before, cache.adapters = cache.adapters, in_force
        assert inputs.sample is not None
        latents = latents_of(self.pipeline.pipe, inputs.sample)
        known = latents is not None and latents in self.latents
        # Latents of a loop that blends at every step are never the scheduler's.
        replaced, cache.latents_known = cache.latents_known and not known, known
        if not cache.nodes:
            return None
        if self.attachment.controlnet is not None and self.control.scale != cache.control_scale:
            return "ControlNet's scale changed"
        if in_force != before:
            adapter = before is None or in_force[:-1] != before[:-1]
            return "an adapter or its scale changed" if adapter else "the dilation of its convolutions changed"
        return "the latents are not those of the scheduler's last step" if replaced else None

    def _will_predict(self, stream: Stream) -> bool:
        """Will the next step of a stream be predicted, as far as can be known before the UNet is called?"""
        cache: FeatureCache | None = stream.cache
        if cache is None or not cache.nodes or cache.refusal is not None:
            return False
        return stream.step + 1 not in cache.full_steps

    def _full(self, stream: Stream, inputs: CallInputs) -> ForwardContext:
        cache: FeatureCache = stream.cache
        # A fresh dict each time: a compiled graph would notice that it has been filled.
        context = ForwardContext(full=True, shapes={}, writable=self._writable(inputs), device=_device(inputs))
        if self.attachment.controlnet is not None:
            cache.control_scale = self.control.scale
        if cache.recording is not None:
            recorder, _ = cache.recording
            recorder.begin_step()
            context.store = recorder.take
        elif cache.full_steps.any_predicted_after(stream.step) and cache.refusal is None:
            cache.begin_full(stream.step, self._order(cache.config.order), stream.ahead(self.config.axis))
            context.store = cache.store
            if inputs.has_residuals:
                for key, residual in controlnet.read_residuals(inputs.bound, self.plan).items():
                    cache.store(key, residual)
        elif not self.config.keep:
            cache.release()
        return context

    def _predicted(self, stream: Stream, inputs: CallInputs) -> ForwardContext:
        """Eq. 4: before the boundary only the region is predicted, the rest reused."""
        cache: FeatureCache = stream.cache
        context = ForwardContext(
            full=False,
            shapes=self._shapes[inputs.kind],
            writable=self._writable(inputs),
            point=cache.point,
            device=_device(inputs),
        )
        coefficients = cache.coefficients.get(stream.step)
        if coefficients is None:
            coordinate = stream.coordinate(self.config.axis, stream.step)
            assert coordinate is not None
            coefficients = cache.coefficients_at(coordinate, self._order(cache.config.order))
        early = stream.step < cache.boundary
        weights = self.region.at(stream.step, inputs.batch, inputs.frames) if early else None
        context.predict = partial(cache.predict, coefficients=coefficients, weights=weights)
        # Prepared here where there is one, or where the call itself is a compiled graph; else where it is needed.
        for key, history in cache.histories.items():
            if key == POINT or (self.current.compiled and isinstance(key[0], int)):
                context.predictions[key] = history.predict(coefficients, weights)
        return context

    def adds_noise(self) -> bool:
        """Does the sampler add noise, as set up or as it was last asked to?"""
        return self.pipeline.adds_noise(self.attachment.noise_asked)

    def _order(self, wanted: int) -> int:
        """The order in force: a sampler that adds noise has its own cap."""
        cap = self.config.noise_order
        if cap is not None and cap < wanted and self.adds_noise():
            self.records.run.order_capped = True
            return cap
        return wanted

    def _shape_watch(self, inputs: CallInputs) -> ShapeWatch | None:
        """Look at the shapes in a full call of a kind not seen before."""
        if self._watch is not None and self._watch.traced:
            self._watch.begin()
        if inputs.kind in self.records.flops:
            return None
        if self._watch is None or not self._watch.traced:
            self._watch = ShapeWatch(self.unet, inputs.frames)
        return self._watch

    def _writable(self, inputs: CallInputs) -> bool:
        """Does anything write into features in place: FreeU, or a T2I-Adapter?"""
        blocks: Any = self.unet.up_blocks
        has_adapter = inputs.has_residuals and controlnet.has_adapter(inputs.bound)
        return has_adapter or any(getattr(block, "s1", None) for block in blocks)


def _device(inputs: CallInputs) -> torch.device | None:
    return None if inputs.sample is None else inputs.sample.device

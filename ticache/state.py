"""The one owner of a cache's state: decides at each UNet call what runs, and takes in what was computed."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ticache import residuals
from ticache.adapters import Adapters
from ticache.auto_schedule import AutoSchedule, Run
from ticache.cache import StreamCache, coordinate, coordinates, span, timesteps
from ticache.calibration import Calibration, Kind
from ticache.call import Call, Key
from ticache.config import CacheConfig
from ticache.cuts import Plan
from ticache.drift import Drift
from ticache.flops import ShapeWatch
from ticache.history import History
from ticache.host import Arguments, Host, tensors_in
from ticache.latents import KnownLatents, latents_of
from ticache.provenance import TuningCheck, model_identity, scheduler_identity
from ticache.record import Records, Timer
from ticache.region import RegionMask
from ticache.streams import Attribution, Stream, Streams
from ticache.timeline import Clock, Timeline

if TYPE_CHECKING:
    from ticache.hooks import Attachment, ControlNetHook

logger = logging.getLogger("ticache")


@dataclass(eq=False)
class Flight:
    """A call between its two hooks."""

    call: Call
    stream: Stream | None
    timer: Timer
    shape_key: Any
    inputs: dict[str, Any]
    watch: ShapeWatch | None = None


class State:
    """Streams, histories and records of one cached UNet. `before` and `after` are its forward hooks."""

    def __init__(self, unet: nn.Module, plan: Plan, config: CacheConfig, host: Host, origin: TuningCheck):
        self.unet = unet
        self.plan = plan
        self.config = config
        self.host = host
        self.origin = origin
        self.arguments = Arguments(unet)
        self.attachment: Attachment | None = None
        self.session: Any = None
        self.region = RegionMask()
        self.disabled: str | None = None
        self.auto = AutoSchedule(config, sum(unit.role != "dead" for unit in plan.units))
        self._start()

    def _start(self) -> None:
        """Everything that calls leave behind, and a copy does not take over."""
        self.records = Records()
        self.streams = Streams(_release, self._finish)
        self.kept: dict[int, dict[Key, History]] = {}
        self.clock = Clock()
        self.stream_name: ContextVar[Any] = ContextVar("stream_name", default=None)
        self.paused = 0
        self.eta: float | None = None
        self.compiled = False
        self.control = residuals.Control()
        self.adapters = Adapters(self.unet)
        self.latents = KnownLatents()
        self.drift = Drift(self.config)
        self._shapes: dict[Any, dict[int, Any]] = {}
        self._lock = threading.RLock()
        self._local = threading.local()
        self._shared: Call | None = None
        self._watch: ShapeWatch | None = None
        self._warned = self._probed = self._told_training = False

    def __getstate__(self) -> dict[str, Any]:
        """What a deep copy or a pickle takes along: the settings, never a run."""
        kept = (
            "unet",
            "plan",
            "config",
            "host",
            "origin",
            "arguments",
            "attachment",
            "session",
            "region",
            "disabled",
            "auto",
        )
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self._start()

    @property
    def call(self) -> Call | None:
        """The call in flight in this thread. A compiled graph knows one at a time."""
        if torch.compiler.is_compiling():
            self.compiled = True
            return self._shared
        flight: Flight | None = getattr(self._local, "flight", None)
        return None if flight is None else flight.call

    @property
    def held_bytes(self) -> int:
        """Bytes of cached tensors and recorded inputs held now."""
        streams = [stream for group in self.streams.groups for stream in group.streams.values()]
        kept = sum(history.nbytes for histories in self.kept.values() for history in histories.values())
        return self.drift.nbytes + kept + sum(stream.payload.nbytes for stream in streams if stream.payload is not None)

    @property
    def calibration(self) -> Calibration | None:
        """What the runs made in full tell about later ones; None before the first has ended."""
        with self._lock:
            found = self.auto.calibration
            if not found.recordings:
                return None
            if found.model is None:
                found.model = model_identity(self.unet)
            return found.copy()

    def reset(self) -> None:
        """Forget every run, and all that is kept."""
        with self._lock:
            self.streams.clear()
            self.drift.begin_run()
            self.kept = {}
            self.records.hold(0)

    @torch.compiler.disable
    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a UNet call: attribute it, decide between full and predicted, prepare the predictions."""
        self._recover()
        if self.paused or self.disabled is not None:
            return None
        with self._lock:
            self._mend()
            bound = self.arguments.bind(args, kwargs)
            sample = self.arguments.sample(bound)
            timer = Timer(sample.device if sample is not None else torch.device("cpu"))
            shape_key = self._shape_key(bound)
            stream, why_full = self._attribute(bound, sample)
            if stream is None:
                call = Call(full=True, shapes={}, writable=False)
            elif why_full is not None:
                call = self._full(stream, bound)
            else:
                call = self._predicted(stream, shape_key, bound)
            if call.full:
                bound, changed = self.control.restored(bound)
            else:
                self.control.forget()
                bound, changed = residuals.predicted(bound, self.plan, call), True
            if stream is not None:
                at = coordinate(stream, self.config.axis)
                self.drift.note(stream.number, stream.step, stream.payload, call.full, bound, at)
            flight = Flight(call, stream, timer, shape_key, bound, self._shape_watch(call, shape_key, sample))
        self._local.flight = flight
        self._shared = call
        return self.arguments.unbind(bound, len(args)) if changed else None

    @torch.compiler.disable
    def after(self, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """After a UNet call, also one that failed: take in what a full step computed."""
        flight: Flight | None = getattr(self._local, "flight", None)
        if flight is None:
            return
        with self._lock:
            if output is None:
                self._recover()
                return
            self._local.flight = self._shared = None
            call, stream = flight.call, flight.stream
            if flight.watch is not None:
                flight.watch.stop()
                self.records.flops.take(flight.shape_key, flight.watch, [unit.name for unit in self.plan.units])
            if stream is not None:
                if call.full:
                    self._shapes.setdefault(flight.shape_key, call.shapes)
                    stream.payload.site = call.site
                    if call.take is not None:
                        for key, feature in call.features.items():
                            call.take(key, feature)
                self.records.add_step(stream.number, stream.num_steps, stream.step, call.full)
                self.records.hold(self.held_bytes)
                self.streams.complete(stream)
                self.records.held_bytes = self.held_bytes
            # Calls that belong to no run have no end: their timers are not held.
            timer = None if stream is None else flight.timer
            self.records.add(full=call.full, timer=timer, flops_key=flight.shape_key)
            assert self.attachment is not None
            self.attachment.listen(self.host.pipe, self.host.scheduler)
            self._probe(flight, output)  # last, so that neither its time nor its operations count as the call's

    def run_controlnet(self, hook: ControlNetHook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of a ControlNet's forward: leave it out where the UNet's call will be predicted."""
        bound = hook.arguments.bind(args, kwargs)
        predicted = False
        if not self.paused and self.disabled is None:
            with self._lock:
                place = self.clock.locate(self.arguments.timestep(bound), self.host.scheduler)
                if not isinstance(place, str):
                    streams = self.streams.expecting(place, self.arguments.tokens(bound))
                    predicted = bool(streams) and all(self._will_predict(stream) for stream in streams)
        return self.control.run(hook, args, kwargs, bound, predicted)

    def stepped(self, scheduler: Any, eta: float | None, sample: Any) -> None:
        """The scheduler took a step, with this much noise asked for (`eta`, `s_churn`), and gave this sample."""
        self.eta = eta
        self.latents.add(sample)
        if self.streams.groups and self.attachment is not None:  # the run goes on
            self.attachment.scaling.listen(scheduler)

    def scaled(self, sample: Any, scaled: Any) -> None:
        """The scheduler scaled a sample for the UNet."""
        if isinstance(sample, Tensor) and sample in self.latents:
            self.latents.add(scaled)

    def warn_if_exchanged(self) -> None:
        """The pipeline begins a run: say once that the cache does not sit on its UNet, if so."""
        if self.host.exchanged(self.unet) and not self._warned:
            self._warned = True
            warnings.warn(f"{self.exchange_note()}", UserWarning, stacklevel=4)

    def exchange_note(self) -> str:
        name = self.host.component
        return f"pipe.{name} was replaced after ticache.apply: the cache sits on the old one; call apply again"

    def run(self, call: Call, inputs: dict[str, Any]) -> Any:
        """The UNet's output in a call of our own making, which no record counts."""
        with self._lock, torch.no_grad():
            before = getattr(self._local, "flight", None)
            self._local.flight = Flight(call, None, Timer(torch.device("cpu")), None, inputs)
            try:
                args, kwargs = self.arguments.unbind(inputs)
                # Past every hook on the UNet's call: the user counts their own.
                return self.unet.forward(*args, **kwargs)
            finally:
                self._local.flight = before

    def measure_drift(self) -> list[dict[str, Any]]:
        """Run some predicted steps of the last run in full, and compare."""

        def features(inputs: dict[str, Any]) -> dict[Key, Tensor]:
            call = Call(full=True, shapes={}, writable=self._writable(inputs))
            self.run(call, inputs)
            return call.features

        def predict(cache: StreamCache, step: int, inputs: dict[str, Any], at: float) -> Any:
            return self._predictor(cache, step, cache.boundary, inputs, at)

        def weights(inputs: dict[str, Any], key: Key, feature: Tensor) -> Tensor | None:
            of_region = self._region_weights(0, inputs)
            return None if of_region is None else of_region(key, feature)

        return self.drift.measure(features, predict, weights, self.site_name)

    def site_name(self, key: Key) -> str:
        """What a kept feature is called in reports."""
        what, index = key
        if isinstance(what, int):
            return self.plan.units[what].name
        return self.config.cut if what == "site" else f"ControlNet {what} {index}"

    def _finish(self, stream: Stream) -> None:
        """A stream has ended: free what it kept, unless it was asked for, and look at what was recorded."""
        if stream.payload.recording is not None:
            self.auto.end(*stream.payload.recording)
        if self.config.keep:
            self.kept[stream.number] = stream.payload.histories
        stream.payload.release()

    def _disable(self, why: str) -> None:
        self.disabled = f"cut={self.config.cut!r} does not fit {type(self.unet).__name__}: {why}; not cached"
        warnings.warn(f"ticache: {self.disabled}", UserWarning, stacklevel=4)

    def _probe(self, flight: Flight, output: Any) -> None:
        """For a class that is not diffusers': do live modules really read nothing of what is taken for dead?

        The first full call is made once more as a predicted one, with its own feature and with ghosts of NaN.
        """
        call, known = flight.call, type(self.unet).__module__.startswith("diffusers.")
        feature = call.features.get(("site", 0))
        if call.take is not None and call.site is None and any(unit.role == "site" for unit in self.plan.units):
            self._disable("the module whose output is predicted never ran")
        if known or self._probed or self.compiled or feature is None or call.take is None:
            return
        self._probed = True
        again = Call(full=False, shapes=call.shapes, writable=call.writable, site=call.site, poison=True)
        again.predictions["site", 0] = feature.clone()
        again.predict = residuals.live(flight.inputs, self.plan).get
        outputs = tensors_in(self.run(again, residuals.predicted(flight.inputs, self.plan, again)))
        wanted = tensors_in(output)
        if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(outputs, wanted, strict=True)):
            self._disable("it reads features taken for dead")

    def _recover(self) -> None:
        """Clear up after a call that never came to its end (Ctrl-C within it)."""
        flight: Flight | None = getattr(self._local, "flight", None)
        if flight is None:
            return
        self._local.flight = self._shared = None
        if flight.watch is not None:
            flight.watch.stop()
        if flight.stream is not None:
            self.streams.drop(flight.stream.group)

    def _mend(self) -> None:
        """Follow the pipeline: an exchanged scheduler or ControlNet, exchanged modules, forwards reset by others."""
        attachment = self.attachment
        assert attachment is not None
        attachment.hook_controlnet(self.host.controlnet, self)
        attachment.scaling.detach()  # called or not, it hangs only from a step to the next call
        if not attachment.intact():
            attachment.rehang(self)
            self._shapes = {}
            self.adapters = Adapters(self.unet)
            self.streams.clear()

    def _attribute(self, bound: dict[str, Any], sample: Tensor | None) -> tuple[Stream | None, str | None]:
        """The call's stream, and why it runs in full (None: it is predicted)."""
        if sample is None:
            return self._unattributed("it has no sample tensor")
        assert self.attachment is not None
        conflict = self.attachment.conflict()
        if conflict is not None:
            return self._unattributed(conflict)
        tokens = self.arguments.tokens(bound)
        training = self._training((sample, *tokens))
        if training is not None:
            return self._unattributed(training)
        self.region.check(*self.arguments.batch_and_frames(sample))
        place = self.clock.locate(self.arguments.timestep(bound), self.host.scheduler)
        if isinstance(place, str):
            return self._unattributed(place)
        key = (sample.shape, sample.dtype, sample.device, torch.is_inference_mode_enabled(), self.stream_name.get())
        extras = self.arguments.extras(bound)
        attribution = self.streams.attribute(place, key, tokens, extras, self.host.run_length)
        stream = attribution.stream
        if attribution.new_run and stream is not None:
            self._retire_interrupted(stream.group.timeline)
            self.records.begin_run()
            self.drift.begin_run()
            self.kept = {}
        if stream is None:
            assert attribution.note is not None
            return self._unattributed(attribution.note)
        if attribution.note is not None:
            self.records.unattributed(attribution.note)
        if stream.payload is None:
            cache = stream.payload = self._cache_for(stream, sample, attribution)
            cache.refusal = cache.refusal or self.host.few_step_model(stream.num_steps)
            if cache.config.forecaster == "chebyshev" and cache.refusal is None:
                cache.span = span(stream, self.config.axis)
        return stream, self._why_full(stream, bound)

    def _retire_interrupted(self, timeline: Timeline | None) -> None:
        """A pipeline that has set its scheduler for a new run does not go on with an earlier one."""
        if self.host.pipe is None or timeline is None or not timeline.set_by_scheduler:
            return
        self.streams.retire(
            lambda group: (
                group.timeline is not None and group.timeline.set_by_scheduler and group.timeline is not timeline
            )
        )

    def _training(self, inputs: tuple[Tensor, ...]) -> str | None:
        """Why a call is one to learn from, whose gradients a skipped module would not get; None if it is not."""
        if self.unet.training:
            why, what = "the UNet is in training mode", "call unet.eval()"
        elif not torch.is_grad_enabled():
            return None
        elif any(tensor.requires_grad for tensor in inputs):
            why, what = "gradients of its inputs are recorded", "wrap the loop in torch.no_grad()"
        elif any(parameter.requires_grad for parameter in self.unet.parameters()):
            why, what = "gradients of the UNet are recorded", "wrap the loop in torch.no_grad()"
        else:
            return None
        if not self._told_training:
            self._told_training = True
            logger.warning("calls run in full, because %s; to have them cached, %s", why, what)
        return f"{why} ({what})"

    def _cache_for(self, stream: Stream, sample: Tensor, attribution: Attribution) -> StreamCache:
        """The cache of a stream that begins; with `schedule="auto"` it may be one that records."""
        if self.config.schedule != "auto" or stream.num_steps is None:
            return StreamCache(self._config_for(stream), stream.num_steps)
        run = self._auto_run(stream, stream.num_steps, sample)
        # A run that did not begin here tells nothing of a whole one.
        config, recorder = self.auto.begin(run, first=attribution.new_run, whole=attribution.note is None)
        cache = StreamCache(config, stream.num_steps)
        cache.recording = None if recorder is None else (recorder, run)
        return cache

    def _auto_run(self, stream: Stream, num_steps: int, sample: Tensor) -> Run:
        rows, _ = self.arguments.batch_and_frames(sample)
        guidance = self.host.guidance() if rows % 2 == 0 else None
        cap, config = self.config.noise_order, self.config
        kind = Kind(
            scheduler=json.dumps(scheduler_identity(self.host.scheduler), sort_keys=True),
            num_steps=num_steps,
            guided=guidance is not None,
            features=f"{config.cut} {config.depth} {config.resnets}",
        )
        return Run(
            kind=kind,
            rows=rows,
            guidance=guidance,
            coordinates=coordinates(stream, num_steps, config.axis),
            timesteps=timesteps(stream, num_steps),
            max_order=3 if cap is None or not self.host.adds_noise(self.eta) else cap,
        )

    def _config_for(self, stream: Stream) -> CacheConfig:
        """The settings, tuned full steps mapped onto the stream's length; ValueError where that was not wanted."""
        if self.origin.provenance is None:
            return self.config
        try:
            self.origin.check_scheduler(self.host.scheduler)
            steps = self.origin.steps(self.config.steps or (), stream.num_steps)
        except ValueError:
            self.streams.drop(stream.group)
            raise
        return self.config if steps is None else self.config.replaced(steps=steps)

    def _unattributed(self, note: str) -> tuple[None, str]:
        self.records.unattributed(note)
        return None, note

    def _why_full(self, stream: Stream, bound: dict[str, Any]) -> str | None:
        """Why a stream's present step runs in full; anything but the schedule is counted as a fallback."""
        cache: StreamCache = stream.payload
        why = self._changed(cache, bound)
        if why is not None:
            cache.release()
        elif stream.step in cache.full_steps:
            return "scheduled"
        why = why or cache.refusal
        if why is None and not cache.nodes:
            why = "nothing is kept to predict from"
        if why is None and self._shape_key(bound) not in self._shapes:
            why = "an input has a shape that no full step has seen"
        if why is not None:
            self.records.run.fallbacks[why] += 1
        return why

    def _changed(self, cache: StreamCache, bound: dict[str, Any]) -> str | None:
        """What has changed since the last full step, so that nothing can be predicted from what is kept."""
        in_force = self.adapters.in_force(bound)
        before, cache.adapters = cache.adapters, in_force
        replaced = self._latents_replaced(cache, bound)
        if not cache.nodes:
            return None
        if self.control.scale_changed(cache):
            return "ControlNet's scale changed"
        if in_force != before:
            return "an adapter or its scale changed"
        return "the latents are not those of the scheduler's last step" if replaced else None

    def _latents_replaced(self, cache: StreamCache, bound: dict[str, Any]) -> bool:
        """Are the latents no longer the scheduler's? Those of a loop that blends at every step never are."""
        sample = self.arguments.sample(bound)
        latents = None if sample is None else latents_of(self.host.pipe, sample)
        known = latents is not None and latents in self.latents
        before, cache.latents_known = cache.latents_known, known
        return before and not known

    def _will_predict(self, stream: Stream) -> bool:
        """Will the next step of a stream be predicted, as far as can be known before the UNet is called?"""
        cache: StreamCache | None = stream.payload
        if cache is None or not cache.nodes or cache.refusal is not None:
            return False
        return stream.step + 1 not in cache.full_steps

    def _full(self, stream: Stream, bound: dict[str, Any]) -> Call:
        cache: StreamCache = stream.payload
        # A fresh dict each time: a compiled graph would notice that it has been filled.
        call = Call(full=True, shapes={}, writable=self._writable(bound))
        cache.control_scale = self.control.scale
        if cache.recording is not None:
            recorder, _ = cache.recording
            recorder.begin_step()
            call.take = recorder.take
        elif cache.full_steps.any_predicted_after(stream.step) and cache.refusal is None:
            cache.begin_full(coordinate(stream, self.config.axis))
            call.take = cache.take
            residuals.take(bound, self.plan, cache)
        elif not self.config.keep:
            cache.release()
        return call

    def _predicted(self, stream: Stream, shape_key: Any, bound: dict[str, Any]) -> Call:
        cache: StreamCache = stream.payload
        call = Call(full=False, shapes=self._shapes[shape_key], writable=self._writable(bound), site=cache.site)
        at = coordinate(stream, self.config.axis)
        call.predict = self._predictor(cache, stream.step, cache.boundary, bound, at)
        # Prepared here where there is one, or where the call itself is a compiled graph; else where it is needed.
        for key in cache.histories:
            if key[0] == "site" or (self.compiled and isinstance(key[0], int)):
                prediction = call.predict(key)
                assert prediction is not None
                call.predictions[key] = prediction
        return call

    def _predictor(
        self, cache: StreamCache, step: int, boundary: int, bound: dict[str, Any], at: float
    ) -> Callable[[Key], Tensor | None]:
        """Eq. 4: before the boundary only the region is predicted, the rest reused."""
        weights = self._region_weights(step, bound) if step < boundary else None
        return cache.predictor(cache.coefficients(at, self._order(cache.config.order)), weights)

    def _region_weights(self, step: int, bound: dict[str, Any]) -> Callable[[Key, Tensor], Tensor] | None:
        """The region's weights for a feature at `step`; None without a region."""
        sample = self.arguments.sample(bound)
        assert sample is not None
        at = self.region.at(step, *self.arguments.batch_and_frames(sample))
        if at is None:
            return None
        return lambda key, feature: at(feature, isinstance(key[0], int) and self.plan.units[key[0]].temporal)

    def _order(self, wanted: int) -> int:
        cap = self.config.noise_order
        if cap is not None and cap < wanted and self.host.adds_noise(self.eta):
            self.records.run.order_capped = True
            return cap
        return wanted

    def _shape_key(self, bound: dict[str, Any]) -> Any:
        tensors = [self.arguments.sample(bound), *self.arguments.tokens(bound), *self.arguments.extras(bound)]
        return tuple((t.shape, t.dtype, t.device) for t in tensors if t is not None)

    def _shape_watch(self, call: Call, shape_key: Any, sample: Tensor | None) -> ShapeWatch | None:
        """Look at the shapes in a full call of a kind not seen before."""
        if self._watch is not None and self._watch.traced:
            self._watch.begin()
        if not call.full or shape_key in self.records.flops:
            return None
        if self._watch is None or not self._watch.traced:
            frames = 1 if sample is None else self.arguments.batch_and_frames(sample)[1]
            self._watch = ShapeWatch(self.unet, frames)
            self._watch.hang()
        return self._watch

    def close(self) -> None:
        """The cache is taken off: free everything, leave no hook behind."""
        self.reset()
        if self._watch is not None:
            self._watch.close()

    def _writable(self, bound: dict[str, Any]) -> bool:
        """Does anything write into features in place: FreeU, or a T2I-Adapter?"""
        blocks: Any = self.unet.up_blocks
        return any(getattr(block, "s1", None) for block in blocks) or residuals.has_adapter(bound)


def _release(stream: Stream) -> None:
    if stream.payload is not None:
        stream.payload.release()

"""Calls made with a candidate's cache on or without, always with the same noise; what each is worth; who is told.

Uncached runs are made once, and trials of settings compared with them; a log keeps the figures.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ticache.api import apply
from ticache.best_steps import Choice
from ticache.cache_maker import AutoSchedule
from ticache.config import CacheConfig
from ticache.tuning.metrics import Metric, as_tensor, mean

CallArguments = Mapping[str, Any]
GIVE_UP = 0.5  # in the metric's unit: a trial that is on average so far behind the best is not run on further calls


@dataclass(frozen=True)
class Candidate:
    """One setting to try: the full steps, and how the others are predicted."""

    steps: tuple[int, ...]
    order: int = 2
    cut: str = "outer"
    forecaster: str = "newton"


class Exhausted(Exception):
    """The bound on trials is reached."""


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


class CallSet:
    """The calls, those of the check last or drawn from them, and the region of each."""

    def __init__(self, calls: Sequence[CallArguments], check: Sequence[CallArguments] | None, region: Any, seed: int):
        if not calls or not all(isinstance(call, Mapping) for call in [*calls, *(check or ())]):
            raise ValueError("calls must be a list of mappings, each the arguments of one call by name")
        self.calls: list[CallArguments] = [*calls, *(check or ())]
        order = list(range(len(calls)))
        if check is None:
            random.Random(seed).shuffle(order)
            half = -(-len(calls) // 2)
            self.calibration, self.check = sorted(order[:half]), sorted(order[half:])
        else:
            self.calibration, self.check = order, list(range(len(calls), len(self.calls)))
        masks = region if isinstance(region, list | tuple) else [region] * len(self.calls)
        if len(masks) != len(self.calls):
            raise ValueError(f"region must be one mask or one for each of {len(self.calls)} calls, got {len(masks)}")
        self.regions: list[Tensor | None] = [None if mask is None else torch.as_tensor(mask) for mask in masks]


@dataclass
class CallRunner:
    """Makes one call, cached or not, always with the same noise.

    options: of `apply` beside the settings. cut: at which the uncached runs are recorded.
    """

    target: Any
    run: Callable[..., Any]
    calls: Sequence[CallArguments]
    base: CacheConfig
    seed: int
    unet: nn.Module
    options: dict[str, Any]
    cut: str = "outer"
    num_steps: int = 0
    _recorded: AutoSchedule | None = None

    def __post_init__(self) -> None:
        parameter = next(self.unet.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device

    def best(self, count: int, orders: Sequence[int], forecasters: Sequence[str]) -> Choice | None:
        """What the uncached runs made so far say is best with `count` full steps; None where they could not tell."""
        return None if self._recorded is None else self._recorded.best(count, orders, forecasters)

    def __call__(self, index: int, candidate: Candidate | None) -> Outcome:
        call = self.calls[index]
        # With every step full the hooks only count and record, and the result is the uncached one to the last bit.
        config = CacheConfig(N=1, schedule="auto", cut=self.cut, axis=self.base.axis)
        if candidate is not None:
            config = settings_of(candidate, max(self.num_steps, len(candidate.steps)), self.base)
        with (
            apply(self.target, config, **self.options) as session,
            same_noise(call, self.seed + index, self._device),
        ):
            result = as_tensor(self.run(**call))
            report = session.report().to_dict()
            if self._recorded is None and candidate is None:
                self._recorded = session.recorded
            elif self._recorded is not None and candidate is None:
                for recording in session.recorded.calibration.recordings.values():
                    self._recorded.calibration.add(recording)  # averaged with what was before
        taken = [len(stream["full"]) + len(stream["predicted"]) for stream in report["streams"]]
        if not taken:
            raise ValueError("run made no call of the UNet that could be told to belong to a denoising loop")
        self.num_steps = max(taken)
        return Outcome(result, self.num_steps, report["flops_ratio"])


@contextmanager
def same_noise(call: CallArguments, seed: int, device: torch.device) -> Iterator[None]:
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


@dataclass(frozen=True)
class Progress:
    """How far a search has come, for whoever shows it.

    stage: what runs now; done of total: how much of it (total None: not known). best, start: mean of the calibration
    calls for the best so far and for what was tried first, None before there is one; candidate: the best so far.
    """

    stage: Literal["uncached", "trial", "check"]
    done: int
    total: int | None
    best: float | None = None
    start: float | None = None
    candidate: Candidate | None = None


OnProgress = Callable[[Progress], None]


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No bars of the pipeline's own between ours."""
    before = getattr(pipe, "_progress_bar_config", {})
    configure = getattr(pipe, "set_progress_bar_config", lambda **_: None)
    configure(**before | {"disable": True})
    try:
        yield
    finally:
        configure(**before)


@contextmanager
def shown_to(progress: bool | OnProgress) -> Iterator[OnProgress]:
    """Who is told how far the search has come: nobody, a callable, or a line on a terminal."""
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty():
        try:
            yield lambda at: print(f"\r\x1b[K{described(at)}", end="", file=sys.stderr, flush=True)
        finally:
            sys.stderr.write("\n")
    else:
        yield lambda at: None


def described(at: Progress) -> str:
    """One line: what runs, how far it is, the best so far."""
    share = f"{at.done}" if at.total is None else f"{at.done}/{at.total}"
    if at.best is None or at.start is None or at.candidate is None:
        return f"tune: {at.stage} {share}"
    steps = ", ".join(map(str, at.candidate.steps))
    return f"tune: {at.stage} {share}, best {at.best:.2f} with {len(at.candidate.steps)} full steps ({steps})"


# Makes the call of that index with a candidate's cache on; None: every step full.
RunCall = Callable[[int, Candidate | None], Outcome]


@dataclass
class Score:
    """What a candidate reached on the calls it was run on, in their order."""

    values: list[float]
    flops_ratio: float | None = None


class UncachedRuns:
    """Uncached runs, each made when first needed and kept on the CPU."""

    def __init__(self, run: RunCall):
        self._run = run
        self.on_run: Callable[[int], None] = lambda done: None
        self._results: dict[int, Tensor] = {}
        self.num_steps: int | None = None

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._results:
            self.on_run(len(self._results))
            outcome = self._run(index, None)
            if self.num_steps not in (None, outcome.num_steps):
                raise ValueError(
                    f"all calls must have the same number of steps: calls[{index}] has {outcome.num_steps}, others "
                    f"have {self.num_steps}"
                )
            self.num_steps = outcome.num_steps
            self._results[index] = outcome.result
        return self._results[index]


class TrialLog:
    """A text file of what was measured, a JSON object a line; the first names the problem. None: nothing is kept.

    A line that a kill cut off is dropped. ValueError for a file of another problem.
    """

    def __init__(self, path: Path | None, problem: str):
        self._path = path
        self._scores: dict[str, Score] = {}
        if path is None:
            return
        head = {"ticache_tune": 1, "problem": problem}
        lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole and _parsed(whole[0]) != head:
            raise ValueError(
                f"journal {path} belongs to other calls, another model or metric (or is no journal): name another file"
            )
        for line in whole[1:]:
            entry = _parsed(line)
            if entry is not None:
                self._scores[entry["key"]] = Score(entry["values"], entry["flops_ratio"])
        if len(whole) != len(lines) or not whole:
            path.write_text("".join(whole) or json.dumps(head) + "\n", encoding="utf-8")

    def get(self, key: str) -> Score | None:
        return self._scores.get(key)

    def put(self, key: str, score: Score) -> None:
        self._scores[key] = score
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **asdict(score)}) + "\n")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


@dataclass
class Budget:
    """How much may be tried. Trials found in the journal count too, so that a resumed search ends where it would."""

    trials: int | None
    minutes: float | None
    made: int = 0
    began: float = field(default_factory=time.monotonic)

    def take(self) -> None:
        """Count one trial; raises Exhausted where there is none left."""
        late = self.minutes is not None and time.monotonic() - self.began >= 60 * self.minutes
        if late or (self.trials is not None and self.made >= self.trials):
            raise Exhausted
        self.made += 1


@dataclass
class Trials:
    """Says what a candidate is worth: the mean of `metric` over calls, against their uncached runs.

    calibration, check: indices of the calls that the search may see, and of those it may not.
    """

    run: RunCall
    uncached: UncachedRuns
    calibration: Sequence[int]
    check: Sequence[int]
    metric: Callable[[Tensor, Tensor, int], float]
    log: TrialLog
    budget: Budget
    on_progress: OnProgress
    start: float | None = None
    _best: dict[int, tuple[Candidate, Score]] = field(default_factory=dict)

    def __call__(self, candidate: Candidate) -> float:
        """The mean over the calibration calls; for one that is clearly behind the best with as many full steps, an
        estimate after fewer calls. Raises Exhausted at the budget.
        """
        self.budget.take()
        count = len(candidate.steps)
        best = self._best.get(count)
        score = self._measure(candidate, self.calibration, "calibration", None if best is None else best[1].values)
        if best is None or len(score.values) == len(self.calibration):
            value = mean(score.values)
            if best is None or value > mean(best[1].values):
                self._best[count] = best = candidate, score
        else:
            value = mean(best[1].values) - _behind(score.values, best[1].values)
        shown, reached = best
        self.start = mean(reached.values) if self.start is None else self.start
        self.on_progress(
            Progress("trial", self.budget.made, self.budget.trials, mean(reached.values), self.start, shown)
        )
        return value

    def calibrated(self, candidate: Candidate) -> Score:
        """The figures of a candidate on every calibration call, whatever it costs."""
        return self._measure(candidate, self.calibration, "calibration", None)

    def checked(self, candidate: Candidate) -> Score:
        """The figures of a candidate on the calls that the search never saw."""
        return self._measure(candidate, self.check, "check", None)

    def _measure(self, candidate: Candidate, indices: Sequence[int], kind: str, rival: Sequence[float] | None) -> Score:
        key = json.dumps([kind, *asdict(candidate).values()])
        score = self.log.get(key) or Score([])
        values = list(score.values)
        flops_ratio = score.flops_ratio
        while len(values) < len(indices):
            if rival is not None and values and _behind(values, rival) > GIVE_UP:
                break
            index = indices[len(values)]
            reference = self.uncached[index]
            if kind == "check":
                self.on_progress(Progress("check", len(values), len(indices), None, self.start, candidate))
            outcome = self.run(index, candidate)
            values.append(self.metric(outcome.result, reference, index))
            flops_ratio = outcome.flops_ratio
        if values != score.values:
            score = Score(values, flops_ratio)
            self.log.put(key, score)
        return score


def _behind(values: Sequence[float], rival: Sequence[float]) -> float:
    """By how much the first calls of one are behind those of another, on average."""
    return mean([b - a for a, b in zip(values, rival, strict=False)])


def metric_of(metric: Metric, regions: Sequence[Tensor | None]) -> Callable[[Tensor, Tensor, int], float]:
    """A metric as `Trials` calls it: with the index of the call, whose region it may need."""

    def measure(result: Tensor, reference: Tensor, index: int) -> float:
        if result.shape != reference.shape:
            raise ValueError(
                f"results must have one shape, got {tuple(result.shape)} with the cache and {tuple(reference.shape)} "
                "without"
            )
        region = regions[index]
        value = float(metric(result, reference) if region is None else metric(result, reference, region))
        if value != value:
            raise ValueError(f"the metric gave {value} for calls[{index}]: results must be finite")
        return value

    return measure

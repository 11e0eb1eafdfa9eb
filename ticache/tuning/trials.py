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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ticache.api import apply, find_unet
from ticache.cache_maker import CacheMaker
from ticache.config import CacheConfig
from ticache.provenance import model_identity, scheduler_identity
from ticache.session import Session
from ticache.tuning.metrics import Metric, as_tensor, mean, psnr

CallArguments = Mapping[str, Any]
GIVE_UP = 0.5  # in the metric's unit: a trial that is on average so far behind the best is not run on further calls


@dataclass(frozen=True)
class Candidate:
    """One setting to try: the full steps, and how the others are predicted."""

    steps: tuple[int, ...]
    order: int = 2
    cut: str = "outer"
    forecaster: str = "newton"


@dataclass(frozen=True)
class Choices:
    """What may be chosen beside the steps; the first of each is where the search begins."""

    orders: tuple[int, ...] = (2, 3, 1)
    cuts: tuple[str, ...] = ("outer", "output")
    forecasters: tuple[str, ...] = ("newton",)

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not values:
                raise ValueError(f"{name} must name at least one")
            for value in values:
                CacheConfig(**{name[:-1]: value})  # raises for a setting that cannot be

    def start(self, steps: tuple[int, ...]) -> Candidate:
        """These steps with the first of each choice."""
        return Candidate(steps, self.orders[0], self.cuts[0], self.forecasters[0])

    def variants(self, of: Candidate) -> list[Candidate]:
        """`of` with one choice changed."""
        return [
            *(replace(of, order=order) for order in self.orders if order != of.order),
            *(replace(of, cut=cut) for cut in self.cuts if cut != of.cut),
            *(replace(of, forecaster=name) for name in self.forecasters if name != of.forecaster),
        ]


def settings_of(candidate: Candidate, num_steps: int, base: CacheConfig) -> CacheConfig:
    """A candidate as settings; N is the mean refresh interval."""
    return base.replaced(
        N=max(1, round(num_steps / len(candidate.steps))),
        steps=candidate.steps,
        order=candidate.order,
        cut=candidate.cut,
        forecaster=candidate.forecaster,
    )


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


@dataclass
class Tuning:
    """Calls, their uncached runs and what was measured: several searches share them. Arguments as for `tune`.

    calibration, unseen: indices of the calls that the search may see, and of those it may not, which are the last or
    drawn. cut: at which the uncached runs are recorded. run_steps: T, 0 before the first of them.
    """

    target: Any
    calls: Sequence[CallArguments]
    run: Callable[..., Any] | None = None
    check: Sequence[CallArguments] | None = None
    scheduler: Any = None
    num_steps: int | None = None
    region: Any = None
    metric: Metric = psnr
    base: CacheConfig | None = None
    seed: int = 0
    journal: str | Path | None = None
    progress: bool | OnProgress = True

    def __post_init__(self) -> None:
        self.pipe, _, self.unet = find_unet(self.target)
        if self.run is None and (self.pipe is None or not callable(self.target)):
            raise ValueError("run= is needed for a bare UNet: a function that makes one call and returns its result")
        self._run = self.target if self.run is None else self.run
        self._split()
        self._options = {"scheduler": self.scheduler, "num_steps": self.num_steps}
        if self.scheduler is None:
            self.scheduler = getattr(self.pipe, "scheduler", None)
        self.settings = (self.base or CacheConfig()).replaced(provenance=None)
        name = getattr(self.metric, "__qualname__", type(self.metric).__qualname__)
        self.metric_name = "psnr" if self.metric is psnr else str(name)
        self.log = TrialLog(None if self.journal is None else Path(self.journal), self._problem())
        self.cut = "outer"
        self.run_steps = 0
        self.on_progress: OnProgress = lambda at: None
        self._uncached: dict[int, Tensor] = {}
        self._recorded: CacheMaker | None = None

    def _split(self) -> None:
        """Which calls calibrate, which check, and where each counts."""
        count, check = len(self.calls), self.check or ()
        if not count or not all(isinstance(call, Mapping) for call in [*self.calls, *check]):
            raise ValueError("calls must be a list of mappings, each the arguments of one call by name")
        self.calls = [*self.calls, *check]
        order = list(range(count))
        if self.check is None:
            random.Random(self.seed).shuffle(order)
            half = -(-count // 2)
            self.calibration, self.unseen = sorted(order[:half]), sorted(order[half:])
        else:
            self.calibration, self.unseen = order, list(range(count, len(self.calls)))
        masks = self.region if isinstance(self.region, list | tuple) else [self.region] * len(self.calls)
        if len(masks) != len(self.calls):
            raise ValueError(f"region must be one mask or one for each of {len(self.calls)} calls, got {len(masks)}")
        self._regions: list[Tensor | None] = [None if mask is None else torch.as_tensor(mask) for mask in masks]

    def _problem(self) -> str:
        """A name for everything that a measured figure depends on."""
        return digest_of(
            {
                "model": model_identity(self.unet),
                "scheduler": scheduler_identity(self.scheduler),
                "calls": [dict(call) for call in self.calls],
                "regions": self._regions,
                "split": [self.calibration, self.unseen],
                "metric": self.metric_name,
                "base": self.settings.to_json(),
                "noise": self.seed,
            }
        )

    def uncached(self, index: int) -> Tensor:
        """The result [..., C, H, W] of a call without predictions, made when first needed and kept on the CPU."""
        if index not in self._uncached:
            self.on_progress(Progress("uncached", len(self._uncached), len(self.calls)))
            # With every step full the hooks only count and record, and the result is the uncached one to the last bit.
            every = CacheConfig(N=1, schedule="auto", cut=self.cut, axis=self.settings.axis)
            result, session, report = self._made(index, every)
            steps = max(len(stream["full"]) for stream in report["streams"])
            if self.run_steps not in (0, steps):
                raise ValueError(
                    f"all calls must have the same number of steps: calls[{index}] has {steps}, others "
                    f"have {self.run_steps}"
                )
            self.run_steps = steps
            self._uncached[index] = result
            if self._recorded is None:
                self._recorded = session.recorded
            else:
                for recording in session.recorded.calibration.recordings.values():
                    self._recorded.calibration.add(recording)  # averaged with what was before
        return self._uncached[index]

    def worth(self, candidate: Candidate, index: int, uncached: Tensor) -> tuple[float, float | None]:
        """The metric of a call with a candidate's cache on, and how many times fewer operations it took."""
        result, _, report = self._made(index, settings_of(candidate, self.run_steps, self.settings))
        if result.shape != uncached.shape:
            raise ValueError(
                f"results must have one shape, got {tuple(result.shape)} with the cache and {tuple(uncached.shape)} "
                "without"
            )
        region = self._regions[index]
        value = float(self.metric(result, uncached) if region is None else self.metric(result, uncached, region))
        if value != value:
            raise ValueError(f"the metric gave {value} for calls[{index}]: results must be finite")
        return value, report["flops_ratio"]

    def recorded(self, full_steps: int, choices: Choices) -> tuple[Candidate, float] | None:
        """What recordings of the uncached calibration calls say is best, and its error; None if they tell nothing."""
        for index in self.calibration:
            self.uncached(index)
        orders = [order for order in choices.orders if 1 <= order <= 3]
        forecasters = [name for name in choices.forecasters if name in ("newton", "taylor")]
        if self._recorded is None or not orders or not forecasters:
            return None
        choice = self._recorded.best(full_steps, orders, forecasters)
        if choice is None or len(choice.steps) != full_steps:
            return None
        return Candidate(choice.steps, choice.order, choices.cuts[0], choice.forecaster), choice.error

    def _made(self, index: int, config: CacheConfig) -> tuple[Tensor, Session, dict[str, Any]]:
        """A call with these settings: its result, and the session and report of its cache."""
        call = self.calls[index]
        with (
            apply(self.target, config, **self._options) as session,
            same_noise(call, self.seed + index, next(self.unet.parameters(), torch.empty(0)).device),
        ):
            result = as_tensor(self._run(**call))
            report = session.report().to_dict()
        if not report["streams"]:
            raise ValueError("run made no call of the UNet that could be told to belong to a denoising loop")
        return result, session, report


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


@dataclass
class Score:
    """What a candidate reached on the calls it was run on, in their order."""

    values: list[float]
    flops_ratio: float | None = None


class TrialLog:
    """A text file of what was measured, a JSON object a line; the first names the problem. None: nothing is kept.

    A line that a kill cut off is dropped. ValueError for a file of another problem.
    """

    def __init__(self, path: Path | None, problem: str):
        self._path = path
        self.scores: dict[str, Score] = {}
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
                self.scores[entry["key"]] = Score(entry["values"], entry["flops_ratio"])
        if len(whole) != len(lines) or not whole:
            path.write_text("".join(whole) or json.dumps(head) + "\n", encoding="utf-8")

    def put(self, key: str, score: Score) -> None:
        self.scores[key] = score
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **asdict(score)}) + "\n")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


class Exhausted(Exception):
    """The bound on trials is reached."""


@dataclass
class Trials:
    """Says what a candidate is worth: the mean of the metric over calls, against their uncached runs.

    bound, minutes: how much may be tried. Trials found in the journal count too, so that a resumed search ends where it
    would. start: what was reached first.
    """

    tuning: Tuning
    bound: int | None = None
    minutes: float | None = None
    made: int = 0
    start: float | None = None
    _began: float = field(default_factory=time.monotonic)
    _best: dict[int, tuple[Candidate, Score]] = field(default_factory=dict)

    def __call__(self, candidate: Candidate) -> float:
        """The mean over the calibration calls; for one that is clearly behind the best with as many full steps, an
        estimate after fewer calls. Raises Exhausted at the bound.
        """
        late = self.minutes is not None and time.monotonic() - self._began >= 60 * self.minutes
        if late or (self.bound is not None and self.made >= self.bound):
            raise Exhausted
        self.made += 1
        count = len(candidate.steps)
        best = self._best.get(count)
        score = self.score(candidate, "calibration", rival=None if best is None else best[1].values)
        if best is None or len(score.values) == len(self.tuning.calibration):
            value = mean(score.values)
            if best is None or value > mean(best[1].values):
                self._best[count] = best = candidate, score
        else:
            value = mean(best[1].values) - _behind(score.values, best[1].values)
        shown, reached = best
        self.start = mean(reached.values) if self.start is None else self.start
        self.tuning.on_progress(Progress("trial", self.made, self.bound, mean(reached.values), self.start, shown))
        return value

    def score(
        self, candidate: Candidate, kind: Literal["calibration", "check"], rival: Sequence[float] | None = None
    ) -> Score:
        """The figures of a candidate on the calibration calls, or on those that the search never saw.

        rival: figures of a better one; where they are out of reach, further calls are left out.
        """
        indices = self.tuning.calibration if kind == "calibration" else self.tuning.unseen
        key = json.dumps([kind, *asdict(candidate).values()])
        score = self.tuning.log.scores.get(key) or Score([])
        values, flops_ratio = list(score.values), score.flops_ratio
        while len(values) < len(indices):
            if rival is not None and values and _behind(values, rival) > GIVE_UP:
                break
            index = indices[len(values)]
            uncached = self.tuning.uncached(index)
            if kind == "check":
                self.tuning.on_progress(Progress("check", len(values), len(indices), None, self.start, candidate))
            value, flops_ratio = self.tuning.worth(candidate, index, uncached)
            values.append(value)
        if values != score.values:
            score = Score(values, flops_ratio)
            self.tuning.log.put(key, score)
        return score


def _behind(values: Sequence[float], rival: Sequence[float]) -> float:
    """By how much the first calls of one are behind those of another, on average."""
    return mean([b - a for a, b in zip(values, rival, strict=False)])

"""Runs that are compared: uncached ones made once, trials of settings against them, a journal of both figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ticache.calls import Outcome
from ticache.fidelity import Metric, mean
from ticache.progress import OnProgress, Progress
from ticache.search import Candidate, Exhausted

GIVE_UP = 0.5  # in the metric's unit: a trial that is on average so far behind the best is not run on further calls

# Makes the call of that index with a candidate's cache on; None: every step full.
RunCall = Callable[[int, Candidate | None], Outcome]


@dataclass
class Score:
    """What a candidate reached on the calls it was run on, in their order."""

    values: list[float]
    flops_ratio: float | None = None


class References:
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


class Journal:
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
class Bound:
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
    references: References
    calibration: Sequence[int]
    check: Sequence[int]
    metric: Callable[[Tensor, Tensor, int], float]
    journal: Journal
    bound: Bound
    on_progress: OnProgress
    late: float | None = None
    _best: dict[int, tuple[Candidate, Score]] = field(default_factory=dict)

    def __call__(self, candidate: Candidate) -> float:
        """The mean over the calibration calls; for one that is clearly behind the best with as many full steps, an
        estimate after fewer calls. Raises Exhausted at the bound.
        """
        self.bound.take()
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
        self.late = mean(reached.values) if self.late is None else self.late
        self.on_progress(Progress("trial", self.bound.made, self.bound.trials, mean(reached.values), self.late, shown))
        return value

    def calibrated(self, candidate: Candidate) -> Score:
        """The figures of a candidate on every calibration call, whatever it costs."""
        return self._measure(candidate, self.calibration, "calibration", None)

    def checked(self, candidate: Candidate) -> Score:
        """The figures of a candidate on the calls that the search never saw."""
        return self._measure(candidate, self.check, "check", None)

    def _measure(self, candidate: Candidate, indices: Sequence[int], kind: str, rival: Sequence[float] | None) -> Score:
        key = json.dumps([kind, *asdict(candidate).values()])
        score = self.journal.get(key) or Score([])
        values = list(score.values)
        flops_ratio = score.flops_ratio
        while len(values) < len(indices):
            if rival is not None and values and _behind(values, rival) > GIVE_UP:
                break
            index = indices[len(values)]
            reference = self.references[index]
            if kind == "check":
                self.on_progress(Progress("check", len(values), len(indices), None, self.late, candidate))
            outcome = self.run(index, candidate)
            values.append(self.metric(outcome.result, reference, index))
            flops_ratio = outcome.flops_ratio
        if values != score.values:
            score = Score(values, flops_ratio)
            self.journal.put(key, score)
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

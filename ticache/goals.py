"""What a search is for: the best fidelity at a number of full steps, or the fewest full steps that keep one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ticache.fidelity import mean
from ticache.search import Candidate, Choices, Climb, Exhausted, fewest_late, resampled
from ticache.trials import Trials


class Search:
    """One tuning: climbs at one number of full steps or at several, until done, bounded or interrupted."""

    def __init__(
        self,
        trials: Trials,
        choices: Choices,
        seed: int,
        target: float | None,
        full_steps: int | None,
        hints: Iterable[Sequence[int]],
    ):
        assert trials.references.num_steps is not None
        self.num_steps: int = trials.references.num_steps
        if full_steps is not None and full_steps > self.num_steps:
            raise ValueError(f"full_steps must be at most the run's {self.num_steps} steps, got {full_steps}")
        self.notes: list[str] = []
        self._trials, self._choices, self._seed = trials, choices, seed
        self._target, self._full_steps, self._hints = target, full_steps, hints
        self._climbs: dict[int, Climb] = {}
        self._interrupted = False

    def run(self) -> None:
        """Search. Ctrl-C ends it; before the first trial there is nothing to return, so it goes on to the caller."""
        try:
            if self._full_steps is not None:
                self._climb(self._full_steps).run(hints=self._hints)
            else:
                self._find_fewest()
        except Exhausted:
            self.notes.append(f"the bound was reached after {self._trials.bound.made} trials")
        except KeyboardInterrupt:
            self._interrupted = True
        if all(math.isinf(climb.value) for climb in self._climbs.values()):
            if self._interrupted:
                raise KeyboardInterrupt
            raise ValueError("no trial was made: allow at least one in trials= or more minutes=")

    @property
    def best(self) -> Candidate:
        """The fewest full steps that reach the target; where none does (or none is set), the best fidelity."""
        tried = {count: climb for count, climb in self._climbs.items() if not math.isinf(climb.value)}
        if self._target is not None:
            reached = [count for count, climb in tried.items() if climb.value >= self._target]
            if reached:
                return tried[min(reached)].best
            if not self._interrupted:
                return self._choices.start(tuple(range(self.num_steps)))
        return max(tried.values(), key=lambda climb: climb.value).best

    def figures(self) -> dict[str, Any]:
        """Figures of the best, of the late schedule and of one full step fewer; notes what falls short."""
        best = self.best
        count = len(best.steps)
        late = Climb(count, self.num_steps, self._trials, self._choices).best
        rows = {"tuned": best, "late": late}
        fewer = self._climbs.get(count - 1)
        if self._target is not None and fewer is not None and not math.isinf(fewer.value):
            rows["fewer"] = fewer.best
        figures: dict[str, Any] = {name: {"calibration": None, "check": None} for name in rows}
        flops_ratio = None
        try:
            for name, candidate in rows.items():
                score = self._trials.calibrated(candidate)
                figures[name]["calibration"] = round(mean(score.values), 3)
                if name == "tuned":
                    flops_ratio = score.flops_ratio
                if self._trials.check and not self._interrupted:
                    figures[name]["check"] = round(mean(self._trials.checked(candidate).values), 3)
        except KeyboardInterrupt:
            self._interrupted = True
        self._note(figures["tuned"])
        return {
            **figures,
            "full_steps": count,
            "flops_ratio": None if flops_ratio is None else round(flops_ratio, 3),
            "calibration_calls": len(self._trials.calibration),
            "check_calls": len(self._trials.check),
        }

    def _note(self, tuned: dict[str, Any]) -> None:
        if self._interrupted:
            self.notes.append("interrupted: this is the best so far")
        if tuned["check"] is None:
            self.notes.append("not checked on calls that the search did not see")
        elif self._target is not None and tuned["check"] < self._target:
            short = self._target - tuned["check"]
            self.notes.append(f"the check falls {short:.2f} short of the target {self._target:g}")

    def _climb(self, count: int) -> Climb:
        if count not in self._climbs:
            self._climbs[count] = Climb(count, self.num_steps, self._trials, self._choices, seed=self._seed)
        return self._climbs[count]

    def _find_fewest(self) -> None:
        """Bisect on the late schedule, then tune below while that reaches the target; what is left polishes."""
        target, bound = self._target, self._trials.bound
        assert target is not None
        count = fewest_late(self.num_steps, lambda count: self._climb(count).start() >= target)
        if count == self.num_steps:
            self._climb(count).start()
        while count > 1:
            left = math.inf if bound.trials is None else max(3, (bound.trials - bound.made) * 2 // 3)
            hint = resampled(self._climb(count).best.steps, count - 1, self.num_steps)
            if not self._climb(count - 1).run(goal=target, limit=left, hints=[hint]):
                break
            count -= 1
        below = self._climbs.get(count - 1)
        self._climb(count).run(hints=[resampled(below.best.steps, count, self.num_steps)] if below else [])

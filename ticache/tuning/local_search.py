"""Where to look for better full steps: pure functions over schedules; whoever calls them says what a schedule is worth.

Whole runs are all that counts: the errors of early steps heal and those of late ones do not, so what a feature's
prediction misses at a step tells little about the picture. The search starts where recorded runs say (from the late
schedule where nothing is recorded), and moves one full step at a time by one or two places, keeping what is better.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from ticache.schedule import late_steps_of
from ticache.tuning.metrics import mean
from ticache.tuning.trials import Candidate, Choices, Exhausted, Trials

HOPELESS = 0.5  # in the metric's unit: where one place loses more than this, two places in that direction are not tried


Evaluate = Callable[[Candidate], float]  # more is better; raises Exhausted


class LocalSearch:
    """The search at one number of full steps. `best` and `value` are the best so far, also after an interruption."""

    def __init__(
        self,
        count: int,
        num_steps: int,
        evaluate: Evaluate,
        choices: Choices,
        *,
        begin: Candidate | None = None,
        seed: int = 0,
    ):
        self.best = begin or choices.start(late_steps_of(count, num_steps))
        self.value = -math.inf
        self._num_steps = num_steps
        self._evaluate = evaluate
        self._choices = choices
        self._random = random.Random(f"{seed} {count}")  # text: the same on every platform
        self._values: dict[Candidate, float] = {}
        self._left = math.inf

    @property
    def tried(self) -> bool:
        """Was anything tried?"""
        return self.value > -math.inf

    def start(self) -> float:
        """The value of where the search begins."""
        self._attempt(self.best)
        return self.value

    def run(self, *, goal: float = math.inf, limit: float = math.inf, hints: Iterable[Sequence[int]] = ()) -> bool:
        """Search until nothing near is better, `goal` is reached or `limit` trials are spent. -> is the goal reached?

        hints: schedules worth a trial, such as what was found for another number of steps.
        """
        self._left = limit
        try:
            self.start()
            for steps in hints:
                if self.value < goal and len(steps) == len(self.best.steps):
                    self._attempt(replace(self.best, steps=tuple(steps)))
            self._vary(goal)
            changed = False
            while self.value < goal and self._round(goal):
                changed = True
            if changed:
                self._vary(goal)
        except _Spent:
            pass
        return self.value >= goal

    def _vary(self, goal: float) -> None:
        for variant in self._choices.variants(self.best):
            if self.value >= goal:
                return
            self._attempt(variant)

    def _round(self, goal: float) -> bool:
        """Every move once: of one full step by one place or two, then of neighbours by one. -> was anything changed?"""
        inner = range(1, len(self.best.steps) - 1)
        singles = [(index, index, way) for index in inner for way in (-1, 1)]
        blocks = [(first, last, way) for first in inner for last in inner if last > first for way in (-1, 1)]
        self._random.shuffle(singles)
        self._random.shuffle(blocks)
        if len(self.best.steps) > 1:
            singles.append((len(inner) + 1, len(inner) + 1, -1))  # the last step is worth most where it is
        changed = False
        for first, last, way in (*singles, *blocks):
            for distance in (1, 2) if first == last else (1,):
                before = self.value
                # A move that helped is made again from where it led.
                while self.value < goal and self._attempt(self._moved(first, last, way * distance)):
                    changed = True
                if self.value >= goal:
                    return changed
                tried = self._values.get(self._moved(first, last, way * distance))
                if self.value > before or (tried is not None and self.value - tried > HOPELESS):
                    break
        return changed

    def _moved(self, first: int, last: int, by: int) -> Candidate:
        """The best with full steps moved; itself where one would leave the run or meet another."""
        steps = self.best.steps
        moved = [step + by for step in steps[first : last + 1]]
        room = {*steps[:first], *steps[last + 1 :]}
        if not 0 < moved[0] <= moved[-1] < self._num_steps or room & set(moved):
            return self.best
        return replace(self.best, steps=tuple(sorted({*room, *moved})))

    def _attempt(self, candidate: Candidate) -> bool:
        """Is a candidate not tried before better than the best? Then it is the best."""
        if candidate in self._values:
            return False
        if self._left <= 0:
            raise _Spent
        self._left -= 1
        value = self._values[candidate] = self._evaluate(candidate)
        if value <= self.value:
            return False
        self.best, self.value = candidate, value
        return True


class _Spent(Exception):
    """One local search's own limit is reached."""


def fewest(num_steps: int, reaches: Callable[[int], bool], guess: Callable[[], int | None] = lambda: None) -> int:
    """The smallest number of full steps that `reaches` the target; T, which is exact, needs no trial.

    guess: where it may be, from what was tried so far. Without one bisection on a logarithmic scale: fidelity grows
    with the number of full steps, and few are wanted.
    """
    low, high = 0, num_steps
    while high - low > 1:
        middle = guess() or math.floor(math.sqrt(max(low, 1) * high))
        middle = min(max(middle, low + 1), high - 1)
        if reaches(middle):
            high = middle
        else:
            low = middle
    return high


def resampled(steps: Sequence[int], count: int, num_steps: int) -> tuple[int, ...]:
    """`count` full steps distributed as `steps` are: read off the line through them."""
    if len(steps) < 2 or count < 2:
        return late_steps_of(count, num_steps)
    taken: list[int] = []
    for j in range(count):
        at = j * (len(steps) - 1) / (count - 1)
        below = min(math.floor(at), len(steps) - 2)
        wanted = math.floor(steps[below] + (at - below) * (steps[below + 1] - steps[below]) + 0.5)
        taken.append(min(max(wanted, taken[-1] + 1 if taken else 0), num_steps - count + j))
    return tuple(taken)


@dataclass(eq=False)
class GoalSearch:
    """One tuning: local searches at one number of full steps or several, until done, out of budget or interrupted."""

    trials: Trials
    choices: Choices
    target: float | None
    full_steps: int | None
    hints: Iterable[Sequence[int]] = ()
    notes: list[str] = field(default_factory=list)
    _searches: dict[int, LocalSearch] = field(default_factory=dict)
    _interrupted: bool = False

    def __post_init__(self) -> None:
        tuning = self.trials.tuning
        self.num_steps = tuning.run_steps
        if self.full_steps is not None and self.full_steps > self.num_steps:
            raise ValueError(f"full_steps must be at most the run's {self.num_steps} steps, got {self.full_steps}")
        self._recorded = lru_cache(partial(tuning.recorded, choices=self.choices))

    def run(self) -> None:
        """Search. Ctrl-C ends it; before the first trial there is nothing to return, so it goes on to the caller."""
        try:
            if self.full_steps is not None:
                self._search(self.full_steps).run(hints=self.hints)
            else:
                self._find_fewest()
        except Exhausted:
            self.notes.append(f"the bound was reached after {self.trials.made} trials")
        except KeyboardInterrupt:
            self._interrupted = True
        if not self._tried():
            if self._interrupted:
                raise KeyboardInterrupt
            raise ValueError("no trial was made: allow at least one in trials= or more minutes=")

    @property
    def best(self) -> Candidate:
        """The fewest full steps that reach the target; where none does (or none is set), the best fidelity."""
        tried = self._tried()
        if self.target is not None:
            reached = [count for count, search in tried.items() if search.value >= self.target]
            if reached:
                return tried[min(reached)].best
            if not self._interrupted:
                return self.choices.start(tuple(range(self.num_steps)))
        return max(tried.values(), key=lambda search: search.value).best

    def _tried(self) -> dict[int, LocalSearch]:
        return {count: search for count, search in self._searches.items() if search.tried}

    def figures(self) -> dict[str, Any]:
        """Figures of the best, of the late schedule and of one full step fewer; notes what falls short."""
        best = self.best
        count = len(best.steps)
        rows = {"tuned": best, "late": self.choices.start(late_steps_of(count, self.num_steps))}
        if self.target is not None and count - 1 in self._tried():
            rows["fewer"] = self._searches[count - 1].best
        figures: dict[str, Any] = {name: {"calibration": None, "check": None} for name in rows}
        flops_ratio = None
        try:
            for name, candidate in rows.items():
                score = self.trials.score(candidate, "calibration")
                figures[name]["calibration"] = round(mean(score.values), 3)
                if name == "tuned":
                    flops_ratio = score.flops_ratio
                if self.trials.tuning.unseen and not self._interrupted:
                    figures[name]["check"] = round(mean(self.trials.score(candidate, "check").values), 3)
        except KeyboardInterrupt:
            self._interrupted = True
        check = figures["tuned"]["check"]
        if self._interrupted:
            self.notes.append("interrupted: this is the best so far")
        if check is None:
            self.notes.append("not checked on calls that the search did not see")
        elif self.target is not None and check < self.target:
            self.notes.append(f"the check falls {self.target - check:.2f} short of the target {self.target:g}")
        return {
            **figures,
            "full_steps": count,
            "flops_ratio": None if flops_ratio is None else round(flops_ratio, 3),
            "calibration_calls": len(self.trials.tuning.calibration),
            "check_calls": len(self.trials.tuning.unseen),
        }

    def _search(self, count: int) -> LocalSearch:
        if count not in self._searches:
            found = self._recorded(count)
            begin = None if found is None else found[0]
            seed = self.trials.tuning.seed
            self._searches[count] = LocalSearch(
                count, self.num_steps, self.trials, self.choices, begin=begin, seed=seed
            )
        return self._searches[count]

    def _find_fewest(self) -> None:
        """Find how many reach the target untuned, then tune below while that does too; what is left polishes."""
        target, trials = self.target, self.trials
        assert target is not None
        count = fewest(self.num_steps, lambda count: self._search(count).start() >= target, self._guess)
        if count == self.num_steps:
            self._search(count).start()
        while count > 1:
            left = math.inf if trials.bound is None else max(3, (trials.bound - trials.made) * 2 // 3)
            hint = resampled(self._search(count).best.steps, count - 1, self.num_steps)
            if not self._search(count - 1).run(goal=target, limit=left, hints=[hint]):
                break
            count -= 1
        below = self._searches.get(count - 1)
        self._search(count).run(hints=[resampled(below.best.steps, count, self.num_steps)] if below else [])

    def _guess(self) -> int | None:
        """How many full steps should reach the target, if fidelity follows the recorded error from the last trial."""
        tried = self._tried()
        last = next(reversed(tried), 0)
        if not last or self.target is None or not self._recorded_error(last):
            return None
        wanted = self._recorded_error(last) * 10 ** ((tried[last].value - self.target) / 10)
        return bisect_left(range(self.num_steps), True, lo=1, key=lambda count: self._recorded_error(count) <= wanted)

    def _recorded_error(self, count: int) -> float:
        found = self._recorded(count)
        return 0.0 if found is None else found[1]

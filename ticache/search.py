"""Where to look for better full steps: pure functions over schedules; whoever calls them says what a schedule is worth.

Whole runs are all that counts: the errors of early steps heal and those of late ones do not, so what a feature's
prediction misses at a step tells little about the picture. The search starts from the late schedule, finds how late it
should be, and then moves one full step at a time by one or two places, keeping what is better.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ticache.schedule import LATE_EXPONENT, late_steps_of

HALVINGS = 2  # of how much later or earlier the whole schedule is stretched, from 0.5 of the exponent on
HOPELESS = 0.5  # in the metric's unit: where one place loses more than this, two places in that direction are not tried


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


class Exhausted(Exception):
    """The bound on trials is reached."""


Evaluate = Callable[[Candidate], float]  # more is better; raises Exhausted


class Climb:
    """The search at one number of full steps. `best` and `value` are the best so far, also after an interruption."""

    def __init__(self, count: int, num_steps: int, evaluate: Evaluate, choices: Choices, *, seed: int = 0):
        self.best = choices.start(late_steps_of(count, num_steps))
        self.value = -math.inf
        self._num_steps = num_steps
        self._evaluate = evaluate
        self._choices = choices
        self._random = random.Random(f"{seed} {count}")  # text: the same on every platform
        self._values: dict[Candidate, float] = {}
        self._left = math.inf

    def start(self) -> float:
        """The value of the late schedule."""
        self._attempt(self.best)
        return self.value

    def run(self, *, goal: float = math.inf, limit: float = math.inf, hints: Iterable[Sequence[int]] = ()) -> bool:
        """Climb until nothing near is better, `goal` is reached or `limit` trials are spent. -> is the goal reached?

        hints: schedules worth a trial, such as what was found for another number of steps.
        """
        self._left = limit
        try:
            self.start()
            for steps in hints:
                if self.value < goal and len(steps) == len(self.best.steps):
                    self._attempt(replace(self.best, steps=tuple(steps)))
            self._stretch(goal)
            self._vary(goal)
            if self._move(goal):
                self._vary(goal)
        except _Spent:
            pass
        return self.value >= goal

    def _stretch(self, goal: float) -> None:
        """Find how late the full steps should lie as a whole: ever smaller changes of the exponent, either way."""
        exponent = LATE_EXPONENT
        for distance in (0.5 / 2**halving for halving in range(1, HALVINGS + 1)):
            for way in (-1, 1):
                while self.value < goal:
                    moved = exponent + way * distance
                    steps = late_steps_of(len(self.best.steps), self._num_steps, moved)
                    if moved <= 0.5 or not self._attempt(replace(self.best, steps=steps)):
                        break
                    exponent = moved

    def _vary(self, goal: float) -> None:
        for variant in self._choices.variants(self.best):
            if self.value >= goal:
                return
            self._attempt(variant)

    def _move(self, goal: float) -> bool:
        """Move single full steps until a whole round changes nothing. -> was anything changed?"""
        changed = False
        while self.value < goal and self._round(goal):
            changed = True
        return changed

    def _round(self, goal: float) -> bool:
        """Every move once: of one full step by one place or two, then of neighbours together by one."""
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
        better = value > self.value
        if better:
            self.best, self.value = candidate, value
        return better


class _Spent(Exception):
    """One climb's own limit is reached."""


def fewest_late(num_steps: int, reaches: Callable[[int], bool]) -> int:
    """The smallest number of full steps whose late schedule `reaches` the target; T, which is exact, needs no trial.

    Bisection on a logarithmic scale: fidelity grows with the number of full steps, and few are wanted.
    """
    low, high = 0, num_steps
    while high - low > 1:
        middle = min(max(math.floor(math.sqrt(max(low, 1) * high)), low + 1), high - 1)
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

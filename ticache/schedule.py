"""Which steps are computed in full, and from which step prediction covers every token. Pure: no tensor, no model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence

LATE_EXPONENT = 1.5
SPREAD_EXPONENT = 1.05  # over samplers and guidance: docs/schedules.md
Schedule = str | Callable[..., bool]


def uniform_steps(num_steps: int, N: int) -> tuple[int, ...]:
    """Every N-th of `num_steps` steps, from the first: t mod N = 0 (Eq. 4, Follow-Your-Emoji-Faster)."""
    return tuple(range(0, num_steps, N))


def late_steps(num_steps: int, N: int, exponent: float = LATE_EXPONENT) -> tuple[int, ...]:
    """n = ceil(T / N) full steps, denser towards the end, the first and (from n = 2) the last among them.

    t_j = (T - 1) (1 - (1 - j / (n - 1))^exponent) for j = 0..n-1, rounded half up; a step already taken moves to the
    nearest free one (the earlier of two equally near). n = T is every step, n = 1 is step 0.
    """
    return late_steps_of(-(-num_steps // N), num_steps, exponent)


def spread_steps(num_steps: int, N: int) -> tuple[int, ...]:
    """n = ceil(T / N) full steps, nearly evenly spread over the whole run, the first and the last among them."""
    return late_steps_of(-(-num_steps // N), num_steps, SPREAD_EXPONENT)


def late_steps_of(count: int, num_steps: int, exponent: float = LATE_EXPONENT) -> tuple[int, ...]:
    """`count` full steps of `num_steps` as `late_steps` places them; an exponent of 1 spreads them evenly."""
    if count <= 1:
        return (0,) if num_steps else ()
    taken: set[int] = set()
    for j in range(count):
        wanted = math.floor((num_steps - 1) * (1 - (1 - j / (count - 1)) ** exponent) + 0.5)
        taken.add(_nearest_free(wanted, taken, num_steps))
    return tuple(sorted(taken))


def map_steps(steps: Sequence[int], num_steps: int, onto: int) -> tuple[int, ...]:
    """Full steps of a run of `num_steps` steps, at the same shares of a run of `onto`: t (T' - 1) / (T - 1).

    Rounded half up; a step already taken moves to the nearest free one. A run with no more steps is full.
    """
    if len(steps) >= onto:
        return tuple(range(onto))
    taken: set[int] = set()
    for step in sorted(steps):
        wanted = math.floor(step * (onto - 1) / max(num_steps - 1, 1) + 0.5)
        taken.add(_nearest_free(min(wanted, onto - 1), taken, onto))
    return tuple(sorted(taken))


def _nearest_free(wanted: int, taken: set[int], num_steps: int) -> int:
    for distance in range(num_steps):
        for step in (wanted - distance, wanted + distance):
            if 0 <= step < num_steps and step not in taken:
                return step
    raise AssertionError("there are never more full steps than steps")


def boundary_step(boundary: float | int, num_steps: int | None) -> int:
    """G, the step from which prediction covers every token: an int as it is, a fraction of T rounded up.

    0.72 of 30 steps is 22. `num_steps` may be None where `boundary` is an int.
    """
    if isinstance(boundary, int):
        return boundary
    if num_steps is None:
        raise ValueError(f"boundary={boundary} is a fraction of the number of steps, which is unknown; pass num_steps=")
    # Rounded first, so that 0.1 * 30 = 3.0000000000000004 is 3.
    return math.ceil(round(boundary * num_steps, 9))


class FullSteps:
    """Answers, for one stream of `num_steps` steps (None: unknown), which of them are computed in full."""

    def __init__(
        self,
        num_steps: int | None,
        *,
        N: int,
        schedule: Schedule = "spread",
        steps: Sequence[int] | None = None,
        warmup: int = 0,
    ):
        self.num_steps = num_steps
        self._N = N
        self._warmup = warmup
        self._rule = schedule if callable(schedule) else None
        self._steps: frozenset[int] | None = None
        if steps is not None:
            self._steps = frozenset(steps)
        elif schedule in ("spread", "late"):
            if num_steps is None:
                raise ValueError(f"schedule={schedule!r} needs the number of steps; pass scheduler= or num_steps=")
            self._steps = frozenset((spread_steps if schedule == "spread" else late_steps)(num_steps, N))
        elif schedule != "uniform" and self._rule is None:
            raise ValueError(f"schedule must be 'spread', 'late', 'uniform', steps or a callable, got {schedule!r}")

    def __contains__(self, step: int) -> bool:
        """Is `step` (counted from the stream's first call) full? The first step always is."""
        if step == 0 or step < self._warmup:
            return True
        if self._rule is not None:
            return bool(self._rule(*self._arguments(step)))
        if self._steps is not None:
            return step in self._steps
        return step % self._N == 0

    def any_predicted_after(self, step: int) -> bool:
        """Will a later step be predicted? If not, what this one computes need not be kept."""
        if self.num_steps is None or self._rule is not None:
            return True
        return any(later not in self for later in range(step + 1, self.num_steps))

    def listed(self) -> tuple[int, ...]:
        """Every full step of the stream, in order; empty where the number of steps is unknown."""
        return tuple(step for step in range(self.num_steps or 0) if step in self)

    def _arguments(self, step: int) -> tuple[int | None, ...]:
        assert self._rule is not None
        return (step, self.num_steps) if _positional_parameters(self._rule) >= 2 else (step,)


def _positional_parameters(function: Callable[..., object]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters: Iterable[inspect.Parameter] = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)

"""Which steps are computed in full, and from which step prediction covers every token. Pure: no tensor, no model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence

EXPONENTS = {"late": 1.5, "spread": 1.05}  # over samplers and guidance: docs/schedules.md
Schedule = str | Callable[..., bool]


def steps_of(schedule: str, num_steps: int, N: int) -> tuple[int, ...]:
    """The n = ceil(T / N) full steps of a schedule by name.

    "uniform": t mod N = 0 (Eq. 4, Follow-Your-Emoji-Faster). "late" and "spread": as `late_steps_of`.
    """
    if schedule == "uniform":
        return tuple(range(0, num_steps, N))
    return late_steps_of(-(-num_steps // N), num_steps, EXPONENTS[schedule])


def late_steps_of(count: int, num_steps: int, exponent: float = EXPONENTS["late"]) -> tuple[int, ...]:
    """`count` full steps of `num_steps`, denser towards the end, the first and (from 2 on) the last among them.

    t_j = (T - 1) (1 - (1 - j / (n - 1))^exponent) for j = 0..n-1, rounded half up; a step already taken moves to the
    nearest free one (the earlier of two equally near). n = T is every step, n = 1 is step 0; an exponent of 1 spreads
    them evenly.
    """
    if count <= 1:
        return (0,) if num_steps else ()
    return _placed(((num_steps - 1) * (1 - (1 - j / (count - 1)) ** exponent) for j in range(count)), num_steps)


def map_steps(steps: Sequence[int], num_steps: int, onto: int) -> tuple[int, ...]:
    """Full steps of a run of `num_steps` steps, at the same shares of a run of `onto`: t (T' - 1) / (T - 1).

    Rounded half up; a step already taken moves to the nearest free one. A run with no more steps is full.
    """
    if len(steps) >= onto:
        return tuple(range(onto))
    share = max(num_steps - 1, 1)
    return _placed((min(step * (onto - 1) / share, onto - 1) for step in sorted(steps)), onto)


def _placed(wanted: Iterable[float], num_steps: int) -> tuple[int, ...]:
    taken: set[int] = set()
    for place in wanted:
        step = math.floor(place + 0.5)
        outwards = (near for distance in range(num_steps) for near in (step - distance, step + distance))
        taken.add(next(near for near in outwards if 0 <= near < num_steps and near not in taken))
    return tuple(sorted(taken))


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
        if steps is None and isinstance(schedule, str) and schedule != "uniform":
            if schedule not in EXPONENTS:
                raise ValueError(f"schedule must be 'spread', 'late', 'uniform', steps or a callable, got {schedule!r}")
            if num_steps is None:
                raise ValueError(f"schedule={schedule!r} needs the number of steps; pass scheduler= or num_steps=")
            steps = steps_of(schedule, num_steps, N)
        self._steps = None if steps is None else frozenset(steps)

    def __contains__(self, step: int) -> bool:
        """Is `step` (counted from the stream's first call) full? The first step always is."""
        if step == 0 or step < self._warmup:
            return True
        if self._rule is not None:
            takes_both = _positional_parameters(self._rule) >= 2
            return bool(self._rule(step, self.num_steps) if takes_both else self._rule(step))
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


def _positional_parameters(function: Callable[..., object]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)

"""What happened in a run: steps per stream, times, operations, bytes, fallbacks. Measuring waits for no device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ticache.flops import ShapeWatch, skipped_flops


@dataclass(eq=False)
class CallRecord:
    """One call. kind: of its inputs. events: on a GPU those before and behind it, read only when somebody asks."""

    full: bool
    kind: Any
    host_seconds: float
    events: list[Any] | None
    stream: int
    step: int
    num_steps: int | None

    def seconds(self) -> float:
        """How long it took: on the device where events tell, else by the host's clock."""
        if self.events is not None:
            self.events[1].synchronize()
            self.host_seconds, self.events = self.events[0].elapsed_time(self.events[1]) / 1000, None
        return self.host_seconds


@dataclass
class RunRecord:
    """One run: from the first call of a loop to its last."""

    calls: list[CallRecord] = field(default_factory=list)
    others: Counter[Any] = field(default_factory=Counter)  # calls of no run, all full, by the kind of their inputs
    fallbacks: Counter[str] = field(default_factory=Counter)
    unattributed: Counter[str] = field(default_factory=Counter)
    order_capped: bool = False
    peak_bytes: int = 0

    def count(self, full: bool) -> int:
        """How many calls were full (or predicted)."""
        return sum(call.full == full for call in self.calls) + (self.others.total() if full else 0)

    def seconds(self, full: bool) -> list[float]:
        """How long each full (or predicted) call took."""
        return [call.seconds() for call in self.calls if call.full == full]

    def fewest_steps(self) -> int | None:
        """Of its streams; None where nobody knows."""
        return min((call.num_steps for call in self.calls if call.num_steps is not None), default=None)

    def streams(self) -> list[dict[str, Any]]:
        """`num_steps`, `full` and `predicted` steps of every stream, in the order in which they began."""
        found: dict[int, dict[str, Any]] = {}
        for call in self.calls:
            empty = {"stream": len(found), "num_steps": call.num_steps, "full": [], "predicted": []}
            found.setdefault(call.stream, empty)["full" if call.full else "predicted"].append(call.step)
        return list(found.values())


class Records:
    """The last run and the totals of all."""

    def __init__(self) -> None:
        self.run = RunRecord()
        self.runs = 0
        self.flops: dict[Any, tuple[int, int]] = {}  # of a full and of a predicted call, by the kind of inputs
        self.total_unattributed = 0
        self._earlier = {True: 0, False: 0}

    def begin_run(self) -> None:
        """The calls before this were another run's."""
        for full in self._earlier:
            self._earlier[full] = self.total(full)
        self.run = RunRecord()
        self.runs += 1

    def total(self, full: bool) -> int:
        """Full (or predicted) calls of all runs."""
        return self._earlier[full] + self.run.count(full)

    def unattributed(self, why: str) -> None:
        """Count a call that belongs to nothing known."""
        self.run.unattributed[why] += 1
        self.total_unattributed += 1

    def count_flops(self, kind: Any, watch: ShapeWatch, skipped: Sequence[str]) -> None:
        """Count what `watch` saw during a full call; `skipped` are the modules that a predicted call leaves out."""
        counts = watch.flops()
        total = sum(counts.values())
        self.flops[kind] = total, total - skipped_flops(counts, skipped)

    def flops_of_run(self) -> tuple[int, int]:
        """FLOPs of the run's calls, had all been full, and as they were; zeros for kinds that were not counted."""
        kinds = [(call.full, call.kind) for call in self.run.calls]
        kinds += [(True, kind) for kind in self.run.others.elements()]
        pairs = [(full, *self.flops.get(kind, (0, 0))) for full, kind in kinds]
        return sum(of_full for _, of_full, _ in pairs), sum(a if full else b for full, a, b in pairs)

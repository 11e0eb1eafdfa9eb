"""What happened in a run: steps per stream, times, operations, bytes, fallbacks. Measuring waits for no device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ticache.flops import ShapeWatch, skipped_flops


@dataclass
class StreamRecord:
    """What one stream did in one run."""

    num_steps: int | None
    full: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)


@dataclass
class RunRecord:
    """One run: from the first call of a loop to its last."""

    streams: dict[int, StreamRecord] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)
    unattributed: Counter[str] = field(default_factory=Counter)
    full_calls: int = 0
    predicted_calls: int = 0
    order_capped: bool = False
    flops_full: int = 0
    flops_run: int = 0
    peak_bytes: int = 0
    timers: list[tuple[bool, Timer]] = field(default_factory=list)

    def seconds(self, full: bool) -> list[float]:
        """How long each full (or predicted) call took."""
        return [timer.seconds() for was_full, timer in self.timers if was_full == full]


class Timer:
    """One call's time: the wall clock's, or on a GPU that of two events, read only when somebody asks."""

    def __init__(self, device: torch.device):
        self._device = device
        self._events: Any = None
        self._seconds: float | None = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record(torch.cuda.current_stream(device))
        self._begun = time.perf_counter()

    def stop(self) -> None:
        if self._events is not None:
            self._events[1].record(torch.cuda.current_stream(self._device))
        self._seconds = time.perf_counter() - self._begun

    def seconds(self) -> float:
        if self._events is not None:
            self._events[1].synchronize()
            self._seconds = self._events[0].elapsed_time(self._events[1]) / 1000
            self._events = None
        assert self._seconds is not None
        return self._seconds


class FlopsBook:
    """Operations of a full and of a predicted call, for each combination of input shapes: counted once, from shapes."""

    def __init__(self) -> None:
        self._counts: dict[Any, tuple[int, int]] = {}

    def __contains__(self, key: Any) -> bool:
        return key in self._counts

    def take(self, key: Any, watch: ShapeWatch, skipped: Sequence[str]) -> None:
        """Count what `watch` saw during a full call; `skipped` are the modules that a predicted call leaves out."""
        counts = watch.flops()
        total = sum(counts.values())
        self._counts[key] = total, total - skipped_flops(counts, skipped)

    def get(self, key: Any) -> tuple[int, int]:
        """FLOPs of a full and of a predicted call; zeros where none was seen."""
        return self._counts.get(key, (0, 0))


class Records:
    """The last run and the totals of all."""

    def __init__(self) -> None:
        self.run = RunRecord()
        self.runs = 0
        self.total_full = 0
        self.total_predicted = 0
        self.total_unattributed = 0
        self.flops = FlopsBook()
        self.held_bytes = 0

    def begin_run(self) -> None:
        self.run = RunRecord()
        self.runs += 1

    def unattributed(self, why: str) -> None:
        """Count a call that belongs to nothing known."""
        self.run.unattributed[why] += 1
        self.total_unattributed += 1

    def hold(self, nbytes: int) -> None:
        """Note how many bytes are held now."""
        self.held_bytes = nbytes
        self.run.peak_bytes = max(self.run.peak_bytes, nbytes)

    def add(self, *, full: bool, timer: Timer | None, flops_key: Any) -> None:
        """Count a call that has ended; timer: None for one that is not timed."""
        run = self.run
        run.full_calls += full
        run.predicted_calls += not full
        self.total_full += full
        self.total_predicted += not full
        of_full, of_predicted = self.flops.get(flops_key)
        run.flops_full += of_full
        run.flops_run += of_full if full else of_predicted
        if timer is not None:
            timer.stop()
            run.timers.append((full, timer))

    def add_step(self, number: int, num_steps: int | None, step: int, full: bool) -> None:
        """Note a step of a stream."""
        record = self.run.streams.setdefault(number, StreamRecord(num_steps))
        (record.full if full else record.predicted).append(step)

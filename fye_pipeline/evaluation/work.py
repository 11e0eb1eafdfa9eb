"""Measure many parts, in this process or in several, each kept as soon as it is finished."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from fye_pipeline.progress import logger
from fye_pipeline.storage.run_log import Entry, Journal

Measure = Callable[[str], Entry]
_PARTING = 20.0  # seconds that a process may take to put its model away


class Workshop(Protocol):
    """Opens what measuring needs (model, detector) once a process. It goes to other processes, so it must pickle."""

    def open(self) -> AbstractContextManager[Measure]: ...


def work_off(
    workshop: Workshop,
    names: Sequence[str],
    journal: Journal,
    *,
    jobs: int = 1,
    on_done: Callable[[str, Entry], None] = lambda name, figures: None,
) -> dict[str, Entry]:
    """Measure every part that the journal lacks. -> the figures of all, in the order of `names`.

    jobs: processes; 1 works in this one. Raises ValueError for jobs < 1, RuntimeError with the traceback where a
    process fails or dies; what is finished by then is in the journal.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    waiting = [name for name in names if name not in journal.entries]

    def keep(name: str, figures: Entry) -> None:
        journal.add(name, figures)
        on_done(name, figures)

    if jobs > 1 and len(waiting) > 1:
        _spread(workshop, waiting, min(jobs, len(waiting)), keep)
    elif waiting:
        with workshop.open() as measure:
            for name in waiting:
                keep(name, measure(name))
    return {name: journal.entries[name] for name in names}


def _spread(workshop: Workshop, names: Sequence[str], jobs: int, keep: Callable[[str, Entry], None]) -> None:
    """Several processes take parts from one queue; only this one writes."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of torch and MediaPipe
    parts: Any = context.Queue()
    answers: Any = context.Queue()
    for name in names:
        parts.put(name)
    for _ in range(jobs):
        parts.put(None)
    workers = [context.Process(target=_serve, args=(workshop, parts, answers), daemon=True) for _ in range(jobs)]
    try:
        with _threads(max((os.cpu_count() or 1) // jobs, 1)):
            for worker in workers:
                worker.start()
        left = set(names)
        while left:
            name, figures, failure = _next(answers, workers)
            if failure is not None:
                raise RuntimeError(f"a process failed at {name}:\n{failure}")
            keep(name, figures)
            left.remove(name)
        for worker in workers:  # one that is terminated as it ends leaves its locks behind, with a warning
            worker.join(_PARTING)
    finally:
        started = [worker for worker in workers if worker.pid is not None]
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()


def _next(answers: Any, workers: Sequence[Any]) -> tuple[str, Entry, str | None]:
    """The next answer, or an error where a worker died of something that it could not report."""
    while True:
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            dead = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
            if dead or not any(worker.is_alive() for worker in workers):
                raise RuntimeError(
                    f"a process ended with exit code {dead or 0}; it may lack memory: use fewer"
                ) from None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes started within use so many threads each, unless the user's environment says how many."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(count)
    try:
        yield
    finally:
        del os.environ[name]


def _serve(workshop: Workshop, parts: Any, answers: Any) -> None:
    """One process: measures parts until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends the others
    name = "the start"
    try:
        with workshop.open() as measure:
            for name in iter(parts.get, None):
                answers.put((name, measure(name), None))
    except BaseException:
        answers.put((name, {}, traceback.format_exc()))


class Estimate:
    """Tells once how long the rest takes, where that is long."""

    def __init__(self, total: int, jobs: int, *, worth_saying: float = 120.0) -> None:
        self._total, self._jobs, self._worth = total, jobs, worth_saying
        self._began, self._done, self._told = time.monotonic(), 0, False

    def advance(self) -> None:
        """One part is finished."""
        self._done += 1
        if self._told or self._done < min(self._jobs, self._total):
            return
        self._told = True
        left = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        if left >= self._worth:
            logger.info(f"{self._total - self._done} more take about {left / 60:.0f} minutes")

"""Parts of one piece of work, done here or by several processes, each of which opens its tools (a model) once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import get_context, util
from typing import Any, Generic, TypeVar

import cv2

Part = TypeVar("Part")
Result = TypeVar("Result")
OpenTools = Callable[[], AbstractContextManager[Callable[[Part], Result]]]

_POLL = 0.3  # seconds between two calls of `on_wait`


def run_parts(
    open_tools: OpenTools[Part, Result],
    parts: Sequence[Part],
    jobs: int,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Generator[tuple[Part, Result]]:
    """Do every part; yields it with its result as soon as it is done, with several `jobs` in any order.

    open_tools: gives what does one part; with several processes it is pickled, and so are parts and results. on_wait:
    called now and then while processes work. Closing the generator ends the processes at once. Raises what a part
    raises; ValueError for jobs < 1; RuntimeError where a process dies.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    if min(jobs, len(parts)) <= 1:
        if parts:
            with open_tools() as work:
                for part in parts:
                    yield part, work(part)
        return
    jobs = min(jobs, len(parts))
    with _threads(max((os.cpu_count() or 1) // jobs, 1)):
        # Spawned: a fork would copy the locks of torch's and MediaPipe's threads.
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start, (open_tools,))
        try:
            pending: dict[Future[Result], Part] = {pool.submit(_work, part): part for part in parts}
            while pending:
                done, _ = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
                on_wait()
                for future in done:
                    part = pending.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool as error:
                        raise RuntimeError("a process died; it may lack memory: use fewer jobs") from error
                    yield part, result
            pool.shutdown()  # the processes put their tools away
        finally:
            _end(pool)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes that are still there now."""
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


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


class _Worker(Generic[Part, Result]):
    """A worker process' tools, which are opened by its first part, so that a fault is that part's."""

    def __init__(self) -> None:
        self._open_tools: OpenTools[Part, Result] | None = None
        self._work: Callable[[Part], Result] | None = None

    def start(self, open_tools: OpenTools[Part, Result]) -> None:
        """Called in a new process. Ctrl-C is for the first process, which ends the others."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cv2.setNumThreads(1)
        self._open_tools = open_tools

    def work(self, part: Part) -> Result:
        """Do one part; the tools are put away when the process ends."""
        if self._work is None:
            assert self._open_tools is not None
            tools = ExitStack()
            self._work = tools.enter_context(self._open_tools())
            util.Finalize(None, tools.close, exitpriority=1)
        return self._work(part)


_worker: _Worker[Any, Any] = _Worker()  # an executor's tasks reach nothing of their process but its modules


def _start(open_tools: OpenTools[Any, Any]) -> None:
    _worker.start(open_tools)


def _work(part: Any) -> Any:
    return _worker.work(part)

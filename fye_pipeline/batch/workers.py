"""A manifest's rows in several processes of one machine: each takes the next row as soon as it is free."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from fye_pipeline.animate.session import AnimationSession, check_offload, choose_device
from fye_pipeline.batch.manifest import Options, Summary, Task, carry_out, note_entry
from fye_pipeline.progress import OnProgress, hush_libraries, logger, silent
from fye_pipeline.storage.run_log import Entry, Ledger

_ATTEMPTS = 2  # of a row whose process dies, by the system's hand or its own


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Any
    task: Task | None = None


def run_in_processes(
    tasks: Sequence[Task],
    ledger: Ledger,
    options: Options,
    jobs: int,
    *,
    on_progress: OnProgress = silent,
) -> Summary:
    """As `manifest.run_tasks`, `jobs` rows at once; with several GPUs the processes are dealt out over them.

    A row whose process dies is tried once more, going on where it stopped; then it has failed, and its exit code is
    named.

    Raises:
        UserError: the device is not there.
    """
    check_offload(options.offload, choose_device(options.device))
    summary, attempts = Summary(), Counter[int]()
    waiting, workers = deque(tasks), []
    count = min(jobs, len(tasks))

    def ended(entry: Entry) -> None:
        note_entry(entry, ledger, resume=options.resume or attempts[entry["row"]] > 1)
        logger.info(summary.add(entry))
        done = len(summary.made) + len(summary.kept) + len(summary.failed)
        on_progress("rows", done, len(tasks))

    on_progress("rows", 0, len(tasks))
    try:
        workers = [_start(options, index, count) for index in range(count)]
        while waiting or any(worker.task for worker in workers):
            for index, worker in enumerate(workers):
                if worker.task is None and waiting:
                    workers[index] = _hand_out(worker, waiting.popleft(), attempts, options, index, count)
            busy = {worker.pipe: index for index, worker in enumerate(workers) if worker.task}
            for pipe in wait(list(busy)):
                index = busy[pipe]  # pyright: ignore[reportArgumentType]
                worker = workers[index]
                assert worker.task is not None
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    task, code = worker.task, worker.process.exitcode
                    workers[index] = _start(options, index, count)
                    if attempts[task.number] < _ATTEMPTS:
                        logger.info(f"row {task.number}: its process ended with code {code}; it is tried once more")
                        waiting.appendleft(task)
                    else:
                        reason = f"its process ended with code {code}, twice (out of memory? use a smaller --jobs)."
                        ended({"row": task.number, "output": task.output, "status": "failed", "error": reason})
                    continue
                if kind == "note":
                    logger.info(f"row {worker.task.number}: {content}")
                else:
                    worker.task = None
                    ended(content)
    finally:
        for worker in workers:
            worker.pipe.close()
            if worker.task is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()
    return summary


def _start(options: Options, index: int, count: int) -> _Worker:
    context = get_context("spawn")
    own, other = context.Pipe()
    if options.device == "auto" and torch.cuda.device_count() > 1:
        options = replace(options, device=f"cuda:{index % torch.cuda.device_count()}")
    process = context.Process(target=_work, args=(other, options, count), name=f"fye-{index}")
    process.start()
    other.close()
    return _Worker(process, own)


def _hand_out(worker: _Worker, task: Task, attempts: Counter[int], options: Options, index: int, count: int) -> _Worker:
    """Give a free process a row; one that has died meanwhile is replaced."""
    attempts[task.number] += 1
    try:
        worker.pipe.send((task, attempts[task.number] > 1))
    except OSError:
        worker.process.join()
        worker = _start(options, index, count)
        worker.pipe.send((task, attempts[task.number] > 1))
    worker.task = task
    return worker


def _work(pipe: Connection, options: Options, count: int) -> None:
    """A worker's life: rows come through the pipe, and their ledger lines go back, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that temporary files are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    os.environ.setdefault("GLOG_minloglevel", "2")
    hush_libraries()

    logger.addHandler(_ToParent(pipe))
    with AnimationSession(options.face_landmarker, **options.of_session) as session:
        while True:
            try:
                task, again = pipe.recv()
            except EOFError:
                return
            resume = options.resume or again
            pipe.send(("entry", carry_out(task, session, overwrite=options.overwrite, resume=resume)))


class _ToParent(logging.Handler):
    """Sends a worker's notes through its pipe."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(("note", record.getMessage()))


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on beside a resumed run."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)

"""Measure what a journal lacks, in this process or in several, each part kept as soon as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing

from fye_pipeline.batch.pool import run_parts
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.run_log import Entry, Journal

WORTH_SAYING = 120.0  # seconds of work

Measure = Callable[[str], Entry]


def measure_all(
    open_evaluator: Callable[[], AbstractContextManager[Measure]],
    names: Sequence[str],
    journal: Journal,
    *,
    jobs: int = 1,
    stage: str = "parts",
    on_progress: OnProgress = silent,
    worth_saying: float = WORTH_SAYING,
) -> dict[str, Entry]:
    """Measure every part that the journal lacks. -> the figures of all, in the order of `names`.

    open_evaluator: opens model and detector once a process and gives what measures a part. worth_saying: once it can
    be told how long the rest takes, and that is so many seconds, it is. Raises as `run_parts`; what is finished by
    then is in the journal.
    """
    waiting = [name for name in names if name not in journal.entries]
    on_progress(stage, len(names) - len(waiting), len(names))
    began, told = time.monotonic(), False
    with closing(run_parts(open_evaluator, waiting, jobs)) as measured:
        for done, (name, figures) in enumerate(measured, 1):
            journal.add(name, figures)
            on_progress(stage, len(names) - len(waiting) + done, len(names))
            if "error" in figures:
                logger.info(f"{name} failed: {figures['error']}")
            if not told and done >= min(jobs, len(waiting)):
                told, rest = True, len(waiting) - done
                left = (time.monotonic() - began) / done * rest
                if left >= worth_saying:
                    logger.info(f"{rest} more take about {left / 60:.0f} minutes")
    return {name: journal.entries[name] for name in names}

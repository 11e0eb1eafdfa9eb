"""What every evaluation does: measure what a journal lacks, keep each part at once, and take what is made already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

from fye_pipeline.batch.pool import run_parts
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation.tables import Table
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.files import atomic_target
from fye_pipeline.storage.run_log import Entry, Journal, finished_result, write_result

WORTH_SAYING = 120.0  # seconds of work

Measure = Callable[[str], Entry]


def made_before(
    target: Path | None, conditions: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """What `target` holds, where a run that goes on has nothing left to do. Raises `UserError` as `finished_result`."""
    if target is None or overwrite or not resume:
        return None
    before = finished_result(target, conditions)
    if before is None or before.get("failed"):
        return None
    logger.info(f"{target} was made under the same conditions; nothing to do.")
    return before


def write_with_tables(target: Path, result: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """The result as JSON, and beside it its tables as Markdown."""
    write_result(target, result)
    with atomic_target(target.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")


def telling_errors(measure: Measure) -> Measure:
    """The same, but whatever a part's files do is told in its figures, and the parts after it are measured."""

    def told(name: str) -> Entry:
        try:
            return measure(name)
        except UserError as error:
            text = str(error)
        except Exception as error:  # a foreign file fails in whatever way its bytes lead to
            text = f"{type(error).__name__}: {error}"
        return {"error": " ".join(text.split())}

    return told


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

"""What every evaluation does: measure what a journal lacks, keep each part at once, and take what is made already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fye_pipeline.batch.pool import run_parts
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation.tables import Table
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.files import write_json, write_text
from fye_pipeline.storage.run_log import Entry, Journal, finished_result, journal_path

WORTH_SAYING = 120.0  # seconds of work

Measure = Callable[[str], Entry]


@dataclass(frozen=True)
class Run:
    """How a run is kept. target: the JSON to write, or None. jobs: processes that share the parts.

    resume: keep what was measured before; overwrite: begin anew.
    """

    target: Path | None = None
    jobs: int = 1
    resume: bool = False
    overwrite: bool = False

    def finished(self, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `target` holds, where it may be gone on with. Raises `UserError` as `finished_result`."""
        if self.target is None or self.overwrite or not self.resume:
            return None
        return finished_result(self.target, conditions)

    def made_before(self, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
        """The same, where nothing is left to do."""
        before = self.finished(conditions)
        return None if before is None or before.get("failed") else self.as_it_was(before)

    def as_it_was(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result, with a word that it is an earlier run's."""
        logger.info(f"{self.target} was made under the same conditions; nothing to do.")
        return result

    def journal(self, conditions: Mapping[str, Any]) -> Journal:
        """What keeps the parts until all are there. Raises `UserError` as `Journal`."""
        path = journal_path(self.target)
        return Journal(path, conditions, resume=self.resume, overwrite=self.overwrite)

    def write(self, result: Mapping[str, Any], tables: Sequence[Table] = ()) -> None:
        """Write the result, and beside it its tables as Markdown."""
        if self.target is None:
            return
        write_json(self.target, result)
        if tables:
            write_text(self.target.with_suffix(".md"), "\n".join(table.markdown() for table in tables))


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

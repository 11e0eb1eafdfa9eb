"""What the command line shows: progress bars and notes on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class OnProgress(Protocol):
    """Called as work advances: the stage's name, how much is done, of how much (None: not known)."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


def silent(stage: str, done: int, total: int | None) -> None:
    """An `OnProgress` that shows nothing."""


@dataclass(frozen=True)
class Reporter:
    """One command's voice: `quiet` keeps notes and bars away, `as_json` makes the result one JSON object."""

    quiet: bool = False
    as_json: bool = False
    verbose: bool = False
    _out: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))
    _err: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True, highlight=False))

    def note(self, text: str) -> None:
        """Something worth knowing on the way; on stderr."""
        if not self.quiet:
            self._err.print(text, markup=False)

    def detail(self, text: str) -> None:
        """As `note`, with `-v` only."""
        if self.verbose:
            self.note(text)

    def result(self, text: str, data: dict[str, Any]) -> None:
        """The command's outcome on stdout: `data` as JSON with `--json`, else `text` (nothing with `--quiet`)."""
        if self.as_json:
            print(json.dumps(data, indent=2))
        elif not self.quiet:
            self._out.print(text, markup=False)

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """Bars for as many stages as report; hidden with `--quiet` and where stderr is no terminal."""
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._err, disable=self.quiet or not self._err.is_terminal) as bars:
            tasks: dict[str, TaskID] = {}

            def advance(stage: str, done: int, total: int | None) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield advance


def hush_libraries() -> None:
    """No bars and notes of diffusers and transformers between ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()

"""What a user is told on the way: notes (the logger `fye`), progress bars on stderr, results on stdout."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

logger = logging.getLogger("fye")
logger.setLevel(logging.INFO)  # notes belong into results, whether anybody shows them or not

WORTH_SAYING = 120.0  # seconds of work, and of video


class OnProgress(Protocol):
    """Called as work advances: the stage's name, how much is done, of how much (None: not known)."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


def silent(stage: str, done: int, total: int | None) -> None:
    """An `OnProgress` that shows nothing."""


class _Collector(logging.Handler):
    """Keeps what one thread says."""

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.notes = threading.get_ident(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.notes.append(record.getMessage())


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """The notes of this thread within the block, for the report of what it does; they are shown all the same."""
    collector = _Collector()
    logger.addHandler(collector)
    try:
        yield collector.notes
    finally:
        logger.removeHandler(collector)


class FrameProgress:
    """Tells how far a run over clips of frames is, step by step; and after its first step, how long it may take.

    work: frames of every clip, clip by clip; frames: of the video, which is fewer where clips overlap.
    """

    def __init__(self, stage: str, frames: int, work: int, steps: int, on_progress: OnProgress) -> None:
        self._stage, self._frames, self._work, self._steps = stage, frames, work, steps
        self._on_progress = on_progress
        self._done = self._length = 0
        self._told, self._began = False, time.perf_counter()
        self._tell(0)

    def begin(self, length: int) -> None:
        """A clip of so many frames is being made."""
        self._length, self._began = length, time.perf_counter()

    def step_done(self, step: int, timestep: Any, latents: Any) -> Any:
        """After a denoising step; gives the latents back as they are."""
        if not self._told:
            self._told = True
            seconds = (time.perf_counter() - self._began) / self._length
            note = time_note(self._stage, self._frames, seconds * self._steps * (self._work - self._done))
            if note:
                logger.info(note)
        self._tell(self._length * (step + 1) / self._steps)
        return latents

    def end(self, length: int) -> None:
        """A clip is finished, now or by an earlier process."""
        self._done += length
        self._tell(0)

    def _tell(self, more: float) -> None:
        share = min((self._done + more) / self._work, 1.0)
        self._on_progress(self._stage, int(share * self._frames), self._frames)


def time_note(stage: str, frames: int, seconds: float) -> str | None:
    """A sentence on work that takes long enough for one, as far as its first step tells."""
    if seconds < WORTH_SAYING:
        return None
    about = f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    return f"{stage} {frames} frames takes at most about {about}"


class _Shown(logging.Handler):
    """Notes on a console, as they are."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), markup=False)


@dataclass(frozen=True)
class Reporter:
    """One command's voice: `quiet` keeps notes and bars away, `as_json` makes the result one JSON object."""

    quiet: bool = False
    as_json: bool = False
    verbose: bool = False
    _out: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))
    _err: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True, highlight=False))

    def __post_init__(self) -> None:
        """Notes go to stderr from now on, in place of where the command before had them go."""
        for handler in [each for each in logger.handlers if isinstance(each, _Shown)]:
            logger.removeHandler(handler)
        logger.setLevel(logging.DEBUG if self.verbose else logging.INFO)
        if not self.quiet:
            logger.addHandler(_Shown(self._err))

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

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()

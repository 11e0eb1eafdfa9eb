"""The jobs behind the page: one at a time on each device, in the order in which they came, each can be cancelled."""

from __future__ import annotations

import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.output import AnimationResult
from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.app.controls import OUTPUT, Files
from fye_pipeline.app.pictures import PictureResult, PictureSettings, draw
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.output import GroupResult
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import FolderLock

KEPT_SECONDS = 3600.0  # uploads and results
_SWEEP_EVERY = 300.0
_LOOK_EVERY = 0.2  # seconds between two looks at a job

Result = AnimationResult | GroupResult | PictureResult


@dataclass(frozen=True)
class Waiting:
    """A job in the line. ahead: how many there are before it, those at work included."""

    ahead: int


@dataclass(frozen=True)
class Working:
    """A job at work. total: None where it is not known. seconds_left: of this stage, None where nothing can be said."""

    stage: str
    done: int
    total: int | None
    seconds_left: float | None


@dataclass(frozen=True)
class Finished:
    """A job that is done."""

    result: Result


class Cancelled(Exception):
    """A job was cancelled."""


Event = Waiting | Working | Finished
JobSettings = AnimationSettings | PictureSettings
SettingsOf = Callable[[Files], JobSettings]


def carry_out(settings: JobSettings, output: Path, **options: Any) -> Result:
    """Make what the settings are of: pictures, or the animation of one face or several."""
    if isinstance(settings, PictureSettings):
        return draw(settings, output, **options)
    return settings.runner().animate(settings, output, **options)


def seconds_left(done: int, total: int | None, seconds: float) -> float | None:
    """How long the rest takes where `done` of `total` took `seconds`; None where nothing can be said yet."""
    if not done or not total or done > total:
        return None
    return seconds * (total - done) / done


class JobFolder:
    """Where uploads, inputs and results lie until they are an hour old; nobody else on the machine reads it.

    base: the folder in which each running page has one; those of pages that were killed are deleted. It goes, with
    everything in it, with the `with` block.
    """

    def __init__(self, base: Path) -> None:
        base.mkdir(parents=True, exist_ok=True)
        base.chmod(0o700)
        for dead in base.iterdir():
            with suppress(UserError):  # that page is alive
                FolderLock(dead).release()
                shutil.rmtree(dead, ignore_errors=True)
        self.folder = base / uuid.uuid4().hex
        self._lock = FolderLock(self.folder)
        self.uploads, self.results, self.examples = (self.folder / name for name in ("uploads", "results", "examples"))
        for folder in (self.uploads, self.results, self.examples):
            folder.mkdir()
        self.busy: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sweep(self, now: float | None = None) -> None:
        """Delete what is an hour old and in no job's use: of this page, and of those that were killed."""
        now = time.time() if now is None else now
        for entry in [*self.results.iterdir(), *(path for path in self.uploads.rglob("*") if path.is_file())]:
            with suppress(FileNotFoundError):
                if entry.name not in self.busy and now - entry.stat().st_mtime > KEPT_SECONDS:
                    if entry.is_dir():
                        shutil.rmtree(entry, ignore_errors=True)
                    else:
                        entry.unlink()
        for folder in self.uploads.iterdir():
            with suppress(OSError):  # not empty
                folder.rmdir()


class JobQueue:
    """Runs jobs on sessions, one session a device; jobs wait in one line.

    Args:
        sessions: opened by the caller, who also closes them.
        folder: for inputs and results.
        work: what a job does; another in tests.
    """

    def __init__(
        self, sessions: Sequence[AnimationSession], folder: JobFolder, work: Callable[..., Result] = carry_out
    ) -> None:
        self.folder, self._work = folder, work
        self._free = list(sessions)
        self._line: list[str] = []
        self._running: list[str] = []
        self._lock = threading.Lock()
        self._stop: dict[str, threading.Event] = {}
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, daemon=True)
        self._sweeper.start()

    def ticket(self) -> str:
        """A name for a job to come, by which it can be cancelled from now on."""
        name = uuid.uuid4().hex
        with self._lock:
            self._stop[name] = threading.Event()
        return name

    def cancel(self, ticket: str | None) -> None:
        """Take a job out of the line, or stop it after the denoising step it is at; an ended one stays as it is."""
        stop = self._stop.get(ticket or "")
        if stop is not None:
            stop.set()

    def run(self, ticket: str, files: Files, settings_of: SettingsOf, output: str = OUTPUT) -> Iterator[Event]:
        """Carry a job out, telling how it stands several times a second; it is cancelled when nobody listens any more.

        files: copied first, so that they may go while the job waits. settings_of: given the copies. output: the name
        of the file to make.

        Raises:
            UserError: bad input, in one sentence. Cancelled: it was.
        """
        stop = self._stop.get(ticket)
        if stop is None:
            raise UserError("This job has ended already; begin another.")
        place = self.folder.results / ticket
        self.folder.busy.add(ticket)
        handed_over = False
        try:
            with self._lock:
                self._line.append(ticket)
            place.mkdir()
            settings = settings_of(files.copied(place))
            session = None
            while session is None:
                _check(stop)
                session, ahead = self._next(ticket)
                if session is None:
                    yield Waiting(ahead)
                    stop.wait(_LOOK_EVERY)
            job = _Job(self._work, settings, place / output, session, stop)
            handed_over = True
            job.start(lambda: self._end(ticket, session, keep=job.result is not None))
            yield from job.watch()
        except UserError as error:
            raise UserError(without_folders(str(error), place)) from error
        finally:
            stop.set()
            if not handed_over:
                self._end(ticket, None, keep=False)

    def close(self) -> None:
        """Cancel every job, and wait until none is at work."""
        self._closing.set()
        for stop in list(self._stop.values()):
            stop.set()
        while self._running:
            time.sleep(_LOOK_EVERY)

    def _next(self, ticket: str) -> tuple[AnimationSession | None, int]:
        """A free session where the job's turn has come, and how many jobs are before it."""
        with self._lock:
            ahead = self._line.index(ticket)
            if ahead or not self._free:
                return None, ahead + len(self._running)
            self._line.remove(ticket)
            self._running.append(ticket)
            return self._free.pop(0), 0

    def _end(self, ticket: str, session: AnimationSession | None, *, keep: bool) -> None:
        if not keep:
            shutil.rmtree(self.folder.results / ticket, ignore_errors=True)
        with self._lock:
            if session is not None:
                self._free.append(session)
                self._running.remove(ticket)
            if ticket in self._line:
                self._line.remove(ticket)
            self._stop.pop(ticket, None)
        self.folder.busy.discard(ticket)

    def _sweep(self) -> None:
        while not self._closing.is_set():
            self.folder.sweep()
            self._closing.wait(_SWEEP_EVERY)


class _Job:
    """What is made, in a thread of its own, and what it last told."""

    def __init__(
        self,
        work: Callable[..., Result],
        settings: JobSettings,
        output: Path,
        session: AnimationSession,
        stop: threading.Event,
    ) -> None:
        self._work, self._settings, self._output, self._session = work, settings, output, session
        self._stop, self._ended = stop, threading.Event()
        self._told: Working | None = None
        self._began = ("", 0.0)
        self.result: Result | None = None
        self._error: BaseException | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """Begin; `on_end` is called in the job's thread, however it ends."""

        def carry_out() -> None:
            try:
                self.result = self._work(
                    self._settings, self._output, session=self._session, on_progress=self._on_progress
                )
            except BaseException as error:
                self._error = error
            finally:
                on_end()
                self._ended.set()

        threading.Thread(target=carry_out, daemon=True).start()

    def watch(self) -> Iterator[Event]:
        """What the job tells, until it ends; then the result, or what was raised."""
        while not self._ended.wait(_LOOK_EVERY):
            yield self._told or Working("starting", 0, None, None)
        if self.result is not None:
            yield Finished(self.result)
            return
        if isinstance(self._error, UserError | Cancelled):
            raise self._error
        logger.error(f"a job failed: {self._error!r}")
        raise UserError(f"{type(self._error).__name__}: {self._error}") from self._error

    def _on_progress(self, stage: str, done: int, total: int | None) -> None:
        _check(self._stop)
        now = time.monotonic()
        if self._began[0] != stage:
            self._began = (stage, now)
        self._told = Working(stage, done, total, seconds_left(done, total, now - self._began[1]))


def without_folders(text: str, place: Path) -> str:
    """A text about a job's files, without the folders in which they lie: those are the server's affair."""
    return re.sub(rf"{re.escape(str(place))}[/\\](?:\d+[/\\])?", "", text)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Cancelled("The job was cancelled.")

"""What a search tells of its progress, and to whom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ticache.search import Candidate


@dataclass(frozen=True)
class Progress:
    """How far a search has come, for whoever shows it.

    stage: what runs now; done of total: how much of it (total None: not known). best, late: mean of the calibration
    calls for the best so far and for the late schedule, None before there is one; candidate: the best so far.
    """

    stage: Literal["uncached", "trial", "check"]
    done: int
    total: int | None
    best: float | None = None
    late: float | None = None
    candidate: Candidate | None = None


OnProgress = Callable[[Progress], None]


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """No bars of the pipeline's own between ours."""
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**(before | {"disable": True}))
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


@contextmanager
def shown_to(progress: bool | OnProgress) -> Iterator[OnProgress]:
    """Who is told how far the search has come: nobody, a callable, or a line on a terminal."""
    if callable(progress):
        yield progress
        return
    visible = progress and sys.stderr.isatty()

    def line(at: Progress) -> None:
        if visible:
            sys.stderr.write(f"\r\x1b[K{described(at)}")
            sys.stderr.flush()

    try:
        yield line
    finally:
        if visible:
            sys.stderr.write("\n")


def described(at: Progress) -> str:
    """One line: what runs, how far it is, the best so far."""
    share = f"{at.done}" if at.total is None else f"{at.done}/{at.total}"
    if at.best is None or at.late is None or at.candidate is None:
        return f"tune: {at.stage} {share}"
    steps = ", ".join(map(str, at.candidate.steps))
    return f"tune: {at.stage} {share}, best {at.best:.2f} with {len(at.candidate.steps)} full steps ({steps})"

"""How many of our own files and functions a piece of work runs through, and which files call each other both ways."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>")


@dataclass
class Measured:
    """What ran: functions by file and qualified name, and direct calls from one of our files to another."""

    functions: set[tuple[str, str]] = field(default_factory=set)
    arrows: set[tuple[str, str]] = field(default_factory=set)

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.functions}

    @property
    def mutual(self) -> set[tuple[str, str]]:
        """Pairs of files in which each calls the other."""
        return {(a, b) for a, b in self.arrows if a < b and (b, a) in self.arrows}


def measure(work: Callable[[], Any], *packages: str) -> Measured:
    """Run `work` and note every function of `packages` (folders below the root) that it calls, in every thread.

    What runs at import does not count, nor do comprehensions, which are no functions to a reader.
    """
    measured = Measured()
    names: dict[CodeType, str | None] = {}
    folders = tuple(f"{package}/" for package in packages)

    def file_of(code: CodeType) -> str | None:
        if code not in names:
            path = Path(code.co_filename)
            ours = path.is_relative_to(ROOT) and code.co_name != "<module>"
            relative = path.relative_to(ROOT).as_posix() if ours else ""
            names[code] = relative if relative.startswith(folders) else None
        return names[code]

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        file = file_of(code)
        if file is None or code.co_name in COMPREHENSIONS or not code.co_flags & inspect.CO_OPTIMIZED:
            return  # unoptimised code is a class's body, which runs when the class is defined
        measured.functions.add((file, code.co_qualname))
        caller = frame.f_back
        origin = file_of(caller.f_code) if caller is not None else None
        if origin is not None and origin != file:
            measured.arrows.add((origin, file))

    before = sys.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return measured

"""What a run has finished, one line of JSON each, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from fye_pipeline.errors import UserError

Entry = dict[str, Any]


class Ledger:
    """The rows of a manifest that ended, in a file that several processes share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def made(self) -> set[int]:
        """The numbers of the rows that it calls made."""
        return {entry["row"] for entry in _read_lines(self.path) if entry.get("status") == "made"}

    def append(self, entry: Entry, *, once: bool = False) -> None:
        """Add a line; with `once` not where the row stands there as made."""
        _append_line(self.path, entry, unless=lambda: once and entry["row"] in self.made())


class Journal:
    """Finished parts of one measurement, by name.

    Args:
        path: the file; None keeps nothing.
        conditions: plain values that decide the figures; a journal with others belongs to another run.
        resume: take the entries that are there. overwrite: begin anew.

    Raises:
        UserError: there is a journal and neither is set, or it belongs to another run.
    """

    def __init__(
        self, path: Path | None, conditions: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        if path is None:
            return
        head = {"conditions": _plain(conditions)}
        if path.exists() and not overwrite:
            if not resume:
                raise UserError(
                    f"{path} holds a run that was not finished: pass --resume to go on, or --overwrite to begin anew."
                )
            first, *lines = _read_lines(path) or [{}]
            if first != head:
                raise UserError(f"{path} belongs to a run with other settings: pass --overwrite to begin anew.")
            # What failed is measured again.
            self.entries = {line["name"]: line["figures"] for line in lines if "error" not in line["figures"]}
        if not self.entries:
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def add(self, name: str, figures: Entry) -> None:
        """Keep one finished part."""
        self.entries[name] = figures
        if self.path is not None:
            _append_line(self.path, {"name": name, "figures": figures})

    def close(self) -> None:
        """Remove the file: the result has everything that was in it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def journal_path(result: Path | None) -> Path | None:
    """The journal beside a result."""
    return None if result is None else result.with_name(f"{result.name}.journal.jsonl")


def finished_result(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `path` where that was made under these conditions (it may name more); None where there is none.

    Raises:
        UserError: it was made under others.
    """
    if not path.exists():
        return None
    result = _object_or_none(path.read_text(encoding="utf-8", errors="replace"))
    known = None if result is None else result.get("conditions")
    wanted = _plain(conditions)
    if not isinstance(known, dict) or {name: known.get(name) for name in wanted} != wanted:
        raise UserError(f"{path} was made with other settings; pass --overwrite to replace it.")
    return result


def _append_line(path: Path, entry: Entry, *, unless: Callable[[], bool] = lambda: False) -> None:
    """Add a line that is on the disk when this returns, alone of all processes; nothing where `unless` then says so."""
    with open(path, "a+b") as file:
        lock_descriptor(file.fileno(), poll_interval=0.01)  # freed when the file is closed, also by a kill
        if unless():
            return
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        cut_off = file.read(1) not in (b"\n", b"")  # by a kill while it was written
        file.write(b"\n" * cut_off + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path) -> list[Entry]:
    """The objects of a file's lines, without what a kill cut off; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [entry for entry in map(_object_or_none, lines) if entry is not None]


def _object_or_none(text: str) -> Entry | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back out of JSON."""
    return json.loads(json.dumps(dict(values)))

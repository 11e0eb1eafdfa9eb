"""What has been measured so far, in a file beside the result, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fye_pipeline.errors import UserError
from fye_pipeline.storage.files import atomic_target

Entry = dict[str, Any]


class Journal:
    """Finished parts of one run, by name; each is on the disk before the next begins.

    Args:
        path: the file, one JSON object a line; None keeps nothing.
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
        self._head = json.loads(json.dumps({"conditions": dict(conditions)}))
        if path is None:
            return
        if path.exists() and not overwrite:
            if not resume:
                raise UserError(
                    f"{path} holds a run that was not finished: pass --resume to go on, or --overwrite to begin anew."
                )
            self._read(path)
        if not self.entries:
            path.write_text(json.dumps(self._head) + "\n", encoding="utf-8")

    def _read(self, path: Path) -> None:
        head, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        if _json_or_none(head) != self._head:
            raise UserError(f"{path} belongs to a run with other settings: pass --overwrite to begin anew.")
        for line in lines:
            entry = _json_or_none(line)
            # A line that a kill cut off is measured again, and so is what failed.
            if isinstance(entry, dict) and "error" not in entry["figures"]:
                self.entries[entry["name"]] = entry["figures"]

    def add(self, name: str, figures: Entry) -> None:
        """Keep one finished part."""
        self.entries[name] = figures
        if self.path is None:
            return
        cut = not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * cut + json.dumps({"name": name, "figures": figures}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Remove the file: the result has everything that was in it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def journal_path(result: Path | None) -> Path | None:
    """The journal beside a result."""
    return None if result is None else result.with_name(f"{result.name}.journal.jsonl")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON; the file takes its name when it is complete."""
    with atomic_target(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def finished_result(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `path` where that was made under these conditions (it may name more); None where there is none.

    Raises:
        UserError: it was made under others.
    """
    if not path.exists():
        return None
    result = _json_or_none(path.read_text(encoding="utf-8", errors="replace"))
    known = result.get("conditions") if isinstance(result, dict) else None
    wanted = json.loads(json.dumps(dict(conditions)))
    if not isinstance(known, dict) or {name: known.get(name) for name in wanted} != wanted:
        raise UserError(f"{path} was made with other settings; pass --overwrite to replace it.")
    return result


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None

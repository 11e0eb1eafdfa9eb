"""The record of a manifest's rows: one line of JSON a row that ended, from however many processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Ledger:
    """An append-only file that several processes share; each line is on the disk before the next row begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def made(self) -> set[int]:
        """The numbers of the rows that it calls made; a last line that was cut off by a kill does not count."""
        if not self.path.exists():
            return set()
        return {entry["row"] for entry in _entries(self.path.read_bytes()) if entry.get("status") == "made"}

    def append(self, entry: Entry, *, once: bool = False) -> None:
        """Add a line under a lock; with `once` not where the row stands there as made."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with _locked(handle):
                content = _read(handle)
                if once and any(
                    each.get("row") == entry["row"] and each.get("status") == "made" for each in _entries(content)
                ):
                    return
                cut_off = content and not content.endswith(b"\n")
                os.write(handle, (b"\n" if cut_off else b"") + json.dumps(entry).encode() + b"\n")
                os.fsync(handle)
        finally:
            os.close(handle)


def _entries(content: bytes) -> Iterator[Entry]:
    for line in content.decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict):
            yield entry


def _read(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    parts = []
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """An exclusive lock on an open file, which other processes wait for."""
    if os.name == "nt":
        import msvcrt

        module: Any = msvcrt
        os.lseek(handle, 0, os.SEEK_SET)
        module.locking(handle, module.LK_LOCK, 1)
        try:
            yield
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
            module.locking(handle, module.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX)  # freed when the file is closed, also by a kill
        yield

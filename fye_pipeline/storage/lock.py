"""A folder that one run works in at a time; the lock ends with the process, however that ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from fye_pipeline.errors import UserError

NAME = ".lock"


class FolderLock:
    """Makes a folder and holds it until `release`, or until the process ends.

    Raises:
        UserError: another process, or another part of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] | None = None
        while self._file is None:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                file = os.fdopen(os.open(folder / NAME, os.O_RDWR | os.O_CREAT), "r+b")
            except FileNotFoundError:  # deleted between these two lines by a run that ended
                continue
            if not _try_lock(file):
                file.close()
                raise UserError(f"Another run is at work in {folder}; wait until it ends, or name another place.")
            if _is_still(folder / NAME, file):
                self._file = file
            else:
                file.close()

    def release(self) -> None:
        """Let others in; twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_still(path: Path, file: IO[bytes]) -> bool:
    """Whether the open file is the one of that name: a run that ended may have deleted it, and a third made another."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

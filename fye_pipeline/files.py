"""Checks on the files a user names, made before any long work begins."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fye_pipeline.errors import UserError


def existing_file(path: str | Path, what: str) -> Path:
    """The path of a readable, non-empty file; `what` names its role in the error ("the driving video").

    Raises:
        UserError: absent (with the nearest name in that folder), a folder, or empty.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; name {what} inside it.")
    if not path.exists():
        raise UserError(f"{path} does not exist ({what}){_nearest(path)}.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read ({what}): check its permissions.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty ({what}): copy it again from its source.")
    return path


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / names[0]}?" if names else ""


def writable_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path of a file that may be written.

    Raises:
        UserError: its folder is absent or not writable, it is a folder, or it exists and `overwrite` is not set.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the output file inside it.")
    if not path.parent.is_dir():
        raise UserError(f"The output folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"The output folder {path.parent} is read-only; choose another.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; pass --overwrite to replace it.")
    return path


@contextmanager
def atomic_target(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name on success and vanishes on any error or Ctrl-C."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

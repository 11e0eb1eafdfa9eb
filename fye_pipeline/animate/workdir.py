"""The folder beside an output that holds what is finished of it, until all of it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fye_pipeline import presets
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.errors import UserError
from fye_pipeline.progress import logger
from fye_pipeline.sampling.clip_store import CLIPS, SETTINGS, difference
from fye_pipeline.storage.files import FolderLock, atomic_target
from fye_pipeline.storage.hashing import digest_of_path

LANDMARKS = "landmarks"


def folder_of(output: Path) -> Path:
    """Where the work on an output lies."""
    return output.with_name(f"{output.name}.work")


def input_digests(settings: AnimationSettings) -> dict[str, str]:
    """What tells the contents of files, and a preset's schedule, from others; their names may stay the same."""
    landmarks = settings.reference_landmarks
    schedule = presets.tuned_config(settings.cache or {}, settings.model)
    return {
        "reference file": digest_of_path(settings.reference),
        "reference landmarks file": "none" if landmarks is None else digest_of_path(landmarks),
        "driving file": digest_of_path(settings.driving),
        "model version": presets.digest_of_model(settings.model),
        "preset schedule": json.dumps(schedule),
    }


@contextmanager
def work_dir(output: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The folder to work in, for this run alone; it goes when the block ends well, or when nothing in it is finished.

    identity: settings and inputs, as JSON takes them.

    Finished clips that are there are used with `resume` and thrown away with `overwrite` alone; landmarks that an
    earlier run with the same settings has detected are always used.

    Raises:
        UserError: another run is at work there; clips are there and neither flag is given, or were made with other
            settings or files; or the folder is somebody's own.
    """
    folder = folder_of(output)
    if folder.exists() and (not folder.is_dir() or (_visible(folder) and not (folder / SETTINGS).is_file())):
        raise UserError(f"{folder} is needed for the work on {output} and holds something else: move it away.")
    lock = FolderLock(folder)
    try:
        _begin(folder, output, identity, resume=resume, overwrite=overwrite)
        _sweep(output)
        try:
            yield folder
        except BaseException as error:
            if _worth_keeping(folder, error):
                logger.info(f"what is finished of {output} is kept in {folder}: the same command with --resume goes on")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _begin(folder: Path, output: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Take the folder as it is, or empty it, or refuse to."""
    try:
        known = dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        known = {}
    changed = [name for name in {**known, **identity} if known.get(name) != identity.get(name)]
    if _clips(folder):
        if changed and not overwrite:
            differences = ", ".join(difference(name, known.get(name), identity.get(name)) for name in changed)
            raise UserError(
                f"{folder} holds unfinished work with other settings or files ({differences}); pass --overwrite to "
                "begin anew."
            )
        if not changed and not resume and not overwrite:
            raise UserError(f"{folder} holds unfinished work; pass --resume to go on, or --overwrite to begin anew.")
    if changed or not resume:
        _empty(folder, keep=() if changed else (SETTINGS, LANDMARKS))
    if changed:
        with atomic_target(folder / SETTINGS) as partial:
            partial.write_text(json.dumps(identity, indent=2), encoding="utf-8")


def _clips(folder: Path) -> bool:
    return any(True for _ in folder.rglob(CLIPS))


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _empty(folder: Path, keep: tuple[str, ...]) -> None:
    """Delete everything but the lock and what is to be kept."""
    for entry in _visible(folder):
        if entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _worth_keeping(folder: Path, error: BaseException) -> bool:
    """Whether a run that broke off has left something that another would go on from."""
    if _clips(folder):
        return True
    detected = folder / LANDMARKS / "found.raw"
    return not isinstance(error, UserError) and detected.is_file() and detected.stat().st_size > 0


def _sweep(output: Path) -> None:
    """Delete half-written videos of runs on this output that were killed; none is at work now."""
    part = re.compile(rf"\.{re.escape(output.stem)}\.[0-9a-f]{{12}}\.part{re.escape(output.suffix)}")
    for entry in output.parent.iterdir():
        if part.fullmatch(entry.name):
            entry.unlink(missing_ok=True)

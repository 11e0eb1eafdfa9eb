"""What `fye evaluate MANIFEST` measures: portraits, drivers and truths, from a table or from a folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fye_pipeline.batch.manifest import Row, read_rows
from fye_pipeline.errors import UserError
from fye_pipeline.media.image import picture_frames
from fye_pipeline.storage.files import existing_file

DRIVERS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".npz", ".npy")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
TABLES = ("manifest.csv", "manifest.jsonl")


@dataclass(frozen=True)
class Pair:
    """One portrait with one driver; `error` says what is wrong with the line.

    portrait None: the driver's own first frame (self-reenactment, whose truth is the driver). truth: a video of what
    should come out, frame by frame. group: rows of one group are also averaged on their own.
    """

    name: str
    driving: Path = Path()
    portrait: Path | None = None
    truth: Path | None = None
    group: str | None = None
    error: str | None = None


def read_pairs(path: Path, *, portraits: int | None = None, drivers: int | None = None) -> list[Pair]:
    """The pairs of a `.csv` or `.jsonl`, or of a folder.

    A table has the columns `driving`, and any of `portrait` (or `reference`), `truth`, `name`, `group`; others are
    ignored; relative paths count from its folder. A folder has a `manifest.csv` or `manifest.jsonl`, or the folders
    `portraits` and `driving`, which are crossed (`truth/<portrait>__<driver>.mp4` where there is one).

    Args:
        portraits, drivers: only the first so many of a folder's.

    Raises:
        UserError: absent, unreadable, without rows, or a folder without either.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        table = next((path / name for name in TABLES if (path / name).is_file()), None)
        pairs = _crossed(path, portraits, drivers) if table is None else read_pairs(table)
    else:
        rows = read_rows(existing_file(path, "the manifest"))
        pairs = [_pair(row, path.parent) for row in rows]
    return _distinct(pairs)


def _pair(row: Row, folder: Path) -> Pair:
    line = f"row {row.number}"
    if row.error is not None:
        return Pair(line, error=row.error)
    values: Mapping[str, Any] = row.values
    wrong = [name for name, value in values.items() if name in _COLUMNS and not isinstance(value, str)]
    if wrong:
        return Pair(line, error=f"{', '.join(wrong)} must be text.")
    if "driving" not in values:
        return Pair(line, error="it names no driving.")
    driving = folder / Path(values["driving"]).expanduser()
    portrait = values.get("portrait", values.get("reference"))
    truth = values.get("truth")
    if portrait is None and driving.suffix.lower() not in VIDEOS:
        return Pair(line, error="it names no portrait, and its driving is no video whose first frame could be one.")
    stem = driving.stem if portrait is None else f"{Path(portrait).stem}__{driving.stem}"
    return Pair(
        name=values.get("name", stem),
        driving=driving,
        portrait=None if portrait is None else folder / Path(portrait).expanduser(),
        truth=None if truth is None else folder / Path(truth).expanduser(),
        group=values.get("group"),
    )


_COLUMNS = ("driving", "portrait", "reference", "truth", "name", "group")


def _crossed(folder: Path, portraits: int | None, drivers: int | None) -> list[Pair]:
    """Every portrait of a folder with every driver."""
    missing = [name for name in ("portraits", "driving") if not (folder / name).is_dir()]
    if missing:
        raise UserError(
            f"{folder} has neither {TABLES[0]} nor {TABLES[1]} nor the folders portraits and driving "
            f"(missing: {', '.join(missing)})."
        )
    pictures = [file for file in sorted((folder / "portraits").iterdir()) if file.is_file() and picture_frames(file)]
    moving = [file for file in sorted((folder / "driving").iterdir()) if file.suffix.lower() in DRIVERS]
    if not pictures or not moving:
        raise UserError(f"{folder} has {len(pictures)} pictures in portraits and {len(moving)} drivers in driving.")
    pairs = []
    for portrait, driving in itertools.product(pictures[:portraits], moving[:drivers]):
        name = f"{portrait.stem}__{driving.stem}"
        truth = folder / "truth" / f"{name}.mp4"
        pairs.append(Pair(name, driving, portrait, truth if truth.is_file() else None))
    return pairs


def _distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Names are file names of outputs: no two alike, none with a separator."""
    found: dict[str, Pair] = {}
    for pair in pairs:
        name, error = pair.name, pair.error
        if error is None and (not name or Path(name).name != name):
            error = f"its name {name!r} cannot be a file's name."
        number = 2
        while name in found:
            error = error or f"its name {pair.name!r} is taken by an earlier row: give a name."
            name, number = f"{pair.name} ({number})", number + 1
        found[name] = replace(pair, name=name, error=error)
    return list(found.values())


def finished_video(folder: Path, name: str) -> Path:
    """A method's video of a pair or an entry. Raises `UserError` where there is none."""
    for suffix in VIDEOS:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise UserError(f"{folder} has no video {name}{VIDEOS[0]}.")

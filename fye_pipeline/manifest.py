"""Many animations from one list: the model is loaded once, every finished row is noted, a killed run goes on."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fye_pipeline.animation import Studio, animate, is_finished
from fye_pipeline.console import OnProgress, silent
from fye_pipeline.errors import UserError
from fye_pipeline.files import existing_file
from fye_pipeline.settings import SHIPPED, AnimationSettings

_PATHS = ("reference", "driving", "output", "model", "reference_landmarks")

Values = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a manifest: its number in the file as an editor shows it, what it says, and what is wrong with it."""

    number: int
    values: Values
    error: str | None = None


@dataclass
class Summary:
    """What became of the rows of one process: numbers of those made, found finished, and failed with their reasons."""

    made: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)

    def to_dict(self) -> Values:
        return {"made": self.made, "kept": self.kept, "failed": self.failed}

    def __str__(self) -> str:
        lines = [f"row {number}: {reason}" for number, reason in self.failed.items()]
        kept = f", {len(self.kept)} kept" if self.kept else ""
        return "\n".join([*lines, f"{len(self.made)} made{kept}, {len(self.failed)} failed"])


def read_manifest(path: Path) -> list[Row]:
    """The rows of a `.csv` with a header or a `.jsonl`: UTF-8 with or without a mark, any line ends, no blank lines.

    Relative paths count from the manifest's folder. Empty cells are as if the column were absent. A row that cannot be
    read, that has no output, or the output of an earlier row, carries its error.

    Raises:
        UserError: absent, not UTF-8, neither ending, or without rows.
    """
    rows, seen = [], {}
    for row in read_rows(path):
        if row.error is None:
            row = _placed(row, path.parent)
            output = row.values.get("output")
            if output is None:
                row = Row(row.number, row.values, "it names no output.")
            elif (first := seen.setdefault(os.path.realpath(output), row.number)) != row.number:
                row = Row(row.number, row.values, f"its output {output} is that of row {first}.")
        rows.append(row)
    return rows


def read_rows(path: Path) -> list[Row]:
    """The rows as they stand in a `.csv` or `.jsonl`, their paths too; errors as `read_manifest`."""
    path = existing_file(path, "the manifest")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save the manifest as UTF-8.") from None
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{path}: a manifest ends in .csv or .jsonl.")
    read = _read_csv if path.suffix.lower() == ".csv" else _read_lines
    rows = list(read(text))
    if not rows:
        raise UserError(f"{path} has no rows.")
    return rows


def _read_csv(text: str) -> Iterator[Row]:
    table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    for values in table:
        number = table.line_num
        if None in values:
            yield Row(number, {}, "it has more cells than the header.")
            continue
        filled = {name.strip(): cell.strip() for name, cell in values.items() if cell is not None and cell.strip()}
        if filled:
            yield Row(number, filled)


def _read_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            yield Row(number, {}, f"it is not JSON ({error.msg}).")
            continue
        if isinstance(values, dict):
            yield Row(number, values)
        else:
            yield Row(number, {}, "it is not a JSON object.")


def _placed(row: Row, folder: Path) -> Row:
    """The row with its relative paths counted from the manifest's folder."""
    values = dict(row.values)
    for name in _PATHS:
        value = values.get(name)
        if isinstance(value, str) and not value.startswith(SHIPPED):
            values[name] = str(folder / Path(value).expanduser())
    return Row(row.number, values)


def run_manifest(
    manifest: Path,
    settings_of: Callable[[Mapping[str, Any], str], AnimationSettings],
    *,
    studio: Studio,
    overwrite: bool = False,
    resume: bool = False,
    share: tuple[int, int] = (0, 1),
    on_progress: OnProgress = silent,
    on_note: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Animate every row; one that fails is noted, and the others go on.

    `<manifest>.ledger.jsonl` beside the manifest gets one line for every row that ends, written at once, so that
    several processes may share it.

    Args:
        manifest: what `read_manifest` takes.
        settings_of: a row's values and its name -> settings.
        studio: detector and model, which the rows share.
        overwrite: replace outputs that are there.
        resume: keep outputs that were made with the same settings; rows that failed are tried again.
        share: (rank, count): of `count` processes this one takes every row whose index leaves `rank`.
        on_note: told of every row that ends.

    Raises:
        UserError: the manifest cannot be read.
    """
    summary = Summary()
    rank, count = share
    rows = read_manifest(manifest)[rank::count]
    ledger = manifest.with_name(f"{manifest.name}.ledger.jsonl")
    noted = _rows_made(ledger) if resume else set()
    for done, row in enumerate(rows):
        on_progress("rows", done, len(rows))
        entry: Values = {"row": row.number, "output": row.values.get("output")}
        try:
            if row.error is not None:
                raise UserError(row.error)
            values = dict(row.values)
            output = Path(values.pop("output"))
            settings = settings_of(values, f"row {row.number}")
            entry["settings"] = settings.to_dict()
            if resume and not overwrite and is_finished(output, settings):
                summary.kept.append(row.number)
                if row.number in noted:
                    continue
                entry["status"] = "made"  # by a run that was killed before it could say so
                _append(ledger, entry)
                continue
            again = {"overwrite": overwrite, "resume": resume}
            result = animate(settings, output, **again, studio=studio, on_progress=on_progress)
            entry |= {"status": "made", "frames": result.frames, "seconds": result.seconds, "notes": result.notes}
            summary.made.append(row.number)
            on_note(f"row {row.number}: {output}")
        except Exception as error:  # whatever a row's files do, the rows after it are made
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            reason = " ".join(reason.split())
            entry |= {"status": "failed", "error": reason}
            summary.failed[row.number] = reason
            on_note(f"row {row.number} failed: {reason}")
        _append(ledger, entry)
    on_progress("rows", len(rows), len(rows))
    return summary


def own_share(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, count) of this process as `accelerate launch` and `torchrun` tell it; (0, 1) where it is alone."""
    try:
        rank, count = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, count) if 0 <= rank < count else (0, 1)


def _rows_made(ledger: Path) -> set[int]:
    """The numbers of the rows that the ledger calls made; a last line that was cut off by a kill does not count."""
    made: set[int] = set()
    if ledger.exists():
        for line in ledger.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("status") == "made":
                made.add(entry["row"])
    return made


def _append(ledger: Path, entry: Values) -> None:
    """One line in one write, on the disk before the next row begins."""
    handle = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, (json.dumps(entry) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)

"""Many animations from one list: the model is loaded once, every finished row is noted, a killed run goes on."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fye_pipeline.animate.config import SHIPPED, AnimationSettings
from fye_pipeline.animate.run import is_finished
from fye_pipeline.animate.session import AnimationSession, Offload
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.settings import driver_list
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.files import existing_file
from fye_pipeline.storage.run_log import Entry, Ledger

_PATHS = (
    *("reference", "driving", "output", "model", "reference_landmarks", "points"),
    *("expression_adapter", "expression_weights"),
)

Values = dict[str, Any]
SettingsOf = Callable[[Mapping[str, Any], str], AnimationSettings]


@dataclass(frozen=True)
class Row:
    """One line of a manifest: its number in the file as an editor shows it, what it says, and what is wrong with it."""

    number: int
    values: Values
    error: str | None = None


@dataclass
class Summary:
    """What became of rows: numbers of those made, found finished, and failed with their reasons."""

    made: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)

    def add(self, entry: Entry) -> str:
        """Count an ended row. -> what to tell of it."""
        number = int(entry["row"])
        if entry["status"] == "failed":
            self.failed[number] = entry["error"]
            return f"row {number} failed: {entry['error']}"
        (self.made if entry["status"] == "made" else self.kept).append(number)
        return f"row {number}: {entry['output']}" + (" (kept)" if entry["status"] == "kept" else "")

    def __add__(self, other: Summary) -> Summary:
        failed = dict(sorted((self.failed | other.failed).items()))
        return Summary(sorted(self.made + other.made), sorted(self.kept + other.kept), failed)

    def to_dict(self) -> Values:
        """Plain values for JSON."""
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
        if isinstance(value, str):
            values[name] = _path_from(folder, value)
    drivers = driver_list(values.get("drivers"))
    if isinstance(drivers, list):
        values["drivers"] = [_path_from(folder, each) if isinstance(each, str) else each for each in drivers]
    return Row(row.number, values)


def _path_from(folder: Path, value: str) -> str:
    return value if value.startswith(SHIPPED) else str(folder / Path(value).expanduser())


@dataclass(frozen=True)
class Task:
    """A row that was looked at: what to make and where, or what is wrong with it."""

    number: int
    output: str | None
    settings: AnimationSettings | None
    error: str | None = None


def plan_tasks(manifest: Path, settings_of: SettingsOf) -> list[Task]:
    """Every row as a task. Raises `UserError` where the manifest cannot be read.

    settings_of: a row's values and its name -> settings; what it raises is that row's error.
    """
    tasks = []
    for row in read_manifest(manifest):
        values = dict(row.values)
        output = values.pop("output", None)
        settings, error = None, row.error
        if error is None:
            try:
                settings = settings_of(values, f"row {row.number}")
            except Exception as fault:  # whatever a row says, the rows after it are made
                error = reason_of(fault)
        tasks.append(Task(row.number, output, settings, error))
    return tasks


@dataclass(frozen=True)
class Options:
    """What the rows of a manifest have in common beside their settings; as for `fye animate`."""

    face_landmarker: Path | None = None
    detector: str = "mediapipe"
    device: str = "auto"
    offload: Offload = "none"
    overwrite: bool = False
    resume: bool = False

    @property
    def of_session(self) -> dict[str, Any]:
        """Those that `AnimationSession` takes beside the task file."""
        return {"detector": self.detector, "device": self.device, "offload": self.offload}


def carry_out(
    task: Task,
    session: AnimationSession,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress = silent,
) -> Entry:
    """Make one row. -> its line for the ledger, whose `status` is made, kept or failed."""
    entry: Entry = {"row": task.number, "output": task.output}
    try:
        if task.error is not None:
            raise UserError(task.error)
        assert task.settings is not None
        assert task.output is not None
        output = Path(task.output)
        entry["settings"] = task.settings.to_dict()
        if resume and not overwrite and is_finished(output, task.settings):
            return entry | {"status": "kept"}
        result = task.settings.runner().animate(
            task.settings, output, overwrite=overwrite, resume=resume, session=session, on_progress=on_progress
        )
        return entry | {"status": "made", "frames": result.frames, "seconds": result.seconds, "notes": result.notes}
    except Exception as error:  # whatever a row's files do, the rows after it are made
        return entry | {"status": "failed", "error": reason_of(error)}


def reason_of(error: Exception) -> str:
    """One line on what went wrong."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def ledger_of(manifest: Path) -> Ledger:
    """`<manifest>.ledger.jsonl`, beside the manifest."""
    return Ledger(manifest.with_name(f"{manifest.name}.ledger.jsonl"))


def note_entry(entry: Entry, ledger: Ledger, *, resume: bool) -> None:
    """Write an ended row down. One that was kept was made by a run that was killed before it could say so, or is there
    already."""
    if entry["status"] == "kept":
        ledger.append(entry | {"status": "made"}, once=True)
    else:
        ledger.append(entry, once=resume and entry["status"] == "made")


def run_tasks(
    tasks: Sequence[Task],
    ledger: Ledger,
    *,
    session: AnimationSession,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress = silent,
) -> Summary:
    """Animate the rows one after the other; one that fails is noted, and the others go on.

    Args:
        tasks: what `plan_tasks` gives, or some of it.
        ledger: gets one line for every row that ends.
        session: detector and model, which the rows share.
        overwrite: replace outputs that are there.
        resume: keep outputs that were made with the same settings; rows that failed are tried again.
    """
    summary = Summary()
    for done, task in enumerate(tasks):
        on_progress("rows", done, len(tasks))
        entry = carry_out(task, session, overwrite=overwrite, resume=resume, on_progress=on_progress)
        note_entry(entry, ledger, resume=resume)
        logger.info(summary.add(entry))
    on_progress("rows", len(tasks), len(tasks))
    return summary

"""Parts are measured once each, by one process or several, and the journal keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fye_pipeline.evaluation.run import Measure, measure_all
from fye_pipeline.progress import collected_notes
from fye_pipeline.storage.run_log import Entry, Journal


@dataclass(frozen=True)
class Squares:
    """Measures the square of a number, and which process did; fails at one."""

    bad: str = ""

    @contextmanager
    def open(self) -> Iterator[Measure]:
        def measure(name: str) -> Entry:
            if name == self.bad:
                raise ZeroDivisionError("planted")
            return {"square": int(name) ** 2, "process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}

        yield measure


def test_parts_in_the_journal_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"seed": 1})
    with pytest.raises(ZeroDivisionError):
        measure_all(Squares(bad="2").open, ["1", "2", "3"], journal)
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"name": "2", "fig')  # a kill while it was written
    again = Journal(path, {"seed": 1}, resume=True)
    assert set(again.entries) == {"1"}
    counts: list[int] = []
    found = measure_all(
        Squares().open, ["1", "2", "3"], again, on_progress=lambda stage, done, total: counts.append(done)
    )
    assert counts == [1, 2, 3]
    assert [entry["square"] for entry in found.values()] == [1, 4, 9]
    assert set(Journal(path, {"seed": 1}, resume=True).entries) == {"1", "2", "3"}
    assert not Journal(path, {"seed": 2}, overwrite=True).entries


def test_several_processes_share_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    names = [str(k) for k in range(4)]
    journal = Journal(tmp_path / "journal.jsonl", {})
    found = measure_all(Squares().open, names, journal, jobs=2)
    assert list(found) == names
    assert [entry["square"] for entry in found.values()] == [0, 1, 4, 9]
    assert os.getpid() not in {entry["process"] for entry in found.values()}
    assert {entry["threads"] for entry in found.values()} == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_failure_in_another_process_is_told() -> None:
    with pytest.raises(ZeroDivisionError, match="planted"):
        measure_all(Squares(bad="1").open, ["0", "1"], Journal(None, {}), jobs=2)


def test_long_work_is_announced_once() -> None:
    with collected_notes() as told:
        measure_all(Squares().open, ["1", "2", "3"], Journal(None, {}), worth_saying=0)
    assert told == ["2 more take about 0 minutes"]

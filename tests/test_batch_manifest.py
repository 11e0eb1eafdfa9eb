"""Many animations from one list: bad rows, kills, several processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fye_command import Fye, assert_same_pictures
from warm_processes import Command

from fye_pipeline.batch.manifest import read_manifest
from fye_pipeline.batch.run import own_share
from fye_pipeline.errors import UserError

FAST = {"steps": 2, "frames": 2, "size": 64}


def test_row_42_marks_line_ends_bad_rows_and_duplicates(tmp_path: Path) -> None:
    lines = [
        "reference, driving ,output,steps",
        '"a, b.png",d.mp4,one.mp4,3',
        ",,two.mp4,",
        "",
        "a.png,d.mp4,./one.mp4,",
        "a.png,d.mp4,,",
        "a.png,d.mp4,three.mp4,3,too many",
    ]
    path = tmp_path / "jobs.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = read_manifest(path)
    assert [row.number for row in rows] == [2, 3, 5, 6, 7]
    assert rows[0].values == {
        "reference": str(tmp_path / "a, b.png"),
        "driving": str(tmp_path / "d.mp4"),
        "output": str(tmp_path / "one.mp4"),
        "steps": "3",
    }
    assert rows[1].values == {"output": str(tmp_path / "two.mp4")}
    errors = [row.error for row in rows[2:]]
    assert errors[0] is not None
    assert errors[0].endswith("is that of row 2.")
    assert errors[1] == "it names no output."
    assert errors[2] == "it has more cells than the header."


def test_lines_of_json_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"output": "/x/a.mp4", "model": "shipped:tiny"}\n\n[1]\n{"output": \n')
    rows = read_manifest(path)
    assert rows[0].values == {"output": "/x/a.mp4", "model": "shipped:tiny"}
    assert [(row.number, row.error and row.error[:9]) for row in rows] == [
        (1, None),
        (3, "it is not"),
        (4, "it is not"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("jobs.txt", b"a", "ends in .csv or .jsonl"),
        ("jobs.csv", b"reference,output\n", "has no rows"),
        ("jobs.csv", b"output\n\xff\xfe.mp4\n", "not UTF-8"),
    ],
)
def test_what_is_no_manifest_is_one_sentence(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_manifest(tmp_path / name)


def test_every_process_takes_its_own_rows() -> None:
    assert own_share({}) == (0, 1)
    assert own_share({"RANK": "1", "WORLD_SIZE": "3"}) == (1, 3)
    assert own_share({"RANK": "3", "WORLD_SIZE": "3"}) == (0, 1)
    assert own_share({"RANK": "x", "WORLD_SIZE": "3"}) == (0, 1)
    rows = list(range(7))
    assert sorted(row for rank in range(3) for row in rows[rank::3]) == rows


def jobs(folder: Path, model: Path) -> Path:
    """A manifest of 12 rows, of which 5 are bad: two absent files, a wrong value, a wrong name, a duplicate."""
    folder.mkdir()
    rows: list[dict[str, Any]] = [{"output": f"{seed}.mp4", "seed": seed} for seed in range(7)]
    rows.insert(1, {"output": "x.mp4", "reference": "absent.png"})
    rows.insert(3, {"output": "x.mp4", "driving": "absent.mp4"})
    rows.insert(4, {"output": "y.mp4", "steps": "many"})
    rows.insert(8, {"output": "z.mp4", "colour": "red"})
    rows.append({"output": "0.mp4"})
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(FAST | {"model": str(model)} | row) + "\n" for row in rows))
    return path


def ledger(manifest: Path) -> list[dict[str, Any]]:
    path = manifest.with_name("jobs.jsonl.ledger.jsonl")
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def results(manifest: Path) -> list[Path]:
    return sorted(manifest.parent.glob("*.mp4"))


def test_row_31_a_manifest_that_is_killed_twice_ends_as_an_unbroken_one(
    fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    whole = jobs(tmp_path / "whole", random_model)
    code, out, err = fye("animate", "--manifest", whole, "--json", "--quiet")
    assert code == 1, err
    summary = json.loads(out)
    assert len(summary["made"]) == 7
    assert len(summary["failed"]) == 5
    assert "Traceback" not in err
    assert err.count("fye: row ") == 5
    assert [len(ledger(whole)), len(results(whole))] == [12, 7]

    broken = jobs(tmp_path / "broken", random_model)
    for lines in (2, 6):
        kill_at(broken, lines)
    made = {entry["row"] for entry in ledger(broken) if entry["status"] == "made"}
    assert 0 < len(made) < 7, "the kills came before the first or after the last row"
    code, out, err = fye("animate", "--manifest", broken, "--resume", "--quiet", "--json")
    assert code == 1, err
    summary = json.loads(out)
    assert len(summary["made"]) + len(summary["kept"]) == 7
    assert set(summary["kept"]) >= made
    assert len(summary["failed"]) == 5
    for one, other in zip(results(broken), results(whole), strict=True):
        assert one.name == other.name
        assert_same_pictures(one, other)
    rows = [entry["row"] for entry in ledger(broken) if entry["status"] == "made"]
    assert len(rows) == len(set(rows)) == 7, "every row is made once and noted once"


def kill_at(manifest: Path, lines: int) -> None:
    """Run a manifest in a process of its own, and kill it when its ledger has so many lines."""
    with Command(manifest.with_suffix(".log"), "animate", "--manifest", manifest, "--resume", "--quiet") as command:
        deadline = time.monotonic() + 240
        while len(ledger(manifest)) < lines and time.monotonic() < deadline:
            assert not command.ended, command.log.read_text()
            time.sleep(0.002)


def test_two_processes_share_a_manifest_and_its_ledger(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_model: Path
) -> None:
    manifest = jobs(tmp_path / "shared", random_model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert fye("animate", "--manifest", manifest, "--quiet")[0] == 1
    assert len(results(manifest)) == 7
    assert sorted(entry["row"] for entry in ledger(manifest)) == list(range(1, 13))
    assert os.path.exists(manifest)


def test_a_manifest_without_failures_ends_with_0_and_flags_hold_for_all_rows(
    fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("output,seed,N\na.mp4,1,\nb.mp4,2,1\n")
    flags = ("--model", random_model, "--steps", 2, "--frames", 2, "--size", 64, "--no-watermark")
    code, out, _ = fye("animate", "--manifest", path, *flags, "--quiet", "--json")
    assert code == 1
    assert all("--i-accept-the-terms" in reason for reason in json.loads(out)["failed"].values())
    code, _, err = fye("animate", "--manifest", path, *flags, "--i-accept-the-terms", "--quiet")
    assert code == 0, err
    code, out, _ = fye(
        "animate",
        "--config",
        tmp_path / "b.mp4",
        "--output",
        tmp_path / "c.mp4",
        "--json",
        *flags[-1:],
        "--i-accept-the-terms",
    )
    assert code == 0
    settings = json.loads(out)["settings"]
    assert (settings["seed"], settings["size"], settings["watermark"]) == (2, 64, False)
    assert settings["cache"]["N"] == 1
    assert_same_pictures(tmp_path / "b.mp4", tmp_path / "c.mp4")

"""ExprBench: entries of a manifest, the rendered bench, and what is measured of each person; on tiny runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import Fye
from PIL import Image

from fye_pipeline.errors import UserError
from fye_pipeline.evaluation.exprbench import summarise, tables
from fye_pipeline.evaluation.exprbench_entries import RenderedBench, read_entries
from fye_pipeline.media.video import read_frames


def written(folder: Path, *entries: Any) -> Path:
    path = folder / "m.json"
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    return path


def test_paths_count_from_the_manifest(tmp_path: Path) -> None:
    one = {"portrait": "a.png", "drivers": ["b.mp4", "/c.mp4"], "assign": "1,0", "truth": "t.mp4"}
    first, second = read_entries(written(tmp_path, one, {"portrait": "a.png", "drivers": "d.npz", "name": "x"}))
    assert (first.portrait, first.truth, first.assign) == (tmp_path / "a.png", tmp_path / "t.mp4", "1,0")
    assert first.drivers == (tmp_path / "b.mp4", Path("/c.mp4"))
    assert (first.is_multi, second.is_multi) == (True, False)
    assert (first.name, second.name) == ("entry-001", "x")


@pytest.mark.parametrize(
    "values", [7, {}, {"portrait": "a.png"}, {"portrait": "a.png", "drivers": []}, {"portrait": 1, "drivers": ["b"]}]
)
def test_an_entry_that_cannot_be_read_carries_its_error(tmp_path: Path, values: Any) -> None:
    good = {"portrait": "a.png", "drivers": ["b.mp4"]}
    entries = read_entries(written(tmp_path, values, good))
    assert [entry.error is None for entry in entries] == [False, True]


def test_unknown_words_and_names_that_are_taken_are_told(tmp_path: Path) -> None:
    good = {"portrait": "a.png", "drivers": ["b.mp4"], "name": "x"}
    entries = read_entries(written(tmp_path, good, good, {**good, "name": "../y"}, {**good, "speed": 1}))
    assert [entry.error is None for entry in entries] == [True, False, False, False]
    assert "there is no speed" in (entries[3].error or "")


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("[", encoding="utf-8")
    for text in ("[", "[]", "{}"):
        (tmp_path / "m.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"not JSON|list of entries"):
            read_entries(tmp_path / "m.json")


def test_the_rendered_bench_comes_from_its_seed_and_has_both_kinds(tmp_path: Path) -> None:
    """Who moves themselves has a truth that begins with the picture; nobody is in two entries."""
    bench = RenderedBench(singles=2, multis=2, frames=2, size=64)
    entries = read_entries(bench.make(tmp_path / "a"))
    assert [len(entry.drivers) for entry in entries] == [1, 1, 2, 2]
    assert [entry.truth is None for entry in entries] == [False, True, False, True]
    picture = np.asarray(Image.open(entries[2].portrait)).astype(float)
    assert picture.shape == (64, 128, 3)
    assert entries[2].truth is not None
    assert np.abs(picture - next(iter(read_frames(entries[2].truth)))).mean() < 10
    bench.make(tmp_path / "b")
    for entry in entries:
        other = tmp_path / "b" / entry.portrait.name
        assert other.read_bytes() == entry.portrait.read_bytes()
    changed = RenderedBench(singles=1, multis=0, frames=2, size=64, seed=1).make(tmp_path / "c")
    assert read_entries(changed)[0].portrait.read_bytes() != entries[0].portrait.read_bytes()
    pictures = {entry.portrait.read_bytes() for entry in entries}
    assert len(pictures) == 4


def test_means_are_over_people_and_a_figure_that_is_missing_is_left_out() -> None:
    def entry(multi: bool, *people: dict[str, Any]) -> dict[str, Any]:
        return {"multi": multi, "frames": 2, "people": {"ours": list(people), "repeat_reference": list(people)}}

    two = [{"face": 1, "driver": 0, "lmd": 1.0, "leak_pixels": 0.5}, {"face": 2, "driver": 1, "lmd": 3.0}]
    result = summarise({"a": entry(True, *two), "b": entry(True, {"lmd": None}), "c": {"error": "broken"}})
    assert result["multi"]["ours"] == {"lmd": 2.0, "leak": {"pixels": 0.5, "landmarks": None}}
    assert result["failed"] == {"c": "broken"}
    assert "single" not in result
    assert "0.500" in str(tables(result)[0])


def test_each_person_is_measured_against_their_own_driver(fye: Fye, tmp_path: Path, face_landmarker_path: Path) -> None:
    """A rendered bench, then the same entries with the drivers exchanged, and finished videos of the first run."""
    target = tmp_path / "r.json"
    fast = ("--frames", 3, "--steps", 2, "--quiet")
    command = ("evaluate", "exprbench", "--singles", 1, "--multis", 1, "--json", target, *fast)
    code, _, err = fye(*command)
    assert code == 0, err
    result = json.loads(target.read_text(encoding="utf-8"))
    ours, still = result["multi"]["ours"], result["multi"]["repeat_reference"]
    assert {"lmd", "mae", "aed", "apd", "ssim"} <= set(ours)
    assert ours["apd"] < still["apd"] / 2
    assert ours["lmd"] < still["lmd"]
    assert set(ours["leak"]) == {"pixels", "landmarks"}
    assert ours["leak"]["pixels"] == 0, "nobody is moved by another's driver; a codec does not count"
    assert ours["leak"]["landmarks"] < 0.02  # the detector looks at the other face too
    assert "MediaPipe" in result["labels"]["mae"]
    assert target.with_suffix(".md").read_text(encoding="utf-8").count("| ours |") == 2
    assert fye(*command, "--resume")[0] == 0
    assert "--overwrite" in fye.refused(*command)

    files = tmp_path / "r_files"
    entry = json.loads((files / "bench" / "exprbench.json").read_text(encoding="utf-8"))[1]
    swapped = {**entry, "assign": "1,0"}
    broken = {"portrait": "nobody.png", "drivers": entry["drivers"], "name": "broken"}
    manifest = files / "bench" / "m.json"
    manifest.write_text(json.dumps([swapped, broken]), encoding="utf-8")
    finished = ("--outputs", files, "--manifest", manifest, "--json", tmp_path / "s.json", *fast)
    code, _, err = fye("evaluate", "exprbench", *finished)
    assert code == 1, err
    other = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert "nobody.png" in other["failed"]["broken"]
    assert other["multi"]["ours"]["apd"] > 2 * ours["apd"], "the video follows the drivers that it was made with"
    assert other["multi"]["ours"]["leak"] == {"pixels": None, "landmarks": None}

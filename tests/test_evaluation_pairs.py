"""`fye evaluate MANIFEST`: rows that work and rows that do not, resumed, finished videos, tables."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fye_command import Fye, make_video
from PIL import Image

from fye_pipeline.evaluation import pair_evaluator
from fye_pipeline.evaluation.pair_evaluator import same_size
from fye_pipeline.evaluation.pairs import read_pairs
from fye_pipeline.evaluation.tables import Column, Table
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, face_landmarker_path: Path) -> Path:
    """A portrait, and clips of two heads as videos."""
    folder = tmp_path_factory.mktemp("clips")
    world = World(CanonicalFace.load(), size=128)
    Image.fromarray(world.portrait("held", 0).frames[0]).save(folder / "a.png")
    for index, name in enumerate("ab"):
        make_video(folder / f"{name}.mp4", list(world.clip("held", index, frames=4).frames), fps=Fraction(12))
    return folder


def test_pairs_of_a_model_are_made_and_measured_and_bad_rows_named(
    fye: Fye, clips: Path, random_model: Path, face_landmarker_path: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "rows.csv"
    lines = [
        "portrait,driving,truth,group",
        f"{clips / 'a.png'},{clips / 'b.mp4'},,painted",
        f"{clips / 'absent.png'},{clips / 'b.mp4'},,",
        f",{clips / 'a.mp4'},,",
    ]
    manifest.write_text("\n".join(lines))
    target = tmp_path / "figures.json"
    flags: tuple[Any, ...] = (
        *("--model", random_model, "--frames", "3", "--steps", "1", "--json", target),
        *("--face-landmarker", face_landmarker_path),
    )
    code, out, err = fye("evaluate", manifest, *flags)
    assert code == 1, err
    assert "absent__b" in out
    assert "does not exist" in out
    result = json.loads(target.read_text())
    assert set(result["rows"]) == {"a__b", "a"}
    assert list(result["failed"]) == ["absent__b"]
    cross, own = result["rows"]["a__b"], result["rows"]["a"]
    assert (cross["kind"], own["kind"], cross["frames"]) == ("cross", "self", 3)
    assert "l1" not in cross["method"]
    assert own["still"]["l1"] < own["method"]["l1"] < 1  # random weights: the still portrait is far better
    assert own["still"]["exp"] > 0
    assert result["groups"]["cross"] == {"painted": cross["method"]}
    assert result["needs"]["lpips"] == "--lpips"
    assert "n/a: needs --lpips" in (tmp_path / "figures.md").read_text()
    assert "n/a: needs --arcface" in out
    assert (tmp_path / "figures_files" / "a__b.mp4").is_file()

    (clips / "absent.png").write_bytes((clips / "a.png").read_bytes())
    code, out, err = fye("evaluate", manifest, *flags, "--resume")
    assert code == 0, err
    again = json.loads(target.read_text())
    assert set(again["rows"]) == {"a__b", "absent__b", "a"}
    assert again["rows"]["a"] == own
    assert not list(tmp_path.glob("*.journal*"))


def test_finished_videos_are_measured_with_the_networks_given(
    fye: Fye, clips: Path, face_landmarker_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_evaluator, "animate", None)
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes((clips / f"{name}.mp4").read_bytes())
    manifest = tmp_path / "rows.jsonl"
    rows = [{"driving": str(clips / f"{name}.mp4")} for name in "ab"]
    manifest.write_text("\n".join(map(json.dumps, rows)))

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=[2, 3])

    network = tmp_path / "mean.pt"
    torch.jit.script(Mean()).save(str(network))
    target = tmp_path / "figures.json"
    code, out, err = fye(
        *("evaluate", "--outputs", tmp_path, "--method", "copy", manifest, "--json", target),
        *("--face-landmarker", face_landmarker_path, "--fid", network, "--hyperiqa", network),
    )
    assert code == 0, err
    copy, still = (json.loads(target.read_text())["self"][name] for name in ("copy", "still portrait"))
    assert copy["l1"] == 0
    assert copy["psnr"] == 100
    for name in ("exp", "lms", "lmd", "gaze", "aed", "apd_rotation", "landmark_accuracy", "fid"):
        assert copy[name] == pytest.approx(0, abs=1e-4), name
    assert still["exp"] > 0.1
    assert copy["fvd"] is None
    assert "copy" in out


def test_a_folder_is_crossed(tmp_path: Path) -> None:
    for name in ("portraits", "driving", "truth"):
        (tmp_path / name).mkdir()
    for name in ("p1", "p2"):
        Image.new("RGB", (64, 64)).save(tmp_path / "portraits" / f"{name}.png")
    (tmp_path / "portraits" / "notes.txt").write_text("no picture")
    for name in ("d1.mp4", "d2.npz"):
        (tmp_path / "driving" / name).write_bytes(b"x")
    (tmp_path / "truth" / "p1__d2.mp4").write_bytes(b"x")
    pairs = read_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["p1__d1", "p1__d2", "p2__d1", "p2__d2"]
    assert [pair.truth is not None for pair in pairs] == [False, True, False, False]
    assert [pair.name for pair in read_pairs(tmp_path, portraits=1, drivers=1)] == ["p1__d1"]


def test_rows_that_say_too_little_or_too_much_carry_their_error(tmp_path: Path) -> None:
    lines = [{"portrait": "p.png"}, {"driving": "d.npz"}, {"driving": 3}, {"driving": "d.mp4", "name": "../up"}]
    lines += [{"driving": "d.mp4"}, {"driving": "d.mp4"}, {"driving": "e.mp4", "style": "ignored"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    errors = [pair.error for pair in read_pairs(path)]
    assert [error is None for error in errors] == [False, False, False, False, True, False, True]
    for error, part in zip(
        errors, ("no driving", "no portrait", "text", "file's name", "", "earlier row"), strict=False
    ):
        assert part in (error or "")


def test_what_names_no_pairs_is_refused(fye: Fye, tmp_path: Path, face_landmarker_path: Path) -> None:
    task = ("--face-landmarker", face_landmarker_path)
    assert "missing: portraits, driving" in fye.refused("evaluate", tmp_path, "--json", tmp_path / "f.json", *task)
    sentence = fye.refused("evaluate", tmp_path / "absent.csv", "--json", tmp_path / "f.json", *task)
    assert "does not exist" in sentence
    assert "--i-accept-the-terms" in fye.refused("evaluate", tmp_path, "--no-watermark")
    assert "must end in .json" in fye.refused("evaluate", tmp_path, "--json", tmp_path / "f.txt", *task)


def test_truths_take_the_size_of_the_output() -> None:
    truth = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(1, 5, 7, 3)
    padded = np.pad(truth, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    one, two = same_size(padded, truth)
    assert np.array_equal(one, two)
    one, two = same_size(np.zeros((1, 10, 14, 3), np.uint8), truth)
    assert one.shape == two.shape == (1, 10, 14, 3)


def test_a_table_says_what_a_figure_needs() -> None:
    columns = (Column("l1", "L1", ".2f", "down"), Column("lpips", "LPIPS", ".2f", "down"))
    table = Table("T", columns, {"a|b": {"l1": 0.5}, "c": {"l1": None}}, {"lpips": "--lpips"})
    assert "| a\\|b | 0.50 | n/a: needs --lpips |" in table.markdown()
    assert "| c | n/a | n/a: needs --lpips |" in table.markdown()
    assert "LPIPS n/a: needs --lpips" in str(table)
    assert "L1↓" in str(table)

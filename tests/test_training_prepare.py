"""`fye prepare`: videos into datasets; what a detector sees is made up, except in the one test from end to end."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fye_command import Fye, make_video
from training_parts import save_small

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training import extract, prepare
from fye_pipeline.training.dataset import Dataset
from fye_pipeline.training.prepare import PrepareOptions, find_videos
from fye_pipeline.training.segment import CutRules
from fye_pipeline.world import World

RULES = CutRules(min_face=20, min_frames=4, max_frames=50)
OPTIONS = PrepareOptions(size=64, rules=RULES)


class OneFace:
    """Sees a face in every frame that is not dark, in its middle."""

    canonical = None
    seen = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> OneFace:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def detect_all(self, frame: np.ndarray) -> list[Face]:
        OneFace.seen += 1
        if frame.mean() < 20:
            return []
        angle = np.linspace(0, 2 * np.pi, 478)
        points = np.stack([0.5 + 0.2 * np.cos(angle), 0.5 + 0.2 * np.sin(angle), 0 * angle], 1).astype(np.float32)
        height, width = frame.shape[:2]
        return [Face(points, np.zeros((468, 3), np.float32), np.eye(4), np.zeros(52, np.float32), width, height)]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> type[OneFace]:
    monkeypatch.setattr(extract, "FaceLandmarkDetector", OneFace)
    monkeypatch.setattr(extract, "metric_mesh", lambda *_: (np.zeros((468, 3)), np.eye(4)))
    OneFace.seen = 0
    return OneFace


def grey(count: int, value: int = 128) -> list[np.ndarray]:
    return [np.full((96, 128, 3), value + index % 3, np.uint8) for index in range(count)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "b").mkdir(parents=True)
    make_video(folder / "a.mp4", grey(12))
    make_video(folder / "b" / "c.mp4", [*grey(6), *grey(3, 0), *grey(5)])
    return folder


def run(videos: Path, output: Path, **options: Any) -> dict[str, Any]:
    return prepare.prepare(videos, output, options.pop("options", OPTIONS), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def test_clips_and_reasons_are_reported(videos: Path, tmp_path: Path, made_up: type[OneFace]) -> None:
    (videos / "broken.mp4").write_bytes(b"not a video")
    (videos / "notes.txt").write_text("x", encoding="utf-8")
    report = run(videos, tmp_path / "set")
    assert report["totals"] == {"videos": 3, "clips": 3, "frames": 23}
    assert report["rejected"] == {"cannot be read": {"pieces": 1, "frames": 0}, "no face": {"pieces": 1, "frames": 3}}
    assert [video["video"] for video in report["videos"]] == ["a.mp4", "b/c.mp4", "broken.mp4"]
    assert report["videos"][1]["rejected"] == [{"start": 6, "stop": 9, "reason": "no face"}]
    assert "is not a video" in report["videos"][2]["rejected"][0]["detail"]
    assert json.loads((tmp_path / "set" / "report.json").read_text(encoding="utf-8")) == report
    dataset = Dataset(tmp_path / "set")
    assert [clip.frames for clip in dataset.clips] == [12, 6, 5]
    assert dataset.frame(2, 4).shape == (64, 64, 3)
    assert [video["video"] for video in report["videos"] if not video["clips"]] == ["broken.mp4"]


def test_long_videos_are_read_in_parts(videos: Path, tmp_path: Path, made_up: type[OneFace], monkeypatch) -> None:
    monkeypatch.setattr(extract, "PART", 8)
    report = run(videos, tmp_path / "set")
    spans = [(clip["start"], clip["stop"]) for video in report["videos"] for clip in video["clips"]]
    assert spans == [(0, 8), (8, 12), (0, 6), (9, 14)]
    assert [video["frames"] for video in report["videos"]] == [12, 14]


def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(
    videos: Path, tmp_path: Path, made_up: type[OneFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(videos, tmp_path / "whole")
    whole, per_run = contents(tmp_path / "whole"), made_up.seen
    real = prepare.make_clips

    def killed(path: Path, *rest: Any, **options: Any) -> Any:
        if path.name == "c.mp4":
            raise KeyboardInterrupt
        return real(path, *rest, **options)

    monkeypatch.setattr(prepare, "make_clips", killed)
    with pytest.raises(KeyboardInterrupt):
        run(videos, tmp_path / "cut")
    assert not (tmp_path / "cut" / "dataset.json").exists()
    (tmp_path / "cut" / "ledger" / ".x.1234.part.tar").write_bytes(b"what a harder kill leaves")
    monkeypatch.setattr(prepare, "make_clips", real)
    made_up.seen = 0
    run(videos, tmp_path / "cut", resume=True)
    assert 0 < made_up.seen < per_run
    assert contents(tmp_path / "cut") == whole
    assert not list((tmp_path / "cut" / "ledger").glob(".*"))
    assert not list((tmp_path / "cut" / "ledger").glob("*.tar"))


def test_new_videos_are_added_and_old_ones_kept(videos: Path, tmp_path: Path, made_up: type[OneFace]) -> None:
    run(videos, tmp_path / "set")
    before, made_up.seen = contents(tmp_path / "set"), 0
    make_video(videos / "aa.mp4", grey(7))
    report = run(videos, tmp_path / "set", resume=True)
    assert made_up.seen == 7
    assert report["totals"] == {"videos": 3, "clips": 4, "frames": 30}
    after = contents(tmp_path / "set")
    assert {name: after[name] for name in before} == before
    assert [clip.frames for clip in Dataset(tmp_path / "set").clips] == [12, 6, 5, 7]


def test_a_kill_between_a_shard_and_its_parts_makes_no_clip_twice(
    videos: Path, tmp_path: Path, made_up: type[OneFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, *rest: Any, **options: Any) -> None:
        if path.suffix == ".tar" and path.parent.name == "ledger":
            raise KeyboardInterrupt
        unlink(path, *rest, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(KeyboardInterrupt):
        run(videos, tmp_path / "set")
    monkeypatch.setattr(Path, "unlink", unlink)
    run(videos, tmp_path / "set", resume=True)
    keys = [clip.key for clip in Dataset(tmp_path / "set").clips]
    assert len(keys) == len(set(keys)) == 3
    assert not list((tmp_path / "set" / "ledger").glob("*.tar"))


def test_shards_are_closed_at_their_size(videos: Path, tmp_path: Path, made_up: type[OneFace], monkeypatch) -> None:
    monkeypatch.setattr(prepare.PrepareOptions, "__post_init__", lambda self: None)
    run(videos, tmp_path / "set", options=PrepareOptions(size=64, rules=RULES, shard_bytes=1))
    dataset = Dataset(tmp_path / "set")
    assert dataset.shard_of == [0, 1, 1]  # a video is never divided


def test_folders_that_hold_something_are_not_touched(videos: Path, tmp_path: Path, made_up: type[OneFace]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "keep.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="holds something else than a dataset"):
        run(videos, other, overwrite=True)
    assert (other / "keep.txt").exists()
    run(videos, tmp_path / "set")
    with pytest.raises(UserError, match=r"exists; go on with it by --resume, or begin anew by --overwrite"):
        run(videos, tmp_path / "set")
    with pytest.raises(UserError, match="was begun with other options"):
        run(videos, tmp_path / "set", options=PrepareOptions(size=96, rules=RULES), resume=True)
    made_up.seen = 0
    run(videos, tmp_path / "set", overwrite=True)
    assert made_up.seen > 20


def test_videos_are_found_in_every_folder_and_pictures_as_one(tmp_path: Path) -> None:
    for name in ("b.MOV", "a/c.mp4", "a/.hidden.mp4", ".cache/d.mp4", "e/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    for number in range(3):
        (tmp_path / "e" / f"{number}.png").write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path, least=3)]
    assert found == ["a/c.mp4", "b.MOV", "e"]
    assert find_videos(tmp_path / "b.MOV") == [tmp_path / "b.MOV"]
    with pytest.raises(UserError, match="does not exist; name a folder of videos"):
        find_videos(tmp_path / "nowhere")


def test_bad_input_is_one_sentence(
    tmp_path: Path, made_up: type[OneFace], fye: Fye, face_landmarker_path: Path
) -> None:
    base: list[Any] = ["prepare", tmp_path, "--output", tmp_path / "set", "--face-landmarker", face_landmarker_path]
    assert "holds no videos" in fye.refused(*base)
    make_video(tmp_path / "dark.mp4", grey(8, 0))
    assert "No clip could be made of the 1 videos" in fye.refused(*base, "--size", 64)
    assert "size must be a multiple of 32 pixels, 64 or more, got 100" in fye.refused(*base, "--size", 100)
    assert "--fps must be a rate such as 25" in fye.refused(*base, "--fps", "fast")
    assert "quality must be 1 to 100, got 0" in fye.refused(*base, "--quality", 0)


@pytest.mark.usefixtures("warm_workers")
def test_from_videos_to_a_trained_model(tmp_path: Path, fye: Fye, face_landmarker_path: Path) -> None:
    """Two processes prepare two rendered videos, one with a cut and one that begins in the dark; both phases train."""
    world = World(CanonicalFace.load(), size=192)
    heads = [list(world.clip("train", index, frames=30, fps=12).frames) for index in range(3)]
    videos, output = tmp_path / "videos", tmp_path / "set"
    videos.mkdir()
    make_video(videos / "cut.mp4", [*heads[0], *heads[1]], fps=Fraction(12))
    make_video(videos / "late.mp4", [np.zeros_like(heads[2][0])] * 10 + heads[2], fps=Fraction(12))
    base: list[Any] = ["prepare", videos, "--output", output, "--size", 64, "--jobs", 2, "--json"]
    code, out, err = fye(*base, "--face-landmarker", face_landmarker_path)
    assert code == 0, err
    cut, late = json.loads(out)["videos"]
    assert {"start": 0, "stop": 10, "reason": "no face"} in late["rejected"]
    edges = {clip["start"] for clip in cut["clips"]} | {piece["start"] for piece in cut["rejected"]}
    assert 30 in edges
    assert not any(clip["start"] < 30 < clip["stop"] for clip in cut["clips"])
    dataset = Dataset(output)
    assert sum(clip.frames for clip in dataset.clips) > 60
    with FaceLandmarkDetector(face_landmarker_path) as detector:
        for clip in range(len(dataset)):
            large = cv2.resize(dataset.frame(clip, 2), (256, 256), interpolation=cv2.INTER_CUBIC)
            face = detector.detect(np.asarray(large, np.uint8))
            assert face is not None
            known = dataset.landmarks(clip, [2])[0]
            assert np.linalg.norm((face.landmarks - known)[:, :2], axis=1).mean() < 0.02

    recipe = tmp_path / "recipe.json"
    phase = {"steps": 4, "batch": 2, "frames": 3, "warmup": 1, "none_given": 0.5}
    options = {"image": phase, "video": phase, "log_every": 1, "sample_every": 4, "checkpoint_every": 4}
    recipe.write_text(json.dumps({"base": "smoke", "latents": "encode", **options}), encoding="utf-8")
    start = save_small(tmp_path / "start")
    arguments = ["train", "--config", recipe, "--dataset", output, "--init", start, "--output", tmp_path / "run"]
    code, out, err = fye(*arguments)
    assert code == 0, err
    for name in ("image", "video"):
        lines = (tmp_path / "run" / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
        sheet = cv2.imread(str(tmp_path / "run" / name / "samples" / "000004.png"))
        assert sheet is not None
        assert sheet.shape == (64 * min(4, len(dataset)), 9 * 64, 3)
    FollowYourEmojiPipeline.from_pretrained(tmp_path / "run" / "model")

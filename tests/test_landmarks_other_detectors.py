"""A detector of one's own behind `--detector package.module:function`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import Fye, grey_frames, make_video
from landmark_faces import face

from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.other_detectors import ModelDetector, load_detector
from fye_pipeline.landmarks.sequence import LandmarkSequence

SOURCE = '''
import numpy as np

FACE = np.load({path!r})

def faces(image):
    """The same face in every picture, further right the brighter it is."""
    return [] if image.max() == 0 else [FACE + [image.mean() / 2550, 0, 0]]

def wrong(image):
    return [FACE[:5]]

def nothing(image):
    return [FACE * np.nan]

number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own, by name."""
    np.save(tmp_path / "face.npy", face(width=80, height=64).landmarks)
    (tmp_path / "own_detector.py").write_text(SOURCE.format(path=str(tmp_path / "face.npy")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_detector", raising=False)
    return "own_detector"


def test_a_function_stands_in_for_mediapipe(module: str, fye: Fye, tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", grey_frames(7)[1:])
    arguments = ("landmarks", video, "--output", tmp_path / "s.npz", "--json", "--detector", f"{module}:faces")
    code, out, err = fye(*arguments)
    assert code == 0, err
    assert json.loads(out)["frames"] == 6
    sequence = LandmarkSequence.load(tmp_path / "s.npz")
    assert np.diff(sequence.landmarks[:, 0, 0]).min() > 0
    assert (sequence.width, sequence.height) == (80, 64)
    assert sequence.transforms[0, 2, 3] < -10  # the pose is derived from the landmarks


def test_faces_are_chosen_as_mediapipes_are() -> None:
    far, near = face(shift=-8, distance=90).landmarks, face(shift=4).landmarks
    detector = ModelDetector(lambda image: [near, far])
    picture = np.zeros((64, 64, 3), np.uint8)
    assert [each.box[0] for each in detector.detect_all(picture)] == sorted(
        each.box[0] for each in detector.detect_all(picture)
    )
    largest, second = detector.detect(picture), detector.detect(picture, face_index=1)
    assert largest is not None
    assert second is not None
    assert np.array_equal(largest.landmarks, second.landmarks)


def test_a_portrait_without_a_face_names_the_detector(
    module: str, fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (256, 256)).save(tmp_path / "black.png")
    arguments = ("animate", "--reference", tmp_path / "black.png", "--model", random_model)
    sentence = fye.refused(*arguments, "--output", tmp_path / "a.mp4", "--detector", f"{module}:faces")
    assert f"(by {module}:faces)" in sentence
    assert "--points" in sentence


@pytest.mark.parametrize(
    ("function", "reason"), [("wrong", r"must give \[478, 3\] landmarks"), ("nothing", "finite landmarks")]
)
def test_landmarks_that_are_none_are_one_sentence(module: str, function: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason), LazyDetector(name=f"{module}:{function}") as detector:
        detector.open().detect_all(np.full((64, 64, 3), 9, np.uint8))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("retina", r"must be mediapipe, points or package\.module:function"),
        (":faces", r"must be mediapipe, points or package\.module:function"),
        ("no_such_module:faces", "cannot be loaded"),
        ("own_detector:absent", "cannot be loaded"),
        ("own_detector:number", "is no function"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_one_sentence(module: str, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_detector(name)


def test_a_manifest_passes_the_detector_on(module: str, fye: Fye, tmp_path: Path, random_model: Path) -> None:
    video = make_video(tmp_path / "v.mp4", grey_frames(3, height=200, width=200)[1:])
    values: dict[str, Any] = {"reference": str(video), "driving": str(video), "output": "a.mp4", "reference_frame": 0}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(values))
    options = ("--model", random_model, "--steps", 1, "--no-cache", "--min-face", 10)
    code, _, err = fye("animate", "--manifest", tmp_path / "jobs.jsonl", *options, "--detector", f"{module}:faces")
    assert code == 0, err
    assert (tmp_path / "a.mp4").is_file()

"""The real MediaPipe on real pictures and videos."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.media.video import probe, read_frames


def portrait(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / f"{name}.jpg") as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def detector(face_landmarker_path: Path) -> Iterator[FaceLandmarkDetector]:
    with FaceLandmarkDetector(face_landmarker_path) as opened:
        yield opened


def test_the_package_does_not_import_mediapipe() -> None:
    modules = (
        "fye_pipeline, fye_pipeline.landmarks.drawing, fye_pipeline.landmarks.detector, fye_pipeline.landmarks.drawing"
    )
    code = f"import sys, {modules}; sys.exit('mediapipe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_mode_is_checked_and_the_file_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be image or video, got 'live'"):
        FaceLandmarkDetector(mode="live")  # pyright: ignore[reportArgumentType]
    (tmp_path / "x.task").write_bytes(b"x")
    with pytest.raises(UserError, match="expected SHA-256"):
        FaceLandmarkDetector(tmp_path / "x.task")


@pytest.mark.parametrize("name", ["s0", "s6", "s7", "s9", "s30"])
def test_a_face_is_found_in_a_portrait(detector: FaceLandmarkDetector, portraits_dir: Path, name: str) -> None:
    image = portrait(portraits_dir, name)
    face = detector.detect(image)
    assert face is not None
    assert (face.height, face.width) == image.shape[:2]
    assert face.landmarks.shape == (478, 3)
    assert face.blendshapes.shape == (52,)
    left, top, right, bottom = face.box
    assert 0 < left < right < 1
    assert 0 < top < bottom < 1
    assert face.landmarks[468, 0] < face.landmarks[473, 0]  # the person's right eye is on the left
    assert face.transform[2, 3] < -10  # cm, before the camera
    assert np.linalg.norm(face.mesh - detector.canonical.vertices, axis=1).mean() < 1.5  # cm


def test_a_cat_is_refused(detector: FaceLandmarkDetector, portraits_dir: Path) -> None:
    cat = portrait(portraits_dir, "s39")
    assert detector.detect(cat) is None


@pytest.mark.parametrize("name", ["s9.c512", "s2.c512", "s5.c512"])
def test_detection_agrees_with_the_official_one(detector: FaceLandmarkDetector, parity_dir: Path, name: str) -> None:
    path = parity_dir / "landmark_ref.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    fixture = np.load(path)
    face = detector.detect(fixture[f"{name}.image"])
    assert face is not None
    # Another MediaPipe made the fixture (0.10.14).
    np.testing.assert_allclose(face.landmarks, fixture[f"{name}.lmks"], atol=5e-5)
    np.testing.assert_allclose(face.blendshapes[1:], fixture[f"{name}.bs"], atol=2e-3)
    np.testing.assert_allclose(face.mesh, fixture[f"{name}.lmks3d"], atol=5e-3)
    np.testing.assert_allclose(face.transform, fixture[f"{name}.trans_mat"], atol=1e-2)


def test_several_faces_are_told_from_left_to_right(detector: FaceLandmarkDetector, portraits_dir: Path) -> None:
    image = portrait(portraits_dir, "s6")
    large = image[100:500, 150:550]
    both = np.concatenate([np.pad(large[::2, ::2], ((0, 200), (0, 0), (0, 0)), "edge"), large], axis=1)
    faces = detector.detect_all(both)
    assert len(faces) == 2
    assert faces[0].size < faces[1].size
    chosen, first = detector.detect(both), detector.detect(both, face_index=0)
    assert chosen is not None
    assert first is not None
    np.testing.assert_array_equal(chosen.landmarks, faces[1].landmarks)
    np.testing.assert_array_equal(first.landmarks, faces[0].landmarks)
    assert detector.detect(both, face_index=2) is None


@pytest.mark.parametrize("name", ["d12", "d18", "temple_video"])
def test_a_video_is_followed(detector: FaceLandmarkDetector, driving_dir: Path, name: str) -> None:
    path = driving_dir / f"{name}.mp4"
    told: list[int] = []
    made = detector.detect_video(islice(read_frames(path), 20), probe(path).fps, told.append)
    assert made.found.all()
    assert told == list(range(1, 21))
    assert made.fps == probe(path).fps


@pytest.mark.parametrize("mode", ["image", "video"])
def test_black_frames_are_bridged_or_named(driving_dir: Path, face_landmarker_path: Path, mode: str) -> None:
    path = driving_dir / "d18.mp4"
    frames = list(islice(read_frames(path), 24))
    for number in (0, 9, 10):
        frames[number] = np.zeros_like(frames[number])
    with FaceLandmarkDetector(face_landmarker_path, mode=mode) as detector:  # pyright: ignore[reportArgumentType]
        made = detector.detect_video(iter(frames), Fraction(30))
        assert made.gaps() == [(0, 1), (9, 11)]
        again = detector.detect_video(iter(frames), Fraction(30))  # timestamps begin anew
        np.testing.assert_array_equal(again.landmarks, made.landmarks)
        steps = np.linalg.norm(np.diff(made.landmarks[..., :2], axis=0), axis=-1).mean(1)
        assert steps.max() < 0.02  # picture widths: no jump at a gap
        with pytest.raises(UserError, match=r"frames 9-10 \(0\.30-0\.37 s\)"):
            detector.detect_video(iter(frames), Fraction(30), None, "interpolate", 0.05)


def test_video_mode_differs_little_and_jitters_less(driving_dir: Path, face_landmarker_path: Path) -> None:
    path = driving_dir / "d18.mp4"

    def read(mode: str) -> np.ndarray:
        with FaceLandmarkDetector(face_landmarker_path, mode=mode) as detector:  # pyright: ignore[reportArgumentType]
            made = detector.detect_video(islice(read_frames(path), 30), 30)
        return made.landmarks[..., :2] * made.width

    image, video = read("image"), read("video")
    assert np.linalg.norm(image - video, axis=-1).mean() < 4  # pixels
    assert np.abs(np.diff(video, 2, axis=0)).mean() < 0.7 * np.abs(np.diff(image, 2, axis=0)).mean()


def test_a_detector_is_quiet_and_ends_without_a_traceback(portraits_dir: Path, face_landmarker_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom PIL import Image\n"
        "from fye_pipeline.landmarks.detector import FaceLandmarkDetector\n"
        "image = np.asarray(Image.open(sys.argv[1]).convert('RGB'))\n"
        "with FaceLandmarkDetector(sys.argv[2]) as detector: assert detector.detect(image)\n"
        "print('after', file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, str(portraits_dir / "s7.jpg"), str(face_landmarker_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "after\n"


def test_an_unopened_detector_needs_no_closing(face_landmarker_path: Path) -> None:
    with FaceLandmarkDetector(face_landmarker_path):
        pass

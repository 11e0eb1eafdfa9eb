"""Five points placed by hand: they are met, the face is one as a detector gives, and bad points are one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import Fye
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from fye_pipeline.animate.config import DEMO_DRIVING, DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS, AnimationSettings
from fye_pipeline.animate.portrait import read_portrait
from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import face_region
from fye_pipeline.landmarks.geometry import CanonicalFace, align, project, transform
from fye_pipeline.landmarks.points import NAMES, fit_points, read_points
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import LEFT_EYE_POINTS, LEFT_IRIS, RIGHT_EYE_POINTS, RIGHT_IRIS

# A cat that looks up with its head tilted: the mouth is half as wide as a person's.
CAT = {
    "left_eye": (415, 480),
    "right_eye": (631, 416),
    "nose": (568, 558),
    "left_mouth": (533, 656),
    "right_mouth": (632, 630),
}
SIZE = (1080, 1439)
GROUPS = (RIGHT_EYE_POINTS, LEFT_EYE_POINTS, (1,), (61,), (291,))


def seen(landmarks: NDArray, width: int, height: int) -> NDArray[np.float64]:
    """Where the five points are in landmarks [478, 3], in pixels. [5, 2]"""
    return np.stack([landmarks[list(group), :2].mean(0) for group in GROUPS]) * (width, height)


def posed(turn: tuple[float, float, float], width: int, height: int) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The five points of the canonical face turned by yaw, pitch and roll, and all of its points in pixels."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("ZYX", (turn[2], turn[0], turn[1]), degrees=True).as_matrix()
    matrix[:3, 3] = 1.5, -2.0, -60.0
    flat = project(transform(CanonicalFace.load().vertices, matrix), width, height)
    points: dict[str, Any] = dict(zip(NAMES, seen(flat, width, height).tolist(), strict=True))
    return points, flat[:, :2] * (width, height)


@pytest.mark.parametrize("turn", [(0, 0, 0), (15, 0, 0), (-20, 5, 0), (0, -10, 30), (10, 5, -75), (0, 0, 170)])
@pytest.mark.parametrize("size", [(640, 480), (480, 640)])
def test_the_canonical_face_is_found_again_whole(turn: tuple[float, float, float], size: tuple[int, int]) -> None:
    points, whole = posed(turn, *size)
    face = fit_points(points, *size)
    eyes = math.dist(points["left_eye"], points["right_eye"])
    assert np.linalg.norm(face.landmarks[:468, :2] * size - whole, axis=1).max() < 0.12 * eyes
    roll = Rotation.from_matrix(face.transform[:3, :3]).as_euler("ZYX", degrees=True)[0]
    assert abs((roll - turn[2] + 180) % 360 - 180) < 3


@given(st.tuples(*[st.floats(-0.06, 0.06)] * 10), st.floats(-40, 40), st.floats(80, 400))
def test_the_points_are_met_whatever_they_are(jitter: tuple[float, ...], roll: float, spread: float) -> None:
    upright = np.array([(-0.5, -0.4), (0.5, -0.4), (0, 0.15), (-0.35, 0.5), (0.35, 0.5)])
    angle = math.radians(roll)
    turned = (upright + np.reshape(jitter, (5, 2))) @ [
        [math.cos(angle), math.sin(angle)],
        [-math.sin(angle), math.cos(angle)],
    ]
    placed = turned * spread + (500, 400)
    face = fit_points(dict(zip(NAMES, placed.tolist(), strict=True)), 1000, 800)
    np.testing.assert_allclose(seen(face.landmarks, 1000, 800), placed, atol=0.01)
    np.testing.assert_allclose(face.landmarks[[468, 473], :2] * (1000, 800), placed[:2], atol=0.01)


def test_a_cats_face_is_a_face_as_a_detector_gives_it() -> None:
    face = fit_points(CAT, *SIZE)
    assert [array.shape for array in face.arrays.values()] == [(478, 3), (468, 3), (4, 4), (52,)]
    assert (face.width, face.height) == SIZE
    assert not face.blendshapes.any()
    assert all(np.isfinite(array).all() for array in face.arrays.values())
    np.testing.assert_allclose(seen(face.landmarks, *SIZE), list(CAT.values()), atol=0.01)
    assert face.transform[2, 3] < -10  # cm, before the camera
    assert np.linalg.det(face.transform[:3, :3]) == pytest.approx(1, abs=0.1)
    assert 12 < np.ptp(face.mesh[:, 1]) < 25  # cm: as tall as a face in the metric space
    left, top, right, bottom = face.box
    assert 0 < left < 415 / 1080 < 631 / 1080 < right < 1
    assert 0 < top < 416 / 1439 < 656 / 1439 < bottom < 1
    nose, ear = face.landmarks[1, 2], face.landmarks[234, 2]
    assert nose < ear  # smaller is nearer
    for iris in (RIGHT_IRIS, LEFT_IRIS):  # round in pixels, right of, above, left of and below the pupil
        offsets = (face.landmarks[list(iris[1:]), :2] - face.landmarks[iris[0], :2]) * SIZE
        np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), np.linalg.norm(offsets[0]), rtol=1e-3)
        np.testing.assert_array_equal(np.sign(offsets.round(3)), [(1, 0), (0, -1), (-1, 0), (0, 1)])


def test_the_neutral_face_is_drawn_at_the_points() -> None:
    face = fit_points(CAT, *SIZE).as_sequence()
    (drawn,) = align(face, face)
    eyes = math.dist(CAT["left_eye"], CAT["right_eye"])
    assert np.linalg.norm(seen(drawn, *SIZE) - list(CAT.values()), axis=1).max() < 0.02 * eyes


def test_masks_lie_over_the_face() -> None:
    face = fit_points(CAT, *SIZE).as_sequence()
    (mask,) = face_region(face.landmarks, 144, 108)
    for name, (x, y) in CAT.items():
        assert mask[round(y / 10), round(x / 10)] > 0.5, name
    assert mask[:20].max() == mask[-40:].max() == 0


def test_shares_are_the_same_points_as_pixels() -> None:
    shares = {name: (x / SIZE[0], y / SIZE[1]) for name, (x, y) in CAT.items()}
    np.testing.assert_allclose(fit_points(shares, *SIZE).landmarks, fit_points(CAT, *SIZE).landmarks, atol=1e-6)


def exchanged(*pairs: tuple[str, str]) -> dict[str, Any]:
    points = dict(CAT)
    for one, other in pairs:
        points[one], points[other] = points[other], points[one]
    return points


BAD: list[tuple[Any, str]] = [
    ([], "must be an object with left_eye, right_eye, nose"),
    ({}, "without left_eye, right_eye, nose, left_mouth, right_mouth"),
    ({name: CAT[name] for name in NAMES[:4]}, "without right_mouth"),
    (CAT | {"chin": (1, 2)}, "with chin"),
    (CAT | {"nose": (1, 2, 3)}, "nose must be two numbers"),
    (CAT | {"nose": "12"}, "nose must be two numbers"),
    (CAT | {"nose": (True, 5)}, "nose must be two numbers"),
    (CAT | {"nose": (float("nan"), 5)}, "nose must be two numbers"),
    (CAT | {"nose": None}, "nose must be two numbers"),
    (CAT | {"right_eye": (1081, 400)}, "right_eye at 1081,400 lies outside of the picture of 1080 x 1439 pixels"),
    (CAT | {"left_mouth": (533, -1)}, "left_mouth at 533,-1 lies outside"),
    (exchanged(("left_eye", "right_eye"), ("left_mouth", "right_mouth")), "left and right are exchanged"),
    (exchanged(("left_eye", "right_eye")), "left and right are exchanged"),
    (exchanged(("left_mouth", "right_mouth")), "left and right are exchanged"),
    ({name: (100 + 50 * index, 200 + 20 * index) for index, name in enumerate(NAMES)}, "almost on one line"),
    (dict.fromkeys(NAMES, (100, 200)), "pixels apart"),
    (dict.fromkeys(NAMES, (0.5, 0.5)), "pixels apart"),
    (CAT | {"nose": (523, 300)}, "the nose must lie between"),
    (CAT | {"nose": (600, 900)}, "the nose must lie between"),
    (CAT | {"nose": (900, 480)}, "the nose must lie between"),
    (CAT | {"left_mouth": (560, 649), "right_mouth": (1000, 530), "nose": (480, 475)}, "without a fold"),
]


@pytest.mark.parametrize(("points", "reason"), BAD)
def test_bad_points_are_one_sentence(points: Any, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        fit_points(points, *SIZE)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_points_is_read_as_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path, CAT)
    assert read_points(path) == CAT
    path.write_text("eyes: 3")
    with pytest.raises(UserError, match="is not JSON"):
        read_points(path)
    with pytest.raises(UserError, match="does not exist"):
        read_points(tmp_path / "none.json")


def write(folder: Path, points: Any, name: str = "points.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(points))
    return path


@pytest.fixture
def demo_points(tmp_path: Path) -> Path:
    """Five points of the portrait that ships, as a hand would place them: to the pixel."""
    landmarks = LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS)
    with Image.open(DEMO_PORTRAIT) as picture:
        size = picture.size
    places = seen(landmarks.landmarks[0], *size).round().tolist()
    return write(tmp_path, dict(zip(NAMES, places, strict=True)), "demo.json")


class NoDetector(LazyDetector):
    """Fails where a face is sought."""

    def open(self) -> Any:
        raise AssertionError("a face is sought")


@pytest.mark.parametrize("framing", [None, "crop", "whole"])
def test_a_portrait_with_points_needs_no_detector_in_any_framing(demo_points: Path, framing: Any) -> None:
    settings = AnimationSettings(points=demo_points, framing=framing)
    assert settings.resolved_framing == (framing or "paste")
    portrait = read_portrait(settings, NoDetector())
    assert portrait.face is not None
    assert (portrait.face.width, portrait.face.height) == portrait.square.shape[:2]
    placed = np.array(list(read_points(demo_points).values()))
    if portrait.crop is not None:
        placed = (placed - (portrait.crop.left, portrait.crop.top)) * 512 / portrait.crop.side
    else:
        placed = placed * 512 / max(portrait.picture.shape)
    np.testing.assert_allclose(seen(portrait.face.landmarks[0], 512, 512), placed, atol=0.1)
    (drawn,) = align(portrait.face, portrait.face)
    np.testing.assert_allclose(seen(drawn, 512, 512), placed, atol=3)


def test_landmarks_of_a_picture_belong_to_all_of_it_whatever_its_shape(tmp_path: Path, demo_points: Path) -> None:
    with Image.open(DEMO_PORTRAIT) as picture:
        wide = Image.new("RGB", (picture.width * 2, picture.height))
        wide.paste(picture.convert("RGB"), (picture.width // 2, 0))
    wide.save(tmp_path / "wide.png")
    points = {name: (x + wide.width / 4, y) for name, (x, y) in read_points(demo_points).items()}
    fit_points(points, *wide.size).as_sequence().save(tmp_path / "wide.npz")
    given_points = {"reference": tmp_path / "wide.png", "points": write(tmp_path, points)}
    given_landmarks = {"reference": tmp_path / "wide.png", "reference_landmarks": tmp_path / "wide.npz"}
    for framing in ("whole", "crop", "paste"):
        by_points = read_portrait(AnimationSettings(**given_points, framing=framing), NoDetector())
        by_landmarks = read_portrait(AnimationSettings(**given_landmarks, framing=framing), NoDetector())
        assert by_points.crop == by_landmarks.crop
        assert by_points.face is not None
        assert by_landmarks.face is not None
        np.testing.assert_allclose(by_landmarks.face.landmarks, by_points.face.landmarks, atol=1e-5)
        np.testing.assert_allclose(by_landmarks.face.mesh, by_points.face.mesh, atol=1e-2)


def test_landmarks_of_another_picture_cannot_be_cropped(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "other.png")
    settings = AnimationSettings(
        reference=tmp_path / "other.png", reference_landmarks=DEMO_PORTRAIT_LANDMARKS, framing="crop"
    )
    with pytest.raises(UserError, match="not to the 300 x 200 pixels of"):
        read_portrait(settings, NoDetector())


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"unaligned": True}, "leave out --unaligned"),
        ({"reference_landmarks": DEMO_PORTRAIT_LANDMARKS}, "leave out --unaligned and --reference-landmarks"),
        ({"face": "2"}, "leave out --face"),
    ],
)
def test_points_go_with_nothing_else_that_tells_where_the_face_is(
    demo_points: Path, others: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        AnimationSettings(points=demo_points, **others)


def test_a_small_face_is_refused_by_its_points_too(demo_points: Path) -> None:
    with pytest.raises(UserError, match="at least 4000 are needed"):
        read_portrait(AnimationSettings(points=demo_points, min_face=4000), NoDetector())


def test_the_command_writes_one_frame_that_animates(
    fye: Fye, tmp_path: Path, demo_points: Path, random_model: Path
) -> None:
    sequence = tmp_path / "face.npz"
    arguments = ("landmarks", DEMO_PORTRAIT, "--points", demo_points, "--detector", "points", "--output", sequence)
    code, out, err = fye(*arguments, "--json")
    assert code == 0, err
    assert json.loads(out)["fps"] is None
    assert len(LandmarkSequence.load(sequence)) == 1
    options = ("--model", random_model, "--driving", DEMO_DRIVING, "--frames", 2, "--steps", 1, "--no-cache")
    pointed, written = tmp_path / "a.mp4", tmp_path / "b.mp4"
    code, _, err = fye("animate", *options, "--points", demo_points, "--crop-only", "--output", pointed)
    assert code == 0, err
    with_file = ("--reference", DEMO_PORTRAIT, "--reference-landmarks", sequence, "--crop-only")
    code, _, err = fye("animate", *options, *with_file, "--output", written)
    assert code == 0, err
    made = [json.loads((tmp_path / f"{name}_crop.json").read_text()) for name in "ab"]
    assert made[0] == made[1]


def test_the_command_refuses_bad_points_with_one_sentence(fye: Fye, tmp_path: Path, random_model: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "cat.png")
    few = write(tmp_path, {"nose": [3, 4]})
    output = ("--output", tmp_path / "a.npz")
    assert "without left_eye" in fye.refused("landmarks", tmp_path / "cat.png", "--points", few, *output)
    animate = ("animate", "--reference", tmp_path / "cat.png", "--model", random_model, "--output", tmp_path / "a.mp4")
    assert "without left_eye" in fye.refused(*animate, "--points", few)
    assert "needs --points" in fye.refused(*animate, "--detector", "points")
    assert "needs --points" in fye.refused("landmarks", tmp_path / "cat.png", "--detector", "points", *output)
    assert list(tmp_path.glob("a.*")) == []


def test_a_new_portrait_drops_the_points_of_the_settings_file(fye: Fye, tmp_path: Path, demo_points: Path) -> None:
    config = write(tmp_path, {"points": str(demo_points)}, "config.json")
    Image.effect_noise((256, 256), 60).convert("RGB").save(tmp_path / "noise.png")
    saved = tmp_path / "saved.json"
    save = (
        "animate",
        "--config",
        config,
        "--save-config",
        saved,
        "--driving",
        "none.mp4",
        "--output",
        tmp_path / "a.mp4",
    )
    fye.refused(*save)
    assert json.loads(saved.read_text())["points"] == str(demo_points)
    fye.refused(*save, "--reference", tmp_path / "noise.png", "--overwrite")
    assert json.loads(saved.read_text())["points"] is None

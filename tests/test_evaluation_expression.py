"""Expression, gaze and pose figures against small hand-made faces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fye_pipeline.evaluation.face_tracks import FACE_FIGURES, compare_faces, landmark_error, track_face
from fye_pipeline.landmarks import expression
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.sequence import LandmarkSequence


def face(**moved: tuple[float, float]) -> np.ndarray:
    """[1, 478, 3] with eyes 0.1 wide and 0.03 open, pupils in their middle, the mouth 0.2 wide and 0.05 open."""
    points = np.full((1, 478, 3), 0.5)
    places: dict[int, tuple[float, float]] = {
        33: (0.3, 0.4), 133: (0.4, 0.4), 145: (0.35, 0.415), 159: (0.35, 0.385), 468: (0.35, 0.4),
        362: (0.6, 0.4), 263: (0.7, 0.4), 374: (0.65, 0.415), 386: (0.65, 0.385), 473: (0.65, 0.4),
        61: (0.4, 0.7), 291: (0.6, 0.7), 0: (0.5, 0.675), 17: (0.5, 0.725),
    }  # fmt: skip
    places |= {int(name[1:]): place for name, place in moved.items()}
    for index, place in places.items():
        points[0, index, :2] = place
    return points


def sequence(points: np.ndarray, **arrays: Any) -> LandmarkSequence:
    count = len(points)
    values = {
        "mesh": np.zeros((count, 468, 3)),
        "transforms": np.tile(np.eye(4), (count, 1, 1)),
        "blendshapes": np.full((count, 52), 0.5),
        "found": np.ones(count, bool),
    }
    return LandmarkSequence(points, **(values | arrays), width=100, height=100)


def test_blendshapes_are_summed_and_averaged() -> None:
    first, second = np.zeros((2, 52)), np.zeros((2, 52))
    second[0, :2] = 0.3, 0.4  # the other frame is equal
    assert expression.blendshape_difference(first, second) == pytest.approx((0.35, 0.35 / 52))
    assert expression.expression_distance(first, second) == pytest.approx(0.25)  # 0.5 by Pythagoras, and 0


def test_ratios_of_a_known_face() -> None:
    assert expression.landmark_ratios(face())[0] == pytest.approx([0.3, 0.5, 0.3, 0.5, 0.25])


def test_ratio_difference_adds_eye_pupil_and_mouth() -> None:
    # The left eye shuts (-0.3), its pupil moves a tenth of the eye (0.1), the mouth opens twice as wide (+0.25).
    other = face(p145=(0.35, 0.4), p159=(0.35, 0.4), p468=(0.34, 0.4), p0=(0.5, 0.65), p17=(0.5, 0.75))
    assert expression.ratio_difference(face(), other) == pytest.approx(0.3 + 0.1 + 0.25)


def test_ratios_are_measured_in_the_picture() -> None:
    """In a picture twice as high as wide the same 0..1 coordinates open the mouth twice as far."""
    assert expression.landmark_ratios(face(), aspect=2.0)[0, 4] == pytest.approx(0.5)


def test_a_flat_mouth_does_not_divide_by_zero() -> None:
    ratio = expression.landmark_ratios(face(p61=(0.5, 0.7), p291=(0.5, 0.7)))[0, 4]
    assert ratio == pytest.approx(0.05 / 1e-5)


def test_landmark_distance_is_in_thousandths() -> None:
    assert expression.landmark_distance(face(), face() + np.array([0.003, 0.004, 9])) == pytest.approx(5)


def test_alignment_forgives_place_and_size_and_nothing_else() -> None:
    assert expression.alignment_error(face(), 0.2 + face() * 0.5) == pytest.approx(0, abs=1e-9)
    spread = np.random.default_rng(0).random((1, 478, 3))
    moved = spread.copy()
    moved[0, 7, 0] += 0.05
    error = expression.alignment_error(moved, spread)
    assert 0.00008 < error < 0.0003  # about 0.05 / 478, of a face about 1 wide
    half = expression.alignment_error(moved * 0.5, spread * 0.5)
    assert half == pytest.approx(error)  # face widths: the same face, half as large
    turned = spread[..., [1, 0, 2]]
    assert expression.alignment_error(turned, spread) > 0.1


def test_gaze_of_a_known_iris() -> None:
    # An offset of 0.02 over a radius of 0.4 x 0.1 is the sine of 30 degrees.
    looks, opened = expression.gaze_directions(face(p468=(0.37, 0.4)))
    assert looks[0, 0] == pytest.approx([0.5, 0, math.sqrt(0.75)])
    assert looks[0, 1] == pytest.approx([0, 0, 1])
    assert opened.all()
    down, _ = expression.gaze_directions(face(p473=(0.65, 0.42)))
    assert down[0, 1] == pytest.approx([0, 0.5, math.sqrt(0.75)])


def test_gaze_error_is_the_mean_angle_of_open_eyes() -> None:
    assert expression.gaze_error(face(), face(p468=(0.37, 0.4))) == pytest.approx(15)  # 30 and 0 degrees
    shut = face(p468=(0.37, 0.4), p374=(0.65, 0.4), p386=(0.65, 0.4))
    assert expression.gaze_error(face(), shut) == pytest.approx(30)
    both_shut = face(p145=(0.35, 0.4), p159=(0.35, 0.4), p374=(0.65, 0.4), p386=(0.65, 0.4))
    assert math.isnan(expression.gaze_error(face(), both_shut))


def test_gaze_turns_with_the_head() -> None:
    """A rolled head looks the same way in its own frame."""
    straight = face(p468=(0.37, 0.4), p473=(0.67, 0.4))
    rolled = straight.copy()
    rolled[..., :2] = (straight[..., :2] - 0.5) @ Rotation.from_euler("z", 30, degrees=True).as_matrix()[:2, :2] + 0.5
    assert expression.gaze_error(straight, rolled) == pytest.approx(0, abs=1e-5)


def test_pose_distance_is_angle_and_shift() -> None:
    first, second = np.tile(np.eye(4), (2, 1, 1)), np.tile(np.eye(4), (2, 1, 1))
    second[0, :3, :3] = Rotation.from_euler("y", 0.2).as_matrix()
    second[1, :3, 3] = 3, 0, 4
    assert expression.pose_distance(first, second) == pytest.approx((0.1, 2.5))


def test_landmark_jitter_skips_gaps() -> None:
    points = np.repeat(face(), 5, axis=0)
    points[:, :, 0] += np.array([0, 0.01, 0.02, 0.03, 0.05])[:, None]
    found = np.ones(5, bool)
    assert expression.landmark_jitter(points, found) == pytest.approx(1000 * (0 + 0 + 0.01) / 3)
    found[4] = False
    assert expression.landmark_jitter(points, found) == pytest.approx(0, abs=1e-9)
    found[1] = False
    assert math.isnan(expression.landmark_jitter(points, found))


def test_videos_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="the same frames, at least one, got 1 and 2"):
        expression.gaze_error(face(), np.repeat(face(), 2, axis=0))


def test_frames_without_a_face_are_marked_and_left_out() -> None:
    one = Face(face()[0].astype(np.float32), np.zeros((468, 3), np.float32), np.eye(4), np.ones(52, np.float32), 8, 8)
    answers = iter([one, None])
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[1] = 1
    seen = track_face(frames, lambda frame: next(answers))
    assert seen.found.tolist() == [True, False]
    assert np.isnan(seen.landmarks[1]).all()
    driver = sequence(np.repeat(face(), 2, axis=0))
    figures = compare_faces(seen, driver)
    assert tuple(figures) == FACE_FIGURES
    assert figures["exp"] == pytest.approx(26)
    assert figures["lmd"] == pytest.approx(0, abs=1e-4)
    shifted = sequence(np.repeat(face(), 2, axis=0) + np.array([0.03, 0.04, 0]))
    assert landmark_error(seen, shifted) == pytest.approx(0.05)


def test_a_still_is_sought_once() -> None:
    calls: list[int] = []
    seen = track_face(np.zeros((3, 8, 8, 3), np.uint8), lambda frame: calls.append(1))
    assert len(calls) == 1
    assert seen.found.tolist() == [False] * 3


def test_a_driver_without_scores_gives_no_score() -> None:
    driver = sequence(face(), blendshapes=np.zeros((1, 52)))
    figures = compare_faces(sequence(face()), driver)
    assert math.isnan(figures["exp"])
    assert math.isnan(figures["aed"])
    assert figures["lms"] == 0


def test_no_common_face_gives_no_figure() -> None:
    figures = compare_faces(sequence(face(), found=np.zeros(1, bool)), sequence(face()))
    assert all(math.isnan(value) for value in figures.values())

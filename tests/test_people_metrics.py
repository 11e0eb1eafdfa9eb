"""The figures of FantasyPortrait's tables, against cases that can be worked out by hand."""

import numpy as np
import pytest

from fye_pipeline.multi_portrait import metrics


def test_landmark_distance_counts_in_widths_of_the_picture():
    wanted = np.zeros((2, 3, 3))
    found = wanted + np.array([0.03, 0.04, 9.0])
    assert metrics.lmd(found, wanted) == pytest.approx(0.05)
    assert metrics.lmd(found, wanted, aspect=0.5) == pytest.approx(np.hypot(0.03, 0.02))


def test_frames_that_are_not_seen_do_not_count():
    wanted = np.zeros((2, 3, 2))
    found = np.stack([wanted[0], wanted[1] + np.nan])
    assert metrics.lmd(found, wanted, seen=np.array([True, False])) == 0
    assert np.isnan(metrics.lmd(found, wanted, seen=np.array([False, False])))


def test_gaze_is_an_angle_and_shut_eyes_are_left_out():
    wanted = metrics.gaze_vectors(np.zeros((1, 2, 2)))
    found = wanted.copy()
    found[0, 0] = (1.0, 0.0, 0.0)
    assert metrics.mae(found, wanted) == pytest.approx(45.0)
    assert metrics.mae(found, wanted, closed=np.array([[0.9, 0.0]])) == pytest.approx(0.0)
    assert np.isnan(metrics.mae(found, wanted, closed=np.ones((1, 2))))


def test_blendshapes_tell_the_gaze_of_both_eyes_and_their_lids():
    scores = np.zeros((2, 52))
    scores[0, [15, 14]] = 1  # left eye outwards and right eye inwards: both to the picture's right
    scores[1, [11, 12]] = 0.5
    scores[1, 9] = 0.8
    directions, closed = metrics.blendshape_gaze(scores)
    assert directions.shape == (2, 2, 3)
    np.testing.assert_allclose(directions[0], metrics.gaze_vectors(np.array([[1.0, 0.0]] * 2)))
    np.testing.assert_allclose(directions[1], metrics.gaze_vectors(np.array([[0.0, -0.5]] * 2)))
    np.testing.assert_allclose(closed, [[0, 0], [0.8, 0]])


def test_expression_and_pose_distances():
    assert metrics.aed(np.full((2, 4), 0.25), np.zeros((2, 4))) == pytest.approx(0.25)
    turn = np.eye(4)[None].repeat(2, 0)
    turn[1, :2, :2] = [[0, -1], [1, 0]]  # a quarter turn in the picture
    vectors = metrics.rotation_vectors(turn)
    assert metrics.apd(vectors, np.zeros((2, 3))) == pytest.approx(np.pi / 4)


def test_leak_is_what_the_other_driver_changes_over_what_the_own_one_does():
    made = np.zeros((1, 4, 4, 3))
    face = np.zeros((1, 4, 4), bool)
    face[:, :2] = True
    other, own = made + 0.1, made + 0.4
    other[:, 2:], own[:, 2:] = 9.0, -9.0  # outside the face: it does not count
    assert metrics.pixel_leak(made, other, own, face) == pytest.approx(0.25)
    assert np.isnan(metrics.pixel_leak(made, other, made, face))
    points = np.zeros((2, 5, 2))
    assert metrics.landmark_leak(points, points + 0.1, points - 0.2) == pytest.approx(0.5)


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        metrics.aed(np.zeros((2, 4)), np.zeros((2, 5)))

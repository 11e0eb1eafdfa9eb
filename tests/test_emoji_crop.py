"""The expression crop: the expression alone, upright, and nothing of hair, jaw and background."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fye_pipeline.emoji.expression_crop import (
    EXPRESSION_TEMPLATE,
    FIVE,
    MEAN_COLOUR,
    CropOptions,
    expression_crop,
    face_crop,
    points_in_crop,
    similarity,
)
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.topology import FACE_OVAL
from fye_pipeline.world import World

WORLD = World(CanonicalFace.load(), size=128)


def head(index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    clip = WORLD.portrait("held", index)
    return clip.frames[0], clip.sequence.landmarks[0]


def test_a_similarity_finds_turn_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(5, 2))
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    matrix = similarity(points, points @ turn.T + (3, -2))
    assert np.allclose(matrix, np.concatenate([turn, [[3], [-2]]], axis=1))


def test_the_roll_is_taken_out() -> None:
    picture, landmarks = head()
    turn = cv2.getRotationMatrix2D((64, 64), 25, 1)
    turned = np.asarray(cv2.warpAffine(picture, turn, (128, 128), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    points = (landmarks[:, :2] * 128) @ turn[:, :2].T + turn[:, 2]
    straight, upright = expression_crop(picture, landmarks, 64), expression_crop(turned, points / 128, 64)
    assert np.abs(straight.astype(int) - upright).mean() < 4
    assert np.abs(straight.astype(int) - np.rot90(upright)).mean() > 8  # what another turn would differ by


def test_what_is_not_expression_is_the_mean_colour() -> None:
    picture, landmarks = head()
    crop = expression_crop(picture, landmarks, 96)
    inside = points_in_crop(landmarks) * 96
    mean = np.round(MEAN_COLOUR)
    for point in (10, 152, 172, 397):  # forehead, chin, both sides of the jaw
        x, y = np.clip(np.round(inside[point]), 0, 95).astype(int)
        assert (crop[y, x] == mean).all(), f"point {point} of the oval is seen"
    assert (crop[0] == mean).all()
    for point in (468, 473, 1, 13):
        x, y = np.round(inside[point]).astype(int)
        assert (crop[y, x] != mean).any(), f"point {point} of the expression is hidden"


def test_nothing_beyond_the_face_changes_the_crop() -> None:
    picture, landmarks = head()
    other = picture.copy()
    mask = np.zeros((128, 128), np.uint8)
    hull = cv2.convexHull(np.round(landmarks[list(FACE_OVAL), :2] * 128).astype(np.int32))
    cv2.fillConvexPoly(mask, hull, 1)
    other[cv2.dilate(mask, np.ones((13, 13))) == 0] = (255, 0, 255)
    assert np.array_equal(expression_crop(picture, landmarks), expression_crop(other, landmarks))


def test_the_contour_brings_the_jaw_back() -> None:
    picture, landmarks = head()
    narrow, wide = (
        (expression_crop(picture, landmarks, 96, CropOptions(contour=flag)) != np.round(MEAN_COLOUR)).any(-1).mean()
        for flag in (False, True)
    )
    assert wide > 1.3 * narrow


def test_points_lie_in_the_template() -> None:
    _, landmarks = head(1)
    assert np.abs(points_in_crop(landmarks)[list(FIVE)] - EXPRESSION_TEMPLATE).max() < 0.08


def test_what_is_left_to_chance_needs_a_generator_and_follows_it() -> None:
    picture, landmarks = head()
    for options in (CropOptions(colour="jitter"), CropOptions(augment=True)):
        with pytest.raises(ValueError, match="rng must be given"):
            expression_crop(picture, landmarks, 64, options)
        once, again, other = (
            expression_crop(picture, landmarks, 64, options, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        assert np.array_equal(once, again)
        assert not np.array_equal(once, other)


def test_grey_keeps_the_shapes_and_loses_the_colour() -> None:
    picture, landmarks = head()
    crop = expression_crop(picture, landmarks, 64, CropOptions(colour="grey"))
    seen = (crop != np.round(MEAN_COLOUR)).any(-1)
    assert (np.ptp(crop[seen], axis=-1) == 0).all()


def test_a_face_crop_shows_hair_and_chin() -> None:
    picture, landmarks = head()
    assert face_crop(picture, landmarks).shape == (112, 112, 3)

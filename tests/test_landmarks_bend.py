"""The bent portrait: exact where nothing moves, right where geometry is known, honest about what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fye_pipeline.landmarks.bend import Bender
from fye_pipeline.landmarks.geometry import CanonicalFace, project
from fye_pipeline.landmarks.topology import INNER_LIPS, LEFT_EYE_POINTS, LEFT_IRIS, RIGHT_IRIS
from fye_pipeline.world import EXPRESSIONS, World

SIZE = 96


@pytest.fixture(scope="module")
def world() -> World:
    return World(CanonicalFace.load(), size=SIZE)


def landmarks_of(
    world: World, *, turn: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), gaze: float = 0.0, **expression: float
) -> np.ndarray:
    """Landmarks [478, 3] of one head of the world, 45 cm away. turn: degrees about the vertical; shift: cm."""
    values = np.zeros(len(EXPRESSIONS))
    for name, value in expression.items():
        values[EXPRESSIONS.index(name)] = value
    points = world.head("train", 2).pose(values, np.array([gaze, 0.0]))
    turned = points @ Rotation.from_euler("y", turn, degrees=True).as_matrix().T
    return project(turned + np.array([*shift, -45.0]), 1, 1)


def picture(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_its_own_landmarks_give_the_portrait_back(world: World) -> None:
    own = landmarks_of(world)
    bend = Bender(own).to(own, SIZE)
    assert np.abs(bend.apply(picture()).astype(int) - picture()).max() <= 1
    assert bend.moved.max() == 0
    assert not bend.mouth.any()


def test_a_portrait_of_another_size_is_bent_the_same_way(world: World) -> None:
    bend = Bender(landmarks_of(world)).to(landmarks_of(world, turn=12), SIZE)
    smooth = np.kron(np.linspace(0, 255, 16).astype(np.uint8)[None, :, None], np.ones((SIZE, 6, 3), np.uint8))
    large = np.kron(smooth, np.ones((4, 4, 1), np.uint8))
    assert np.abs(bend.apply(large).astype(int) - bend.apply(smooth)).mean() < 4


def test_a_shifted_head_takes_its_pixels_along_and_the_border_rests(world: World) -> None:
    own, moved = landmarks_of(world), landmarks_of(world, shift=(2.0, 0.0))
    bend = Bender(own).to(moved, SIZE)
    for point in (4, 152, 50, 280, 10):  # nose, chin, cheeks, forehead
        column, row = np.floor(moved[point, :2] * SIZE).astype(int)
        here = (np.array([column, row]) + 0.5) / SIZE
        found = np.array([bend.x[row, column], bend.y[row, column]])
        assert np.abs(found - (own[point, :2] + here - moved[point, :2])).max() < 0.5 / SIZE, point
    corner = (np.arange(SIZE) + 0.5) / SIZE
    np.testing.assert_allclose(bend.x[0], corner, atol=1e-6)
    np.testing.assert_allclose(bend.y[:, -1], corner, atol=1e-6)
    assert bend.moved[0].max() < 0.01 < bend.moved.max()


def test_the_hidden_cheek_is_not_to_be_trusted(world: World) -> None:
    """A portrait in three-quarter view does not show what a frontal frame asks for, and knows which side that is."""
    bend = Bender(landmarks_of(world, turn=35)).to(landmarks_of(world), 128)
    own = landmarks_of(world)
    trust = {}
    for name, point in (("far", 454), ("near", 234)):
        inward = own[point, :2] * 0.92 + own[4, :2] * 0.08
        column, row = (inward * 128).astype(int)
        trust[name] = bend.trust[row - 4 : row + 4, column - 2 : column + 3].mean()
    seen, hidden = max(trust.values()), min(trust.values())
    assert hidden < 0.3 < 0.7 < seen, trust


def test_a_mouth_that_opens_is_marked_and_one_that_was_open_is_known(world: World) -> None:
    shut, opened = landmarks_of(world), landmarks_of(world, jawOpen=0.9)
    column, row = (opened[list(INNER_LIPS), :2].mean(0) * 128).astype(int)
    new = Bender(shut).to(opened, 128)
    assert new.trust[row, column] < 0.1
    assert new.mouth[row, column] > 0.8
    known = Bender(opened).to(opened, 128)
    assert known.mouth.max() < 0.01
    assert known.trust[row, column] > 0.4


def test_an_iris_moves_as_a_whole(world: World) -> None:
    """Gaze shifts the iris: the pixels around its new centre come from around its old one, at the same distances."""
    ahead, aside = landmarks_of(world), landmarks_of(world, gaze=0.5)
    size = 512
    bend = Bender(ahead).to(aside, size)
    for iris in (RIGHT_IRIS, LEFT_IRIS):
        centre, before = aside[iris[0], :2] * size, ahead[iris[0], :2] * size
        assert np.abs(centre - before).max() > 2
        radius = np.linalg.norm(aside[iris[1], :2] - aside[iris[3], :2]) * size / 2
        for offset in (-0.5, 0.0, 0.5):
            column, row = int(centre[0] + offset * radius), int(centre[1])
            asked = before + (np.array([column + 0.5, row + 0.5]) - centre)
            found = np.array([bend.x[row, column], bend.y[row, column]]) * size
            assert np.abs(found - asked).max() < 0.12 * radius, (iris, offset)


def test_a_shut_eye_shows_no_eyeball(world: World) -> None:
    white = np.zeros((256, 256, 3), np.uint8)
    own = landmarks_of(world)
    box = own[list(LEFT_EYE_POINTS), :2] * 256
    x0, y0 = np.ceil(box.min(0)).astype(int)
    x1, y1 = np.floor(box.max(0)).astype(int)
    white[y0 + 2 : y1 - 1, x0 + 4 : x1 - 4] = 255
    shut = landmarks_of(world, eyeBlinkLeft=1.0, eyeBlinkRight=1.0)
    assert Bender(own).to(shut, 256).apply(white).mean() < 0.35 * Bender(own).to(own, 256).apply(white).mean()


def test_a_head_that_rests_does_not_tremble(world: World) -> None:
    """A detector's noise, a third of a pixel, leaves hair and background where they are."""
    own = landmarks_of(world)
    noisy = own + np.random.default_rng(0).normal(0, 0.0007, own.shape) * np.array([1, 1, 0])
    bend = Bender(own).to(noisy, SIZE)
    top = int(own[10, 1] * SIZE) - 4
    column = int(own[10, 0] * SIZE)
    assert abs(bend.y[top, column] - (top + 0.5) / SIZE) < 0.002


def test_landmarks_far_outside_of_the_picture_are_no_error(world: World) -> None:
    bend = Bender(landmarks_of(world)).to(landmarks_of(world, shift=(60.0, -60.0)), SIZE)
    assert np.isfinite(bend.x).all()
    assert bend.rgba(picture()).shape == (SIZE, SIZE, 4)

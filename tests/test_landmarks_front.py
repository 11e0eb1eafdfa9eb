"""A person is told from the background, moves alone, and leaves behind what is marked as a guess."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.landmarks.bend import Bender
from fye_pipeline.landmarks.front import behind, person_in_front
from fye_pipeline.landmarks.geometry import CanonicalFace, project
from fye_pipeline.landmarks.topology import FACE_OVAL
from fye_pipeline.world import EXPRESSIONS, World

SIZE = 192
Picture = NDArray[np.uint8]


def landmarks_of(shift: tuple[float, float] = (0.0, 0.0), *, nod: float = 0.0, distance: float = 60.0) -> NDArray:
    """Landmarks [478, 3] of one head. shift: cm; nod: degrees."""
    world = World(CanonicalFace.load(), size=SIZE)
    points = world.head("train", 2).pose(np.zeros(len(EXPRESSIONS)), np.zeros(2))
    turned = points @ Rotation.from_euler("x", nod, degrees=True).as_matrix().T
    return project(turned + np.array([*shift, -distance]), 1, 1)


def scene(landmarks: NDArray, *, hair: float = 1.5) -> tuple[Picture, NDArray[np.bool_]]:
    """Someone before a wall of blue and grey stripes, and where they are. hair: how high, in faces."""
    stripe = (np.arange(SIZE) // 8 % 2)[None, :, None] * np.ones((SIZE, 1, 1))
    wall = np.where(stripe, (70, 90, 150), (160, 165, 170))
    oval = landmarks[list(FACE_OVAL), :2] * SIZE
    middle, (width, height) = (oval.min(0) + oval.max(0)) / 2, np.ptp(oval, axis=0)
    person = np.zeros((SIZE, SIZE), np.uint8)
    top = oval[:, 1].min() - (hair - 1) * height
    centre = (middle[0], (top + oval[:, 1].max()) / 2)
    cv2.ellipse(person, (centre, (width * 1.3, oval[:, 1].max() - top), 0), 1, -1)
    person[int(middle[1]) :, int(middle[0] - 0.25 * width) : int(middle[0] + 0.25 * width)] = 1
    shoulders = int(oval[:, 1].max() + 0.2 * height)
    person[shoulders:, int(middle[0] - width) : int(middle[0] + width)] = 2
    drawn = np.where((person == 1)[..., None], (60, 35, 20), wall)
    drawn = np.where((person == 2)[..., None], (170, 30, 40), drawn)
    face = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(face, [oval.round().astype(np.int32)], 1)
    drawn = np.where((face > 0)[..., None], (220, 175, 150), drawn)
    noise = np.random.default_rng(0).normal(0, 4, drawn.shape)
    return np.clip(drawn + noise, 0, 255).astype(np.uint8), person > 0


def test_a_person_is_found_with_hair_and_shoulders() -> None:
    landmarks = landmarks_of()
    picture, person = scene(landmarks)
    front = person_in_front(picture, landmarks)
    assert front is not None
    found = cv2.resize(front, (SIZE, SIZE)) > 0.5
    assert (found & person).sum() > 0.99 * person.sum()
    assert (found & ~person).sum() < 0.12 * person.sum()  # a rim of two pixels is meant
    again = person_in_front(picture, landmarks)
    assert again is not None
    np.testing.assert_array_equal(front, again)


def test_a_badge_like_the_wall_moves_with_the_hat_and_the_wall_beside_it_rests() -> None:
    landmarks = landmarks_of()
    picture, _ = scene(landmarks)
    oval = landmarks[list(FACE_OVAL), :2] * SIZE
    width, top = np.ptp(oval[:, 0]), int(oval[:, 1].min() - 0.5 * np.ptp(oval[:, 1]))
    column = int(oval[:, 0].mean())
    badge = (slice(top, top + int(0.25 * width)), slice(column - int(0.08 * width), column + int(0.08 * width)))
    picture[badge] = (70, 90, 150)
    front = person_in_front(picture, landmarks)
    assert front is not None
    found = cv2.resize(front, (SIZE, SIZE)) > 0.5
    assert found[badge][3:].mean() > 0.95
    assert not found[: int(oval[:, 1].max()), : int(oval[:, 0].min() - 0.5 * width)].any()


@pytest.mark.parametrize("distance", [8.0, -60.0, 600.0, 2000.0])
def test_a_face_without_a_background_is_left_whole(distance: float) -> None:
    """A face that fills the picture, landmarks that lie nowhere in it, and faces of a few pixels."""
    landmarks = landmarks_of(distance=distance)
    picture, _ = scene(landmarks_of())
    assert person_in_front(picture, landmarks + (distance < 0) * 5) is None
    assert Bender.of(picture, landmarks + (distance < 0) * 5).front is None


def test_what_lies_behind_is_filled_and_the_rest_untouched() -> None:
    wall = np.full((SIZE, SIZE, 3), (30, 120, 200), np.uint8)
    front = np.zeros((256, 256), np.float32)
    front[60:200, 90:170] = 1
    seen = wall.copy()
    seen[45:150, 68:128] = (200, 20, 20)
    np.testing.assert_allclose(behind(seen, front), wall, atol=1)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    filled = behind(noise, front)
    untouched = np.zeros((SIZE, SIZE), bool)
    untouched[:, :60] = untouched[:, 135:] = untouched[:40] = untouched[156:] = True
    np.testing.assert_array_equal(filled[untouched], noise[untouched])
    np.testing.assert_array_equal(behind(noise, np.ones((256, 256), np.float32)), noise)


def test_a_head_moves_and_the_wall_behind_rests() -> None:
    own, moved = landmarks_of(), landmarks_of((2.5, 0.0))
    picture, person = scene(own)
    bender = Bender.of(picture, own)
    bend = bender.to(moved, SIZE)
    bent = bend.apply(picture, bender.behind(picture)).astype(int)
    assert bend.front is not None
    far = cv2.dilate(np.maximum(person, bend.front > 0.01).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert np.abs(bent - picture)[far].max() <= 1
    whole = Bender(own).to(moved, SIZE).apply(picture).astype(int)
    assert np.abs(whole - picture)[far].max() > 50  # without layers the stripes bend
    newly_seen = person & (bend.front < 0.02)
    newly_seen[int(own[152, 1] * SIZE) :] = False
    assert newly_seen.sum() > 100
    assert bend.trust[newly_seen].mean() < 0.2
    stripes = [np.array((70, 90, 150)), np.array((160, 165, 170))]
    nearest = np.minimum(*(np.abs(bent[newly_seen] - colour).max(-1) for colour in stripes))
    assert np.quantile(nearest, 0.8) < 60


def test_high_hair_moves_with_the_head() -> None:
    own, moved = landmarks_of(), landmarks_of((1.5, 0.0))
    picture, _ = scene(own, hair=1.7)
    shift = (moved[10, 0] - own[10, 0]) * SIZE
    assert shift > 4
    bend = Bender.of(picture, own).to(moved, SIZE)
    top = np.array([own[10, 0] * SIZE, own[10, 1] * SIZE - 0.55 * np.ptp(own[list(FACE_OVAL), 1]) * SIZE])
    column, row = (top + np.array([shift, 0])).astype(int)
    assert abs(bend.x[row, column] * SIZE - (column + 0.5 - shift)) < 0.25 * shift


def test_its_own_landmarks_give_the_portrait_back() -> None:
    own = landmarks_of()
    picture, _ = scene(own)
    bender = Bender.of(picture, own)
    assert bender.front is not None
    bent = bender.to(own, SIZE).apply(picture, bender.behind(picture))
    assert np.abs(bent.astype(int) - picture).max() <= 1


def test_a_slight_nod_is_not_believed_and_a_real_one_is() -> None:
    """A mouth that opens looks like a nod of two or three degrees, which would shift the hair."""
    own = landmarks_of()
    picture, _ = scene(own)
    bender = Bender.of(picture, own)
    row, column = int(own[10, 1] * SIZE) - 24, int(own[10, 0] * SIZE)

    def shift(nod: float) -> float:
        moved = landmarks_of(nod=nod)
        corners = [33, 133, 362, 263]
        moved[:, :2] += own[corners, :2].mean(0) - moved[corners, :2].mean(0)
        return abs(float(bender.to(moved, SIZE).y[row, column]) * SIZE - (row + 0.5))

    assert shift(1.5) < 0.7
    assert shift(10.0) > 2.0

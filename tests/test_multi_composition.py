"""Whose pixels are whose: hard and disjoint, so that no driver changes anything in another's region."""

from __future__ import annotations

import numpy as np
import pytest

from fye_pipeline.animate.portrait import Crop, crop_around
from fye_pipeline.multi_portrait.composition import compose, visible_share
from fye_pipeline.multi_portrait.output import held
from fye_pipeline.multi_portrait.ownership import nearest_heads, soft_inside

WIDTH, HEIGHT = 201, 117  # odd, as pictures are
TOUCHING = [(0.1, 0.3, 0.3, 0.7), (0.3, 0.32, 0.5, 0.72), (0.48, 0.3, 0.7, 0.75)]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def crops() -> list[Crop]:
    return [crop_around(box, WIDTH, HEIGHT, scale=2, shift=(0, -0.08)) for box in TOUCHING]


def square(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def test_every_pixel_belongs_to_the_nearest_head_by_its_own_size() -> None:
    owners = nearest_heads(TOUCHING, WIDTH, HEIGHT)
    assert owners.shape == (HEIGHT, WIDTH)
    for number, (left, top, right, bottom) in enumerate(TOUCHING, 1):
        across, down = int((left + right) / 2 * WIDTH), int((top + bottom) / 2 * HEIGHT)
        assert owners[down, across] == number
    small_and_large = nearest_heads([(0.1, 0.4, 0.2, 0.6), (0.3, 0.1, 0.8, 0.9)], WIDTH, HEIGHT)
    assert (small_and_large == 2).sum() > 2 * (small_and_large == 1).sum()


def test_a_soft_region_is_zero_outside_and_full_inside() -> None:
    owned = np.zeros((40, 50), bool)
    owned[:, 20:] = True
    share = soft_inside(owned, 6)
    assert (share[:, :20] == 0).all()
    assert (share[:, 20] > 0).all()
    assert (share[:, 27:] == 1).all(), "it falls at the end of the array"
    assert (np.diff(share[3, 18:28]) >= 0).all()
    assert (soft_inside(np.ones((4, 4), bool), 6) == 1).all()


def test_shares_are_disjoint_and_stay_in_their_regions() -> None:
    owners = nearest_heads(TOUCHING, WIDTH, HEIGHT)
    seen = np.zeros((HEIGHT, WIDTH), int)
    for number, crop in enumerate(crops(), 1):
        share = visible_share(crop, owners == number)[crop.inner()]
        assert (share[owners[crop.inside()] != number] == 0).all()
        assert share.max() == 1
        seen[crop.inside()] += share > 0
    assert seen.max() == 1


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_another_driver_changes_nothing_in_anybody_elses_region(changed: int) -> None:
    base = picture(0)
    owners = nearest_heads(TOUCHING, WIDTH, HEIGHT)
    made = compose(base, owners, list(enumerate(crops(), 1)))
    squares = [square(seed) for seed in (1, 2, 3)]
    others = [square(9) if number == changed else each for number, each in enumerate(squares)]
    first, second = made.lay(squares), made.lay(others)
    own = owners == changed + 1
    np.testing.assert_array_equal(first[~own], second[~own])
    assert (first[own] != second[own]).any()
    assert (first[~own] != base[~own]).any()
    np.testing.assert_array_equal(base, picture(0))


def test_who_is_left_still_stays_the_picture() -> None:
    base = picture(0)
    owners = nearest_heads(TOUCHING, WIDTH, HEIGHT)
    made = compose(base, owners, [(1, crops()[0]), (3, crops()[2])])
    frame = made.lay([square(1), square(2)])
    np.testing.assert_array_equal(frame[owners == 2], base[owners == 2])


def test_people_in_another_order_make_the_same_frame() -> None:
    base = picture(0)
    owners = nearest_heads(TOUCHING, WIDTH, HEIGHT)
    people, squares = list(enumerate(crops(), 1)), [square(seed) for seed in (1, 2, 3)]
    frame = compose(base, owners, people).lay(squares)
    np.testing.assert_array_equal(frame, compose(base, owners, people[::-1]).lay(squares[::-1]))


def test_the_last_frame_is_held_and_a_longer_run_is_cut() -> None:
    frames = [np.full((2, 2, 3), value, np.float32) for value in range(3)]
    assert [int(frame[0, 0, 0]) for frame in held(iter(frames), 5)] == [0, 1, 2, 2, 2]
    assert [int(frame[0, 0, 0]) for frame in held(iter(frames), 2)] == [0, 1]

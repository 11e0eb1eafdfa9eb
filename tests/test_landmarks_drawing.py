"""Landmark pictures: hand-made points, the ablations, the border, and the released code's own drawings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from landmark_faces import face, sequence

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks import topology
from fye_pipeline.landmarks.drawing import (
    CONTOUR_COLOUR,
    PUPIL_COLOUR,
    Style,
    draw_landmarks,
    draw_sequence,
    preview_strip,
)

OFF = -1.0  # outside the picture: nothing is drawn there


def points(**at: tuple[float, float]) -> np.ndarray:
    landmarks = np.full((478, 3), OFF)
    for name, position in at.items():
        landmarks[int(name[1:]), :2] = position
    return landmarks


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(x, y) of every pixel of a colour."""
    return [(int(x), int(y)) for y, x in np.argwhere((picture == colour).all(-1))]


def test_one_segment_is_one_pixel_wide_and_ends_where_its_points_are() -> None:
    picture = draw_landmarks(points(p263=(0.25, 0.5), p249=(0.5, 0.5)), 16, 8)
    assert coloured(picture, (180, 200, 10)) == [(x, 4) for x in range(4, 9)]
    assert picture.any(-1).sum() == 5


def test_points_on_the_far_border_are_drawn_inside_and_points_beyond_are_not() -> None:
    assert coloured(draw_landmarks(points(p46=(1, 1), p53=(0.5, 1)), 8, 8), (10, 220, 180))[-1] == (7, 7)
    assert not draw_landmarks(points(p46=(1.01, 1), p53=(0.5, 1)), 8, 8).any()
    assert not draw_landmarks(np.full((478, 3), np.nan), 8, 8).any()


@pytest.mark.parametrize(
    ("position", "box"),
    [
        ((0.5, 0.5), (13, 13, 18, 18)),
        ((0.0, 0.0), (0, 0, 2, 2)),  # raw slices would make it vanish
        ((0.99, 0.5), (28, 13, 31, 18)),
    ],
)
def test_pupils_are_squares_that_the_border_cuts(position: tuple[float, float], box: tuple[int, int, int, int]) -> None:
    pixels = coloured(draw_landmarks(points(p473=position), 32, 32), PUPIL_COLOUR)
    assert (*pixels[0], *pixels[-1]) == box
    assert len(pixels) == (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


@pytest.mark.parametrize("position", [(-0.5, 0.5), (5.0, 0.5), (0.5, -3.0), (0.5, 1e9)])
def test_a_pupil_out_of_the_picture_is_not_drawn(position: tuple[float, float]) -> None:
    assert not draw_landmarks(points(p468=position), 32, 32).any()


@pytest.mark.parametrize(
    ("style", "contour", "pupils", "outer_lips"),
    [
        ("expression", False, True, False),
        ("with-contour", True, True, False),
        ("without-pupils", False, False, False),
        ("plain", True, False, True),
    ],
)
def test_the_ablations_show_what_they_say(style: Style, contour: bool, pupils: bool, outer_lips: bool) -> None:
    landmarks = points(p21=(0.1, 0.1), p162=(0.1, 0.5), p473=(0.5, 0.5), p61=(0.7, 0.9), p146=(0.9, 0.9))
    picture = draw_landmarks(landmarks, 64, 64, style=style)
    assert bool(coloured(picture, CONTOUR_COLOUR)) == contour
    assert bool(coloured(picture, PUPIL_COLOUR)) == pupils
    assert picture[57, 50].any() == outer_lips


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="478 points, got 468"):
        draw_landmarks(np.zeros((468, 3)), 8, 8)
    with pytest.raises(ValueError, match=r"style must be one of expression, .* got 'dots'"):
        draw_landmarks(np.zeros((478, 3)), 8, 8, style="dots")  # pyright: ignore[reportArgumentType]


def test_small_pictures_are_area_averages_of_large_ones() -> None:
    landmarks = points(p468=(0.5, 0.5))[None].repeat(2, 0)
    small = draw_sequence(landmarks, 128)
    large = draw_landmarks(landmarks[0], 512, 512).astype(float)
    average = large.reshape(128, 4, 128, 4, 3).mean((1, 3))
    assert small.shape == (2, 128, 128, 3)
    np.testing.assert_allclose(small[0], average, atol=0.5)
    assert small[0].any(-1).sum() == 4  # drawn at 128, the pupil would cover 36 pixels
    assert draw_sequence(landmarks, (96, 48)).shape == (2, 48, 96, 3)
    np.testing.assert_array_equal(draw_sequence(landmarks, 600)[0], draw_landmarks(landmarks[0], 600, 600))


def test_the_expression_points_are_the_drawn_ones() -> None:
    assert len(topology.EXPRESSION_POINTS) == 2 * 16 + 2 * 10 + 20 + 2
    assert len(topology.LEFT_EYE_POINTS) == len(topology.RIGHT_EYE_POINTS) == 16


@pytest.mark.parametrize("picture", ["s9.c512", "s2.c512", "s5.c512"])
def test_drawings_are_pixel_identical_to_the_released_code(parity_dir: Path, picture: str) -> None:
    path = parity_dir / "landmark_ref.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    fixture = np.load(path)
    drawn = draw_landmarks(fixture[f"{picture}.lmks"], *fixture[f"{picture}.wh"])
    np.testing.assert_array_equal(drawn, fixture[f"{picture}.drawn"])


def test_the_preview_shows_frames_over_landmarks() -> None:
    made = sequence([face() for _ in range(5)])
    made.found[2] = False
    frames = [np.full((64, 64, 3), 50 * number, np.uint8) for number in range(5)]
    strip = preview_strip(iter(frames), made, columns=3, tile_height=32)
    assert strip.shape == (64, 96, 3)
    assert [int(strip[16, column, 0]) for column in (0, 40, 80)] == [0, 100, 200]
    assert tuple(strip[0, 40]) == (255, 80, 0)
    assert not strip[0, :32].any()
    assert strip[32:].any()
    with pytest.raises(UserError, match="has 5 frames, the video fewer"):
        preview_strip(iter(frames[:3]), made, columns=3)

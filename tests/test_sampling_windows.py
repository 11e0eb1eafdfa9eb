"""Windows of a long video: which frames go together, and with which weight."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fye_pipeline.errors import UserError
from fye_pipeline.sampling.clip_plan import Window, gaussian_tiles, gaussian_weights, plan_windows, uniform_windows


@pytest.mark.parametrize("mode", ["uniform", "tiles"])
@pytest.mark.parametrize("frames", [1, 5, 6])
def test_a_short_video_is_one_clip(mode: str, frames: int) -> None:
    assert plan_windows(frames, mode, length=6) == [Window(tuple(range(frames)), (1.0,) * frames)]


def test_uniform_windows_lie_side_by_side_and_the_last_one_wraps() -> None:
    assert [window.frames for window in uniform_windows(10, 6)] == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 0, 1)]
    assert [window.frames for window in uniform_windows(12, 6)] == [tuple(range(6)), tuple(range(6, 12))]
    assert {weight for window in uniform_windows(10, 6) for weight in window.weights} == {1.0}


@pytest.mark.parametrize(
    ("frames", "length", "overlap", "starts"),
    [(10, 6, 2, [0, 4]), (11, 6, 2, [0, 4, 5]), (14, 6, 2, [0, 4, 8]), (7, 6, 0, [0, 1]), (12, 6, 0, [0, 6])],
)
def test_tiles_step_by_length_minus_overlap_and_end_with_the_video(
    frames: int, length: int, overlap: int, starts: list[int]
) -> None:
    tiles = gaussian_tiles(frames, length, overlap)
    assert [tile.frames for tile in tiles] == [tuple(range(start, start + length)) for start in starts]


def test_gaussian_weights_follow_their_formula() -> None:
    weights = gaussian_weights(16)
    assert weights == weights[::-1]
    assert max(weights) == weights[7] == weights[8]
    assert weights[0] == pytest.approx(math.exp(-(7.5**2) / (256 * 0.02)) / math.sqrt(2 * math.pi * 0.01))
    assert weights[0] == pytest.approx(7e-5, rel=0.1)
    assert gaussian_weights(1) == (pytest.approx(1 / math.sqrt(2 * math.pi * 0.01)),)


@given(st.integers(1, 80), st.integers(1, 32), st.integers(0, 31), st.sampled_from(["uniform", "tiles"]))
def test_every_frame_is_covered_and_no_window_is_too_long(frames: int, length: int, overlap: int, mode: str) -> None:
    windows = plan_windows(frames, mode, length=length, overlap=min(overlap, length - 1), limit=32)
    assert {frame for window in windows for frame in window.frames} == set(range(frames))
    for window in windows:
        assert len(window.frames) == len(set(window.frames)) == len(window.weights) <= length
        assert min(window.weights) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "at least 1 frame, got 0"),
        ({"mode": "progressive"}, "long must be one of"),
        ({"length": 0}, "1 to 32 frames, got 0"),
        ({"length": 33}, "1 to 32 frames, got 33"),
        ({"overlap": 6}, "overlap must be 0 to 5"),
        ({"overlap": -1}, "overlap must be 0 to 5"),
    ],
)
def test_impossible_plans_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_windows(**({"frames": 10, "mode": "tiles", "length": 6, "overlap": 2, "limit": 32} | options))


def test_a_tile_longer_than_the_video_is_refused() -> None:
    with pytest.raises(UserError, match="at least 6 frames, got 5"):
        gaussian_tiles(5, 6, 2)

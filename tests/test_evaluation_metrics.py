"""Picture metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fye_pipeline.evaluation.metrics import jitter, l1, landmark_error, psnr, ssim, to_uint8


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).random((3, 32, 48, 3))


def test_equal_videos_are_perfect(video: np.ndarray) -> None:
    assert l1(video, video) == 0
    assert psnr(video, video) == pytest.approx(100)
    assert ssim(video, video) == pytest.approx(1, abs=1e-5)


def test_a_constant_offset_has_known_figures() -> None:
    truth = np.full((2, 16, 16, 3), 0.5)
    assert l1(truth + 0.1, truth) == pytest.approx(0.1)
    assert psnr(truth + 0.1, truth) == pytest.approx(20)


def test_noise_lowers_similarity(video: np.ndarray) -> None:
    smooth = np.tile(np.linspace(0, 1, 48)[None, None, :, None], (3, 32, 1, 3))
    little, much = smooth + 0.02 * (video - 0.5), smooth + 0.5 * (video - 0.5)
    assert 1 > ssim(little, smooth) > ssim(much, smooth)


def test_jitter_sees_flicker_and_not_even_motion() -> None:
    even = np.linspace(0, 1, 5)[:, None, None, None] * np.ones((5, 4, 4, 3))
    assert jitter(even) == pytest.approx(0)
    flicker = even.copy()
    flicker[2] += 0.3
    assert jitter(flicker) == pytest.approx((0.3 + 0.6 + 0.3) / 3)
    assert jitter(even[:2]) == 0


def test_videos_of_two_shapes_are_refused(video: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"videos must have one shape, got \(3, 32, 48, 3\) and \(2, 32, 48, 3\)"):
        l1(video, video[:2])


def test_a_mask_says_which_pixels_count() -> None:
    truth = np.full((2, 16, 16, 3), 0.5)
    video = truth.copy()
    video[:, :8] += 0.1
    face = np.zeros((2, 16, 16), bool)
    face[:, :4] = True
    assert l1(video, truth) == pytest.approx(0.05)
    assert l1(video, truth, face) == pytest.approx(0.1)
    assert psnr(video, truth, face) == pytest.approx(20)
    assert psnr(video, truth, ~face) == pytest.approx(-10 * np.log10(0.01 * 4 / 12))
    # Weights: the spoilt rows count a quarter as much as the others.
    weights = np.where(np.arange(16) < 8, 0.25, 1.0)[:, None] * np.ones(16)
    assert l1(video, truth, weights) == pytest.approx(0.1 * 0.25 / 1.25)


def test_similarity_within_a_mask_is_that_of_its_pixels(video: np.ndarray) -> None:
    spoilt = video.copy()
    spoilt[:, :, :12] = 1 - spoilt[:, :, :12]
    far = np.arange(48) >= 12 + 6  # no window of 11 pixels reaches from here into the spoilt part
    assert ssim(spoilt, video, np.broadcast_to(far, (32, 48))) == pytest.approx(1, abs=1e-5)
    assert ssim(spoilt, video, np.broadcast_to(~far, (32, 48))) < ssim(spoilt, video) < 1


@pytest.mark.parametrize("mask", [np.zeros((32, 48)), np.full((32, 48), -1.0)])
def test_a_mask_without_pixels_is_refused(video: np.ndarray, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask must have weights >= 0 and at least one pixel above 0"):
        psnr(video, video, mask)


def test_landmark_error_is_in_picture_widths_and_counts_missing_faces(video: np.ndarray) -> None:
    truth = np.full((478, 3), 0.5)
    found = [truth + np.array([0.03, 0, 0]), None, truth + np.array([0, 0.06, 0])]
    answers = iter(found)
    error, missing = landmark_error(video, [truth, truth, truth], lambda frame: next(answers))
    # The picture is 48 wide and 32 high: 0.06 of the height is 0.04 of the width.
    assert error == pytest.approx((0.03 + 0.04) / 2)
    assert missing == 1


def test_no_face_at_all_gives_no_figure(video: np.ndarray) -> None:
    error, missing = landmark_error(video, [np.zeros((478, 3))] * 3, lambda frame: None)
    assert np.isnan(error)
    assert missing == 3


def test_pictures_are_rounded_and_clipped() -> None:
    assert to_uint8(np.array([-0.1, 0.5, 1.2])).tolist() == [0, 128, 255]

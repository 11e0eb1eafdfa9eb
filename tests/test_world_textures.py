"""Textures and version 2 of the world: functions of a seed, like photographs, and moving with the head."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World
from fye_pipeline.world.overlay import Overlay, overlay_of
from fye_pipeline.world.textures import PATTERNS, camera, dead_leaves, natural_picture, noise


@pytest.fixture(scope="module")
def canonical() -> CanonicalFace:
    return CanonicalFace.load()


def slope(picture: np.ndarray) -> float:
    """By which power of the frequency the amplitude falls, between 1/16 and 1/3 of a cycle a pixel."""
    grey = picture.astype(float).mean(-1) if picture.ndim == 3 else picture.astype(float)
    size = len(grey)
    window = np.hanning(size)[:, None] * np.hanning(size)
    amplitude = np.abs(np.fft.rfft2((grey - grey.mean()) * window))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    used = (frequency > 1 / 16) & (frequency < 1 / 3)
    return float(np.polyfit(np.log(frequency[used]), np.log(amplitude[used] + 1e-6), 1)[0])


def test_the_same_seed_draws_the_same_picture() -> None:
    for draw in (dead_leaves, natural_picture):
        first, again = (draw(48, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(first, again)
        assert first.shape == (48, 48, 3)
        assert first.dtype == np.uint8
        assert not np.array_equal(first, draw(48, np.random.default_rng(6)))


def test_dead_leaves_have_the_spectrum_of_photographs() -> None:
    """Amplitudes of natural pictures fall about as one over the frequency (Field 1987)."""
    slopes = [slope(dead_leaves(128, np.random.default_rng(seed))) for seed in range(8)]
    assert -1.7 < np.mean(slopes) < -0.7, slopes


def test_noise_falls_with_the_exponent_that_was_asked_for() -> None:
    for exponent in (0.5, 1.0, 2.0):
        found = np.mean([slope(noise(128, np.random.default_rng(seed), exponent)) for seed in range(4)])
        assert found == pytest.approx(-exponent, abs=0.35)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_patterns_lie_between_0_and_1_and_vary(pattern: object) -> None:
    for seed in range(3):
        field = pattern(40, np.random.default_rng(seed))  # pyright: ignore[reportCallIssue]
        assert field.shape == (40, 40)
        assert 0 <= field.min() < field.max() <= 1


def test_the_camera_keeps_the_picture_recognisable() -> None:
    picture = dead_leaves(64, np.random.default_rng(1))
    for seed in range(12):
        seen = camera(picture, np.random.default_rng(seed))
        assert np.corrcoef(seen.ravel(), picture.ravel())[0, 1] > 0.7


@pytest.mark.parametrize(("seed", "portrait", "clip"), [(0, 135.24268, 139.03446), (7, 132.90592, 106.31242)])
def test_version_1_keeps_its_pixels(canonical: CanonicalFace, seed: int, portrait: float, clip: float) -> None:
    """Everything that was ever measured on version 1 stays comparable; means, as rounding differs between machines."""
    world = World(canonical, size=64, seed=seed)
    assert world.portrait("held", 3).frames.mean() == pytest.approx(portrait, abs=0.02)
    assert world.clip("train", 5, frames=2).frames.mean() == pytest.approx(clip, abs=0.02)


def test_version_2_is_drawn_from_its_own_seeds_and_the_same_again(canonical: CanonicalFace) -> None:
    first, again, old = (World(canonical, size=48, version=version).clip("train", 1, frames=2) for version in (2, 2, 1))
    digests = [hashlib.sha256(clip.frames.tobytes()).hexdigest() for clip in (first, again, old)]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ValueError, match=r"version must be one of \(1, 2\), got 3"):
        World(canonical, version=3)


def test_some_heads_of_version_2_stay_plain(canonical: CanonicalFace) -> None:
    world = World(canonical, size=32, version=2)
    plain = [overlay_of(world.head("train", index), 32) is None for index in range(40)]
    assert 4 <= sum(plain) <= 18


def test_what_is_laid_over_moves_with_the_head(canonical: CanonicalFace) -> None:
    """The decoration, seen by itself on white, is the frontal one bent: a shifted head shifts it as far."""
    world = World(canonical, size=96, version=2)
    head = world.head("train", 3)
    overlay = Overlay(head, 96)
    overlay._light[:], overlay._cloth, overlay._look = 1, None, "plain"
    overlay._paint[:], overlay._shade[:] = 0, 1
    x, y = np.round(overlay._xy[4]).astype(int)
    overlay._shade[y - 6 : y + 7, x - 6 : x + 7] = 0  # a black nose
    white = np.full((96, 96, 3), 255, np.uint8)
    clip = world.clip("train", 3, frames=4, fps=2)
    for landmarks in clip.sequence.landmarks:
        black = 255 - overlay.lay(white, landmarks).astype(float).mean(-1)
        black[black < 128] = 0
        rows, columns = np.mgrid[0:96, 0:96] + 0.5
        centre = np.array([(columns * black).sum(), (rows * black).sum()]) / black.sum()
        assert np.abs(centre - landmarks[4, :2] * 96).max() < 3

"""Distances of feature sets against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fye_pipeline.evaluation.distances import cosine, fisher_directions, frechet_distance, kernel_distance


def test_frechet_distance_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 4)), rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)) + 0.5
    one, two = np.cov(first.T), np.cov(second.T)
    shift = first.mean(0) - second.mean(0)
    expected = shift @ shift + np.trace(one + two - 2 * np.real(sqrtm(one @ two)))
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_in_one_dimension() -> None:
    """(m - m')^2 + (s - s')^2; also with fewer samples than features, where the covariance has no full rank."""
    first = np.array([[-1.0], [0.0], [1.0]])
    assert frechet_distance(first, 3 * first + 2) == pytest.approx(2**2 + (3 - 1) ** 2)
    wide = np.pad(first, ((0, 0), (0, 7)))
    assert frechet_distance(wide, 3 * wide) == pytest.approx(4)


def test_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(1)
    same = [kernel_distance(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert kernel_distance(rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 1) > 1
    # Two samples each, by hand: (1 + 1)^3 within the first, (4 + 1)^3 within the second, (2 + 1)^3 across.
    assert kernel_distance(np.ones((2, 1)), np.full((2, 1), 2.0)) == pytest.approx(8 + 125 - 2 * 27)


def test_cosine() -> None:
    assert cosine(np.array([1.0, 0]), np.array([3.0, 3.0])) == pytest.approx(np.sqrt(0.5))
    with pytest.raises(ValueError, match="no direction"):
        cosine(np.zeros(2), np.ones(2))


def test_fisher_directions_ignore_what_varies_in_one_person() -> None:
    rng = np.random.default_rng(2)
    people = np.repeat(np.arange(6), 10)
    features = np.stack([people + rng.normal(0, 0.1, 60), rng.normal(0, 30, 60)], 1)
    (direction,) = fisher_directions(features, people, 1).T
    assert abs(direction[0]) > 100 * abs(direction[1])
    assert (features @ direction)[people == 0].std() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("bad", [np.ones((1, 3)), np.ones(3)])
def test_too_few_features_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features must be"):
        frechet_distance(bad, np.ones((4, 3)))


def test_features_of_two_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="one width, got 2 and 3"):
        kernel_distance(np.ones((4, 2)), np.ones((4, 3)))

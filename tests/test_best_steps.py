"""The search for full steps is exact: every table is compared with trying every schedule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from ticache import forecast
from ticache.best_steps import Array, best_choice, best_steps, end_error
from ticache.best_steps import _missed as missed_of


def smooth_features(num_steps: int, seed: int = 0) -> Array:
    """Features [T, 20] whose second differences are noise that changes size along the run."""
    noise = np.random.default_rng(seed).normal(size=(num_steps, 20))
    size = 1 + 4 * np.sin(np.arange(num_steps)) ** 2
    return np.cumsum(np.cumsum(noise * size[:, None], axis=0), axis=0)


def schedule_error(
    gram: Array, weights: Array, steps: Sequence[int], forecaster: str, order: int, coordinates: Array
) -> float:
    """The sum of weighted squared errors that given full steps leave: what `best_steps` makes least."""
    missed = missed_of(gram, steps, forecaster, order, coordinates)
    return float(np.einsum("tu,uv,tv,t", missed, gram, missed, weights, optimize=True))


@pytest.mark.parametrize(
    ("num_steps", "count", "forecaster", "order", "bend"),
    [
        (8, 3, "newton", 2, 1.0),
        (9, 4, "taylor", 2, 1.0),
        (10, 5, "newton", 3, 1.3),
        (10, 4, "taylor", 1, 1.3),
        (9, 4, "newton", 1, 0.7),
        (8, 3, "reuse", 0, 1.0),
        (9, 4, "fitted", 2, 1.0),
        (9, 4, "fitted", 1, 1.0),
        (8, 1, "newton", 2, 1.0),
        (8, 8, "newton", 2, 1.0),
    ],
)
def test_the_programme_finds_what_trying_every_schedule_finds(
    num_steps: int, count: int, forecaster: str, order: int, bend: float
) -> None:
    features = smooth_features(num_steps)
    gram, weights = features @ features.T, np.linspace(0.2, 1.0, num_steps) ** 2
    at: Array = np.arange(num_steps) ** np.float64(bend)
    value, steps = best_steps(gram, weights, count, forecaster, order, at)
    tried: dict[tuple[int, ...], float] = {
        (0, *others): schedule_error(gram, weights, (0, *others), forecaster, order, at)
        for others in itertools.combinations(range(1, num_steps), count - 1)
    }
    assert value == pytest.approx(min(tried.values()), rel=1e-9, abs=1e-9)
    assert tried[steps] == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("forecaster", ["newton", "taylor", "reuse"])
def test_an_error_is_that_of_the_forecaster_that_runs(forecaster: str) -> None:
    features, steps, order = smooth_features(9), (0, 2, 5), 0 if forecaster == "reuse" else 2
    wanted = 0.0
    for step in range(9):
        nodes = [each for each in (5, 2, 0) if each <= step][: order + 1]
        weights = forecast.polynomial_weights(forecaster, [float(node) for node in nodes], float(step))
        predicted = sum(weight * features[node] for weight, node in zip(weights, nodes, strict=True))
        wanted += float(np.square(features[step] - predicted).sum())
    found = schedule_error(features @ features.T, np.ones(9), steps, forecaster, order, np.arange(9.0))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_straight_features_cost_nothing_and_bent_ones_draw_the_full_steps() -> None:
    bend = np.maximum(0, np.arange(24) - 16) ** 2.0
    features = np.stack([np.arange(24.0), bend], axis=1)
    value, steps = best_steps(features @ features.T, np.ones(24), 8, "newton", 1, np.arange(24.0))
    assert value > 0
    assert sum(step >= 15 for step in steps) >= 5


def test_orders_and_forecasters_are_chosen_by_what_they_leave() -> None:
    straight = np.arange(16.0)[:, None]
    square = straight**2
    for features, forecaster, order in ((square, "newton", 2), (straight, "newton", 1)):
        choice = best_choice(features @ features.T, 6, np.arange(16.0))
        found = schedule_error(
            features @ features.T, np.ones(16), choice.steps, choice.forecaster, choice.order, np.arange(16.0)
        )
        asked = best_steps(features @ features.T, np.ones(16), 6, forecaster, order, np.arange(16.0))[0]
        assert found <= asked + 1e-9
    assert best_choice(square @ square.T, 6, np.arange(16.0), orders=(1,)).order == 1


def test_fitted_weights_are_those_that_leave_least() -> None:
    features = smooth_features(12)
    gram, at = features @ features.T, np.arange(12.0)
    choice = best_choice(gram, 4, at, (2,), ("fitted",))
    assert set(choice.weights) == set(range(12)) - set(choice.steps)
    left = 0.0
    for step, weights in choice.weights.items():
        nodes = [node for node in reversed(choice.steps) if node < step][:3]
        assert sum(weights) == pytest.approx(1)
        others = features[nodes[1:]] - features[nodes[0]]
        best = np.linalg.lstsq(others.T, features[step] - features[nodes[0]], rcond=None)[0]
        assert weights[1:] == pytest.approx(best, abs=1e-3)
        left += float(np.square(features[step] - np.array(weights) @ features[nodes]).sum())
    for name in ("newton", "taylor"):
        assert left <= schedule_error(gram, np.ones(12), choice.steps, name, 2, at)


def test_early_errors_heal_better_under_fitted_weights() -> None:
    """Measured: with as much weight on early steps a recording in three put twenty steps' full ones 2 dB too early."""
    features = np.zeros((20, 1))
    features[4] = 1.0  # missed by what reuses step 0, 16 steps from the end
    gram, at = features @ features.T, np.arange(20.0)
    fitted, other = (end_error(gram, (0, 10), name, 0, at) for name in ("fitted", "reuse"))
    assert fitted == pytest.approx(1 / 16**2 + 0.03)
    assert other == pytest.approx(1 / 16**2 + 0.05)

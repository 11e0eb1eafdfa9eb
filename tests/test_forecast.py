"""The weights of a prediction: Eq. 4, exactness on polynomials, Spectrum's ridge fit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticache import forecast


def backward_differences(values: list[float]) -> list[float]:
    """D_0, D_1, ... of features given newest first, as they are kept."""
    differences = []
    while values:
        differences.append(values[0])
        values = [a - b for a, b in itertools.pairwise(values)]
    return differences


def predict(forecaster: str, nodes: list[float], x: float, order: int, values: list[float]) -> float:
    c = forecast.coefficients(forecaster, nodes, x, order)
    return math.fsum(a * b for a, b in zip(c, backward_differences(values), strict=False))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("N", [1, 2, 3, 5])
def test_taylor_is_equation_4_at_equal_spacing(order: int, N: int) -> None:
    nodes = [float(20 - N * j) for j in range(5)]
    for k in range(N):
        expected = [k**i / (math.factorial(i) * N**i) for i in range(order + 1)]
        assert forecast.coefficients("taylor", nodes, 20.0 + k, order) == pytest.approx(expected, abs=1e-12)


def test_the_usable_order_grows_with_the_full_steps() -> None:
    """Order i needs i + 1 full steps; the first interval is plain reuse."""
    for count in (1, 2, 3, 4):
        nodes = [float(9 - 3 * j) for j in range(count)]
        assert len(forecast.coefficients("newton", nodes, 11.0, 2)) == min(count, 3)
    assert forecast.coefficients("taylor", [9.0], 11.0, 2) == [1.0]
    assert forecast.coefficients("reuse", [9.0, 6.0, 3.0], 11.0, 2) == [1.0]


@given(
    nodes=st.lists(st.integers(0, 40), min_size=3, max_size=5, unique=True),
    ahead=st.integers(1, 5),
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=5),
)
def test_newton_is_exact_on_polynomials_at_any_spacing(nodes: list[int], ahead: int, coefficients: list[float]) -> None:
    order = len(nodes) - 1
    polynomial = np.polynomial.Polynomial(coefficients[: order + 1], domain=[0, 45], window=[-1, 1])
    newest_first = [float(node) for node in sorted(nodes, reverse=True)]
    x = newest_first[0] + ahead
    predicted = predict("newton", newest_first, x, order, [float(polynomial(node)) for node in newest_first])
    scale = sum(abs(w) for w in forecast.polynomial_weights("newton", newest_first, x))
    assert predicted == pytest.approx(float(polynomial(x)), abs=1e-10 * (1 + scale) * (1 + 4**order))


def test_taylor_is_not_exact_on_a_quadratic_and_newton_is() -> None:
    """Eq. 4 has k^2/2 where the parabola has k (k + N) / 2."""
    values = [float(t * t) for t in (9, 6, 3)]
    assert predict("newton", [9.0, 6.0, 3.0], 11.0, 2, values) == pytest.approx(121)
    assert predict("taylor", [9.0, 6.0, 3.0], 11.0, 2, values) == pytest.approx(81 + 45 * 2 / 3 + 18 * 4 / 18)


def test_taylor_after_a_warm_up_divides_by_the_real_spacing() -> None:
    """Full at 0, 1, 2, 5: a straight line stays one; the spacing of the last gap alone would not do."""
    values = [5.0, 2.0, 1.0]
    assert predict("taylor", [5.0, 2.0, 1.0], 7.0, 2, values) == pytest.approx(7.0)


def test_a_coordinate_taken_twice_counts_once_the_newest() -> None:
    """PNDM evaluates one timestep twice, which on the axis of timesteps is one place."""
    values = [9.0, 5.0, 4.0, 1.0]
    once = predict("newton", [9.0, 4.0], 11.0, 1, [9.0, 5.0])
    assert predict("newton", [9.0, 4.0, 4.0, 1.0], 11.0, 2, values) == pytest.approx(once)
    once = predict("newton", [9.0, 4.0, 1.0], 11.0, 2, [9.0, 5.0, 1.0])
    assert predict("newton", [9.0, 4.0, 4.0, 1.0], 11.0, 3, values) == pytest.approx(once)


def test_chebyshev_is_a_ridge_fit_blended_with_a_line() -> None:
    nodes, x, values = [12.0, 7.0, 3.0, 0.0], 14.0, np.array([1.0, 2.0, 0.5, 3.0])
    taus = np.array([2 * n / 29 - 1 for n in nodes])
    design = np.stack([np.cos(m * np.arccos(taus)) for m in range(5)], axis=1)
    solution = np.linalg.solve(design.T @ design + 0.1 * np.eye(5), design.T @ values)
    spectral = sum(c * math.cos(m * math.acos(2 * x / 29 - 1)) for m, c in enumerate(solution))
    line = values[0] + (values[0] - values[1]) * (x - 12) / 5
    weights = forecast.chebyshev_weights(nodes, x, (0.0, 29.0))
    assert float(np.dot(weights, values)) == pytest.approx(0.5 * spectral + 0.5 * line)
    assert forecast.chebyshev_weights([3.0], 5.0, (0.0, 29.0)) == [1.0]

"""From the positions of the last full steps to the weights of a prediction. Pure: floats in, floats out.

Every forecaster here is linear in the features F_0 (newest), F_1, ... of the last full steps, at coordinates
x_0, x_1, ... on the chosen axis; the target is at x, and h = x_0 - x_1 where the spacing is equal.

| forecaster  | assumes                                                | exact for       | keeps per site     |
| ----------- | ------------------------------------------------------ | --------------- | ------------------ |
| `reuse`     | nothing changes between full steps (DeepCache)         | constants       | 1 feature          |
| `taylor`    | Eq. 4: divided differences stand for the derivatives   | straight lines  | order + 1 features |
|             | at x_0                                                 |                 |                    |
| `newton`    | a polynomial through the last order + 1 full steps     | degree <= order | order + 1 features |
| `chebyshev` | a smooth curve over the run: ridge regression on       | nothing         | every full step's, |
|             | T_0..T_4, blended with a line (Spectrum)               |                 | up to 100          |

`taylor` and `newton` cost the same and read the same tensors. The first interval has one full step behind it and is
plain reuse whatever the forecaster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

FORECASTERS = ("newton", "taylor", "chebyshev", "reuse")

# Spectrum's published defaults: degree 4, ridge 0.1, equal parts spectral and linear, up to 100 snapshots.
CHEBYSHEV_DEGREE = 4
CHEBYSHEV_RIDGE = 0.1
CHEBYSHEV_BLEND = 0.5
CHEBYSHEV_SNAPSHOTS = 100


def polynomial_weights(forecaster: str, nodes: Sequence[Any], x: Any) -> list[Any]:
    """Weights on F_0..F_O at `nodes`, the newest first, for a prediction at `x`: floats, or arrays for many at once.

    "newton": of the polynomial through them, sum_i F[x_0..x_i] prod_{j<i} (x - x_j). Others: Eq. 4 of
    Follow-Your-Emoji-Faster, sum_i F[x_0..x_i] (x - x_0)^i. F[x_0..x_i] is the divided difference
    sum_j F_j / prod_{k != j} (x_j - x_k), D_i / (i! N^i) at equal spacing N, so that Eq. 4 has D_i k^i / (i! N^i).
    """
    weights: list[Any] = [0.0 * x for _ in nodes]
    term: Any = 1.0
    for order in range(len(nodes)):
        for j in range(order + 1):
            share = 1.0 / math.prod(nodes[j] - nodes[k] for k in range(order + 1) if k != j)
            weights[j] = weights[j] + share * term
        term = term * (x - nodes[order if forecaster == "newton" else 0])
    return weights


def chebyshev_weights(nodes: Sequence[float], x: float, span: tuple[float, float]) -> list[float]:
    """Weights on the snapshots F_0..F_{n-1}: half of a ridge fit on T_0..T_4, the rest a line through two.

    `span` is the run's whole range on the axis, mapped to [-1, 1]. One snapshot is reused. Adaptive Spectral Feature
    Forecasting (Spectrum, CVPR 2026), section 3.
    """
    if len(nodes) == 1:
        return [1.0]
    low, high = span
    taus = (2.0 * np.asarray([*nodes, x]) - (low + high)) / (high - low)
    design = np.polynomial.chebyshev.chebvander(taus, CHEBYSHEV_DEGREE)
    snapshots, target = design[:-1], design[-1]
    fit = np.linalg.solve(snapshots.T @ snapshots + CHEBYSHEV_RIDGE * np.eye(CHEBYSHEV_DEGREE + 1), snapshots.T)
    weights = CHEBYSHEV_BLEND * (target @ fit)
    weights[:2] += (1.0 - CHEBYSHEV_BLEND) * np.asarray(polynomial_weights("newton", nodes[:2], x))
    return weights.tolist()


def to_difference_coefficients(weights: Sequence[float]) -> list[float]:
    """Weights on features F_0..F_O -> coefficients on their plain backward differences D_0..D_O.

    F_j = sum_m (-1)^m C(j, m) D_m, so c_m = (-1)^m sum_j w_j C(j, m).
    """
    count = len(weights)
    return [(-1) ** m * math.fsum(weights[j] * math.comb(j, m) for j in range(m, count)) for m in range(count)]


def coefficients(forecaster: str, nodes: Sequence[float], x: float, order: int) -> list[float]:
    """Coefficients c_0..c_k on D_0..D_k of the last full steps for a prediction at `x`; k <= order is what is usable.

    `nodes` are the coordinates of the last full steps, newest first. Full steps at the same coordinate (PNDM evaluates
    one timestep twice) count once, the newest. c_0 is exactly 1: every forecaster here reproduces constants.
    """
    limit = 0 if forecaster == "reuse" else order
    kept: list[int] = []
    for index, node in enumerate(nodes[: limit + 1]):
        if all(node != nodes[other] for other in kept):
            kept.append(index)
    distinct = [nodes[index] for index in kept]
    weights = polynomial_weights(forecaster, distinct, x)
    spread = [0.0] * (kept[-1] + 1)
    for index, weight in zip(kept, weights, strict=True):
        spread[index] = weight
    return [1.0, *to_difference_coefficients(spread)[1:]]

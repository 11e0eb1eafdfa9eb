"""Distances between sets of features and between single ones, whatever network the features come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Frechet distance of the normal distributions through two sets of features [N, D] and [M, D]; 0 is equal.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), Heusel et al. 2017, Eq. 6: FID on Inception features of frames, FVD
    (Unterthiner et al. 2018) on I3D features of videos. The trace of the root is the sum of the roots of the product's
    eigenvalues, so that no matrix root is taken. Few samples overestimate it: below D of them the covariance has no
    full rank. Raises ValueError below two samples and for two widths.
    """
    one, two = (_features(each, least=2) for each in (first, second))
    _same_width(one, two)
    shift = one.mean(0) - two.mean(0)
    (left, left_trace), (right, right_trace) = _root(one), _root(two)
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(max(shift @ shift + left_trace + right_trace - 2 * cross, 0.0))


def kernel_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """KID: squared maximum mean discrepancy under (x.y / D + 1)^3, unbiased (Binkowski et al. 2018); about 0 is equal.

    Unlike `frechet_distance` it has no bias at few samples, and may be a little below 0. Raises ValueError as that.
    """
    one, two = (_features(each, least=2) for each in (first, second))
    _same_width(one, two)

    def kernel(a: Floats, b: Floats) -> Floats:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Floats) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return within(one) + within(two) - 2 * float(kernel(one, two).mean())


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Cosine of the angle between two embeddings [D], -1 to 1; 1 is the same direction. Raises ValueError for zeros."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    if norms == 0:
        raise ValueError("an embedding of zeros has no direction")
    return float(np.dot(np.asarray(first, np.float64), second) / norms)


def fisher_directions(features: Floats, people: NDArray[np.integer], count: int) -> Floats:
    """Directions along which people differ most against their own variation (Fisher 1936). -> [D, <= count].

    features [N, D], people [N]: whose each is. Scaled so that a person's own variation is 1 along each. The covariance
    within people is drawn a tenth of the way to its diagonal, so that few samples do not make it singular.
    """
    names = np.unique(people)
    means = np.stack([features[people == name].mean(0) for name in names])
    inside = features - means[np.searchsorted(names, people)]
    within = inside.T @ inside / max(len(features) - len(names), 1)
    within = 0.9 * within + 0.1 * np.diag(np.diag(within)) + 1e-9 * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    whiten = vectors / np.sqrt(values)
    spread = (means - means.mean(0)) @ whiten
    _, _, turn = np.linalg.svd(spread, full_matrices=False)
    return whiten @ turn[:count].T


def _features(values: NDArray[np.floating], least: int) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or len(array) < least:
        raise ValueError(f"features must be [N >= {least}, D], got {list(array.shape)}")
    return array


def _same_width(one: Floats, two: Floats) -> None:
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"features must have one width, got {one.shape[1]} and {two.shape[1]}")


def _root(features: Floats) -> tuple[Floats, float]:
    """A matrix R with R^T R the covariance, and its trace."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return centred, float((centred**2).sum())

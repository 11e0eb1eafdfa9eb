"""Which full steps predict the others best, from recorded features: exact, by dynamic programming. Pure: numpy only.

Every forecaster is linear in the features at its nodes (the last full steps), so its squared error at a step is
w^T G w, with G [T, T] the inner products of the features recorded at every step. "fitted" are the weights of sum 1 for
which that is least. What an interval between two full steps costs depends on the last order + 1 full steps only: they
are the state of the programme.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ticache.forecast import polynomial_weights

Array = NDArray[np.float64]

REFINED = 3  # of the forecasters and orders, the most promising ones
COHERENCE = 16.0  # steps over which errors look alike
FLOOR = 0.05  # of a squared error that is far from the end, polynomial weights
FITTED_FLOOR = 0.03  # the same, fitted weights
RIDGE = 1e-6  # of fitted weights, which features without a difference would leave open


@dataclass(frozen=True)
class Choice:
    """How a run is predicted: its full steps, and the forecaster and the order between them.

    error: `end_error`. weights: with "fitted", of every predicted step on the features of its nodes, the newest first.
    """

    steps: tuple[int, ...]
    forecaster: str
    order: int
    error: float = 0.0
    weights: Mapping[int, tuple[float, ...]] = field(default_factory=dict, hash=False)


def best_choice(
    gram: Array,
    count: int,
    coordinates: Array,
    orders: Sequence[int] = (1, 2, 3),
    forecasters: Sequence[str] = ("newton", "taylor"),
) -> Choice:
    """The full steps, and of the orders and forecasters those, that leave the least error at the end of the run.

    gram: [T, T]. coordinates: of the steps, increasing, in which features are extrapolated, [T].
    """
    started = []
    for name in forecasters if max(orders) else ("reuse",):
        weights = _sensitivity(len(gram), name) ** 2
        for order in orders:
            # The steps that are best for order 2 are near enough where three steps behind would be too many states.
            steps = best_steps(gram, weights, count, name, min(order, 2), coordinates)[1]
            started.append((end_error(gram, steps, name, order, coordinates), steps, name, order))
    found = [
        (*_refined(gram, steps, name, order, coordinates), name, order)
        for _, steps, name, order in sorted(started)[:REFINED]
    ]
    error, steps, forecaster, order = min(found)
    fitted = {}
    if forecaster == "fitted":
        missed = _missed(gram, steps, forecaster, order, coordinates)
        for step in sorted(set(range(len(gram))) - set(steps)):
            nodes = [node for node in reversed(steps) if node < step][: order + 1]
            fitted[step] = tuple(float(-missed[step, node]) for node in nodes)
    return Choice(steps, forecaster, order, error, fitted)


def end_error(gram: Array, steps: Sequence[int], forecaster: str, order: int, coordinates: Array) -> float:
    """How far the end of the run is off, squared, with these full steps: errors near one another add up.

    sum_tu s_t s_u exp(-|t - u| / COHERENCE) <e_t, e_u>, with e_t the error of step t and s_t the sensitivity to it.
    """
    step = np.arange(len(gram))
    weight = _sensitivity(len(gram), forecaster)
    alike = np.exp(-np.abs(step[:, None] - step) / COHERENCE)
    missed = _missed(gram, steps, forecaster, order, coordinates)
    return float(weight @ (missed @ gram @ missed.T * alike) @ weight)


def _sensitivity(num_steps: int, forecaster: str) -> Array:
    """s_t = sqrt(1 / (T - t)^2 + floor): what of an error is left at the end, as later steps correct earlier ones. [T]

    The form of what single predicted steps leave at the end of whole runs, on two models and three samplers.
    """
    left = num_steps - np.arange(num_steps, dtype=np.float64)
    return np.sqrt(left**-2 + (FITTED_FLOOR if forecaster == "fitted" else FLOOR))


def _refined(
    gram: Array, steps: tuple[int, ...], forecaster: str, order: int, coordinates: Array
) -> tuple[float, tuple[int, ...]]:
    """Move full steps, one, two neighbours or all from one on, by one place or two, while `end_error` falls."""
    value, better = end_error(gram, steps, forecaster, order, coordinates), True
    while better:
        better = False
        for moved in _moves(steps, len(gram)):
            found = end_error(gram, moved, forecaster, order, coordinates)
            if found < value * (1 - 1e-9):
                value, steps, better = found, moved, True
                break
    return value, steps


def _moves(steps: tuple[int, ...], num_steps: int) -> Iterator[tuple[int, ...]]:
    count = len(steps)
    for first in range(1, count):
        for last in sorted({first, min(first + 1, count - 1), count - 1}):
            for way in (-1, 1, -2, 2):
                moved = [step + way * (first <= index <= last) for index, step in enumerate(steps)]
                if moved[-1] < num_steps and all(a < b for a, b in itertools.pairwise(moved)):
                    yield tuple(moved)


def _missed(gram: Array, steps: Sequence[int], forecaster: str, order: int, x: Array) -> Array:
    """e_t = sum_u missed[t, u] F_u: a step less its prediction; zero at full steps. [T, T]"""
    num_steps = len(x)
    full = np.asarray(steps)
    newest = np.searchsorted(full, np.arange(num_steps), side="right") - 1
    missed = np.zeros((num_steps, num_steps))
    for used in range(1, order + 2):
        # At the beginning of a run fewer full steps are behind than the order asks for.
        here = (newest + 1 >= used) if used == order + 1 else (newest + 1 == used)
        target = np.flatnonzero(here & (full[newest] != np.arange(num_steps)))
        if not len(target):
            continue
        nodes = np.stack([full[newest[target] - back] for back in range(used)])
        missed[target, target] = 1
        for node, weight in zip(nodes, _weights(gram, nodes, target, forecaster, x), strict=True):
            missed[target, node] = -weight
    return missed


def best_steps(
    gram: Array, weights: Array, count: int, forecaster: str, order: int, coordinates: Array
) -> tuple[float, tuple[int, ...]]:
    """The `count` full steps with the least sum of weighted squared errors, and that sum.

    weights: [T]. Others as for `best_choice`. Gaps of more than four times the mean are not looked at.
    """
    num_steps = len(gram)
    count = min(count, num_steps)
    widest = min(num_steps, 4 * -(-num_steps // count))
    depth = max(order, 1)
    cost = _interval_costs(gram, weights, forecaster, order, coordinates, widest)
    # best[a, g_1, .., g_depth]: least error with a the last full step and g_i the gaps behind it, 0 where none is.
    best = np.full((num_steps, *(widest + 1,) * depth), np.inf)
    best[(0,) * (depth + 1)] = 0.0
    arrived: list[NDArray[np.intp]] = []
    for _ in range(count - 1):
        following = np.full_like(best, np.inf)
        behind = np.zeros(best.shape, dtype=np.intp)
        for gap in range(1, widest + 1):
            reached = best[: num_steps - gap] + cost[: num_steps - gap, ..., gap]
            following[gap:, gap] = reached.min(axis=-1)
            behind[gap:, gap] = reached.argmin(axis=-1)
        arrived.append(behind)
        best = following
    last = np.arange(max(0, num_steps - widest), num_steps)
    total = np.full_like(best, np.inf)
    total[last] = best[last] + cost[last, ..., num_steps - last]
    state = tuple(int(index) for index in np.unravel_index(int(total.argmin()), total.shape))
    value, steps = float(total[state]), [state[0]]
    for behind in reversed(arrived):
        step, gap, *others = state
        state = (step - gap, *others, int(behind[state]))
        steps.append(state[0])
    return value, tuple(reversed(steps))


def _interval_costs(gram: Array, weights: Array, forecaster: str, order: int, coordinates: Array, widest: int) -> Array:
    """[a, g_1, .., g_depth, gap]: summed weighted squared errors of the steps between a and a + gap."""
    num_steps, depth = len(gram), max(order, 1)
    errors = np.zeros((num_steps, *(widest + 1,) * depth, widest + 1))
    for used in range(depth + 1):
        # `used` gaps are known; those behind the first absent one are absent too.
        axes = [np.arange(num_steps), *[np.arange(1, widest + 1)] * used, np.arange(1, widest)]
        a, *gaps, ahead = (axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij"))
        behind = np.cumsum([a, *(-gap for gap in gaps)], axis=0)
        valid = (behind[-1] >= 0) & (a + ahead < num_steps)
        nodes, target = behind[: order + 1, valid], (a + ahead)[valid]
        found = _errors(gram, nodes, target, forecaster, coordinates) * weights[target]
        absent = [np.zeros(len(target), dtype=np.intp)] * (depth - used)
        errors[(a[valid], *(gap[valid] for gap in gaps), *absent, ahead[valid])] = found
    # The steps between a and a + gap are those 1 .. gap - 1 ahead.
    summed = np.cumsum(errors, axis=-1)
    return np.concatenate([np.zeros_like(summed[..., :1]), summed[..., :-1]], axis=-1)


def _errors(gram: Array, nodes: NDArray[np.intp], target: NDArray[np.intp], forecaster: str, x: Array) -> Array:
    """Squared errors of predicting steps `target` [S] from the steps `nodes` [n, S], the newest first. -> [S]"""
    weights = _weights(gram, nodes, target, forecaster, x)
    error = gram[target, target].copy()
    for i, (weight, node) in enumerate(zip(weights, nodes, strict=True)):
        error -= 2 * weight * gram[target, node]
        error += weight**2 * gram[node, node]
        for other_weight, other in itertools.islice(zip(weights, nodes, strict=True), i):
            error += 2 * weight * other_weight * gram[node, other]
    return np.maximum(error, 0.0)  # rounding


def _weights(
    gram: Array, nodes: NDArray[np.intp], target: NDArray[np.intp], forecaster: str, x: Array
) -> Sequence[Array]:
    """The weights of many predictions at once: of steps `target` [S] from steps `nodes` [n, S] -> n times [S]."""
    if forecaster == "fitted":
        return list(_fitted_weights(gram, nodes, target))
    return polynomial_weights(forecaster, list(x[nodes]), x[target])


def _fitted_weights(gram: Array, nodes: NDArray[np.intp], target: NDArray[np.intp]) -> Array:
    """Weights w of sum 1 with the least |F_t - sum_i w_i F_i|^2 + RIDGE |w|^2. -> [n, S]"""
    newest, others = nodes[0], nodes[1:]
    if not len(others):
        return np.ones((1, len(target)))

    def inner(a: NDArray[np.intp], b: NDArray[np.intp]) -> Array:
        """<F_a - F_newest, F_b - F_newest>"""
        return gram[a, b] - gram[a, newest] - gram[newest, b] + gram[newest, newest]

    matrix = np.stack([[inner(a, b) for b in others] for a in others]).transpose(2, 0, 1)
    matrix = matrix + RIDGE * (1 + np.eye(len(others)))
    wanted = np.stack([inner(each, target) for each in others], axis=1) + RIDGE
    shares = np.linalg.solve(matrix, wanted[..., None])[..., 0].T
    return np.asarray(np.concatenate([1 - shares.sum(axis=0, keepdims=True), shares]), np.float64)

"""Where a tuning looks: pure searches over schedules, against objectives whose best is known."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest

from ticache.schedule import late_steps_of, map_steps
from ticache.tuning.local_search import GoalSearch, LocalSearch, fewest, resampled
from ticache.tuning.trials import Candidate, Choices, Exhausted

CHOICES = Choices(orders=(2, 1), cuts=("outer",))


def peak(best: tuple[int, ...], order: int = 2, cut: str = "outer"):
    """What a candidate is worth: less, the farther each step is from where it should be."""

    def worth(candidate: Candidate) -> float:
        distance = sum(abs(a - b) for a, b in zip(candidate.steps, best, strict=True))
        return 50.0 - distance - 3 * (candidate.order != order) - 5 * (candidate.cut != cut)

    return worth


@pytest.mark.parametrize("best", [(0, 7, 14, 20, 26, 29), (0, 2, 4, 9, 18, 29), (0, 12, 20, 23, 25, 28)])
def test_a_search_reaches_a_single_peak(best: tuple[int, ...]) -> None:
    search = LocalSearch(6, 30, peak(best, order=1), CHOICES)
    assert not search.run()
    assert (search.best.steps, search.best.order, search.value) == (best, 1, 50.0)


def test_a_search_moves_neighbours_together() -> None:
    """Neither of two steps gains by moving alone; only with the other."""

    def worth(candidate: Candidate) -> float:
        _, a, b, _ = candidate.steps
        return -abs(a - 15) - 10 * abs(b - a - (late[2] - late[1]))

    late = late_steps_of(4, 30)
    search = LocalSearch(4, 30, worth, Choices(orders=(2,), cuts=("outer",)))
    search.run()
    assert search.best.steps[1:3] == (15, 15 + late[2] - late[1])


def test_the_search_begins_with_the_late_schedule_and_tries_nothing_twice() -> None:
    tried: list[Candidate] = []

    def worth(candidate: Candidate) -> float:
        tried.append(candidate)
        return peak((0, 5, 12, 20, 26, 29))(candidate)

    LocalSearch(6, 30, worth, CHOICES).run()
    assert tried[0] == Candidate(late_steps_of(6, 30), 2, "outer", "newton")
    assert len(tried) == len(set(tried))
    assert all(len(set(each.steps)) == 6 and each.steps[0] == 0 and max(each.steps) < 30 for each in tried)


def test_seeds_order_the_moves_and_nothing_else_is_random() -> None:
    def order(seed: int) -> list[Candidate]:
        tried: list[Candidate] = []

        def worth(candidate: Candidate) -> float:
            tried.append(candidate)
            return 0.0

        LocalSearch(5, 20, worth, CHOICES, seed=seed).run()
        return tried

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert set(order(1)) == set(order(2))


def test_a_goal_a_limit_and_exhaustion_end_it_with_the_best_so_far() -> None:
    worth = peak((0, 5, 12, 20, 26, 29))
    search = LocalSearch(6, 30, worth, CHOICES)
    assert search.run(goal=42)
    assert 42 <= search.value < 50

    counted = itertools.count(1)
    limited = LocalSearch(6, 30, lambda candidate: next(counted) and worth(candidate), CHOICES)
    limited.run(limit=4)
    assert next(counted) == 5

    left = iter(range(6))

    def scarce(candidate: Candidate) -> float:
        if next(left, None) is None:
            raise Exhausted
        return worth(candidate)

    scanty = LocalSearch(6, 30, scarce, CHOICES)
    with pytest.raises(Exhausted):
        scanty.run()
    assert scanty.value > worth(CHOICES.start(late_steps_of(6, 30)))


@pytest.mark.parametrize("num_steps", [1, 2, 5, 30])
def test_bisection_finds_the_threshold(num_steps: int) -> None:
    for threshold in range(1, num_steps + 1):
        tried: list[int] = []

        def reaches(count: int, threshold: int = threshold, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= threshold

        assert fewest(num_steps, reaches) == threshold
        assert len(tried) <= 8
        assert num_steps not in tried


@pytest.mark.parametrize("count", range(1, 9))
def test_resampled_keeps_ends_and_order(count: int) -> None:
    steps = resampled((0, 7, 14, 20, 26, 29), count, 30)
    assert len(set(steps)) == count
    assert list(steps) == sorted(steps)
    assert steps[0] == 0
    assert count == 1 or steps[-1] == 29
    assert resampled((0, 7, 14, 20, 26, 29), 6, 30) == (0, 7, 14, 20, 26, 29)


@pytest.mark.parametrize(
    ("steps", "num_steps", "onto", "mapped"),
    [
        ((0, 10, 20, 29), 30, 15, (0, 5, 10, 14)),
        ((0, 10, 20, 29), 30, 60, (0, 20, 41, 59)),
        ((0, 26, 27, 28, 29), 30, 10, (0, 6, 7, 8, 9)),
        ((0, 5, 9), 10, 2, (0, 1)),
        ((0,), 10, 20, (0,)),
        ((0, 3), 10, 10, (0, 3)),
    ],
)
def test_steps_lie_at_the_same_shares_of_another_run(
    steps: tuple[int, ...], num_steps: int, onto: int, mapped: tuple[int, ...]
) -> None:
    assert map_steps(steps, num_steps, onto) == mapped


@pytest.mark.parametrize("threshold", [3, 12, 29])
def test_a_good_guess_needs_few_trials_and_a_bad_one_harms_nothing(threshold: int) -> None:
    for guessed, most in ((threshold, 2), (1, 30), (29, 30), (500, 30)):
        tried: list[int] = []

        def reaches(count: int, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= threshold

        assert fewest(30, reaches, lambda guessed=guessed: guessed) == threshold
        assert len(tried) <= most


def test_a_search_begins_where_it_is_told() -> None:
    begin = Candidate((0, 5, 12, 20, 26, 29), 1, "outer", "taylor")
    search = LocalSearch(6, 30, peak((0, 5, 12, 20, 26, 29), order=1), CHOICES, begin=begin)
    assert search.start() == 50.0
    assert search.best == begin


def test_the_recorded_error_tells_how_many_full_steps_reach_a_target() -> None:
    """Fidelity falls by 3 dB a full step, which is what the recorded error says too: the second guess is right."""
    tried: list[int] = []

    def recorded(count: int, choices: Choices) -> tuple[Candidate, float]:
        return Candidate(late_steps_of(count, 30)), 10 ** (-0.3 * count)

    class Trials:
        tuning = SimpleNamespace(run_steps=30, seed=0, recorded=recorded)
        bound, made = 40, 0

        def __call__(self, candidate: Candidate) -> float:
            tried.append(len(candidate.steps))
            return 3.0 * len(candidate.steps)

    trials: Any = Trials()
    search = GoalSearch(trials, CHOICES, 60.0, None)
    search.run()
    assert len(search.best.steps) == 20
    assert tried[1] == 20


def test_a_metric_that_calls_an_exact_result_infinitely_good_is_a_trial_made() -> None:
    """A ratio to an error of 0 is inf; taken for "nothing tried", it ended the search without a result."""

    class Trials:
        tuning = SimpleNamespace(run_steps=6, seed=0, recorded=lambda count, choices: None)

        def __call__(self, candidate: Candidate) -> float:
            return math.inf

    trials: Any = Trials()
    search = GoalSearch(trials, CHOICES, None, 3)
    search.run()
    assert search.best == CHOICES.start(late_steps_of(3, 6))

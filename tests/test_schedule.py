"""Which steps are full: tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticache.schedule import FullSteps, boundary_step, steps_of


@pytest.mark.parametrize(
    ("steps", "N", "expected"),
    [
        (30, 3, (0, 5, 9, 13, 17, 20, 23, 26, 28, 29)),
        (30, 5, (0, 8, 16, 22, 26, 29)),
        (10, 3, (0, 4, 7, 9)),
        (4, 1, (0, 1, 2, 3)),
        (4, 3, (0, 3)),
        (3, 5, (0,)),
        (1, 1, (0,)),
        (0, 3, ()),
    ],
)
def test_late_table(steps: int, N: int, expected: tuple[int, ...]) -> None:
    assert steps_of("late", steps, N) == expected


@pytest.mark.parametrize(
    ("steps", "N", "expected"),
    [
        (30, 3, (0, 3, 7, 10, 13, 17, 20, 23, 26, 29)),
        (20, 3, (0, 3, 7, 10, 13, 16, 19)),
        (30, 5, (0, 6, 12, 18, 24, 29)),
        (4, 1, (0, 1, 2, 3)),
        (3, 5, (0,)),
        (0, 3, ()),
    ],
)
def test_spread_table(steps: int, N: int, expected: tuple[int, ...]) -> None:
    assert steps_of("spread", steps, N) == expected
    assert FullSteps(steps, N=N).listed() == expected


@pytest.mark.parametrize("schedule", ["late", "spread"])
@given(steps=st.integers(1, 120), N=st.integers(1, 40))
def test_full_steps_have_their_count_and_their_ends(schedule: str, steps: int, N: int) -> None:
    full = steps_of(schedule, steps, N)
    count = -(-steps // N)
    assert len(full) == len(set(full)) == count
    assert list(full) == sorted(full)
    assert full[0] == 0
    assert full[-1] < steps
    if count >= 2:
        assert full[-1] == steps - 1
    if count == steps:
        assert full == tuple(range(steps))


def test_uniform_is_every_nth() -> None:
    assert steps_of("uniform", 10, 3) == (0, 3, 6, 9)
    assert [step for step in range(10) if step in FullSteps(None, N=3, schedule="uniform")] == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("boundary", "steps", "expected"),
    [(0.72, 30, 22), (0.0, 30, 0), (1.0, 30, 30), (0.1, 30, 3), (0.5, 5, 3), (7, 30, 7), (7, None, 7), (0, None, 0)],
)
def test_boundary(boundary: float | int, steps: int | None, expected: int) -> None:
    assert boundary_step(boundary, steps) == expected


def test_a_fraction_needs_the_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"boundary=0\.5 is a fraction"):
        boundary_step(0.5, None)


def test_warmup_lists_and_callables() -> None:
    assert FullSteps(10, N=4, schedule="uniform", warmup=3).listed() == (0, 1, 2, 4, 8)
    assert FullSteps(10, N=4, schedule="steps", steps=(0, 5, 6)).listed() == (0, 5, 6)
    assert FullSteps(6, N=4, schedule=lambda step: step % 2 == 1).listed() == (0, 1, 3, 5)
    assert FullSteps(6, N=4, schedule=lambda step, num_steps: step == num_steps - 1).listed() == (0, 5)


def test_what_nobody_will_use_need_not_be_kept() -> None:
    full = FullSteps(10, N=3, schedule="late")
    assert full.listed() == (0, 4, 7, 9)
    assert full.any_predicted_after(7)
    assert not full.any_predicted_after(9)
    assert not FullSteps(10, N=1, schedule="late").any_predicted_after(0)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="num_steps="):
        FullSteps(None, N=3, schedule="late")
    with pytest.raises(ValueError, match="schedule must be"):
        FullSteps(10, N=3, schedule="soon")

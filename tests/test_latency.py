"""The latency table: which rows it has, and what a ratio is of."""

from __future__ import annotations

import pytest

from benchmarks import latency


def test_the_quick_table_has_every_rival_at_a_third_of_the_steps() -> None:
    rows = list(latency.rows_of(["sd15"], quick=True))
    assert [row.name for row in rows] == [
        "uncached",
        "ticache outer N=3",
        "ticache output N=3",
        "DeepCache 0.1.1 N=3",
        "tomesd 0.1.3",
    ]
    steps = latency.STEPS[True]
    assert [latency.full_calls(row, steps, None) for row in rows if row.method != "ticache"] == [
        steps,
        steps // 3,
        steps,
    ]


def test_a_models_rows_take_turns_in_the_quick_form() -> None:
    plan = latency.Plan(["sd15", "animatediff"], quick=True, device="cpu")
    runs = latency.order_of(plan)
    sd15 = [row for row in plan.rows if row.model == "sd15"]
    assert runs[: 2 * len(sd15)] == [(row, turn) for turn in (0, 1) for row in sd15]
    assert [row.model for row, _ in runs] == ["sd15"] * (len(runs) // 2) + ["animatediff"] * (len(runs) // 2)
    assert len(runs) == latency.TURNS * len(plan.rows)
    whole = latency.Plan(["sd15"], quick=False, device="cpu")
    assert (len(latency.order_of(whole)), whole.rounds) == (len(whole.rows), 10)


def _row(model: str, method: str, mode: str, *seconds: float) -> dict[str, object]:
    return {"model": model, "method": method, "mode": mode, "seconds": list(seconds), "time_ratio": None}


def test_a_ratio_is_of_the_uncached_run_of_the_same_model_and_mode() -> None:
    rows = latency._with_ratios(
        [
            _row("sd15", "uncached", "eager", 6.0),
            _row("sd15", "uncached", "compiled", 4.0),
            _row("sd15", "ticache", "eager", 2.0),
            _row("sd15", "ticache", "compiled", 2.0),
            _row("sd15", "tomesd", "eager"),
            _row("sdxl", "ticache", "eager", 1.0),
        ]
    )
    assert [each["time_ratio"] for each in rows] == [1.0, 1.0, pytest.approx(3.0), pytest.approx(2.0), None, None]


def test_a_ratio_is_of_the_uncached_run_of_the_same_turn() -> None:
    """A machine that is busy during one turn is so for all of its rows."""
    _, row = latency._with_ratios(
        [_row("sd15", "uncached", "eager", 6.0, 12.0, 6.0), _row("sd15", "ticache", "eager", 3.0, 4.0, 2.5)]
    )
    assert row["time_ratio"] == pytest.approx(2.4)
    assert row["time_ratios"] == [2.0, 3.0]


def test_a_row_has_the_rounds_of_all_its_turns_and_no_figures_after_an_error() -> None:
    row = latency.Row("sd15", "ticache", N=3, cut="outer")
    turns = [{"stats": {"data": [seconds]}, "extra_info": {"calls": 2}} for seconds in (1.0, 3.0, 2.0)]
    found = latency._table_row(row, 6, turns, None)
    assert (found["seconds"], found["p50"], found["calls"]) == ([1.0, 3.0, 2.0], 2.0, 2)
    failed = latency._table_row(row, 6, turns, "RuntimeError: no")
    assert (failed["seconds"], failed["p50"], failed["error"]) == ([], None, "RuntimeError: no")

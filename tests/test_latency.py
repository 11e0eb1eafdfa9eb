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


def test_a_ratio_is_of_the_uncached_run_of_the_same_model_and_mode() -> None:
    def row(model: str, method: str, mode: str, p50: float | None) -> dict[str, object]:
        return {"model": model, "method": method, "mode": mode, "p50": p50, "time_ratio": None}

    rows = latency._with_ratios(
        [
            row("sd15", "uncached", "eager", 6.0),
            row("sd15", "uncached", "compiled", 4.0),
            row("sd15", "ticache", "eager", 2.0),
            row("sd15", "ticache", "compiled", 2.0),
            row("sd15", "tomesd", "eager", None),
            row("sdxl", "ticache", "eager", 1.0),
        ]
    )
    assert [each["time_ratio"] for each in rows] == [1.0, 1.0, pytest.approx(3.0), pytest.approx(2.0), None, None]

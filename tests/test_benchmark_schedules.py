"""The grid of schedules: its cells and names, and that another seed measures other heads and noise."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from benchmarks import schedules


def test_the_grid_is_the_one_that_was_asked_for() -> None:
    cells = {(cell.model, cell.sampler, cell.steps, cell.guidance) for cell in schedules.GRID}
    samplers = {"ddim": 30, "dpm-solver++": 20, "euler": 30}
    assert cells == {
        *(("sd-like", name, steps, guidance) for name, steps in samplers.items() for guidance in (1.0, 3.0, 7.5)),
        *(("portrait", name, samplers[name], scale) for name in ("ddim", "dpm-solver++") for scale in (1.0, 3.5)),
    }


@pytest.mark.parametrize(("steps", "full"), [(20, 7), (30, 10)])
def test_every_fixed_recipe_has_a_third_of_the_steps(steps: int, full: int) -> None:
    recipes = dict(schedules.recipes(steps))
    fixed = ("late", "late 1.3", "even", "uniform")
    assert list(recipes) == ["default", *(name + more for name in fixed for more in ("", " taylor"))]
    assert recipes.pop("default") == {"N": 3}
    assert {len(settings["schedule"]) for settings in recipes.values()} == {full}


@pytest.mark.parametrize("seed", [0, 3])
def test_a_seed_decides_heads_and_noise(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    made: list[schedules.Sizes] = []

    class Model:
        def __init__(self, sizes: schedules.Sizes, *_: Any) -> None:
            made.append(sizes)

        def conditions(self) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(schedules, "MODELS", {"sd-like": (Model, schedules.Sizes(1, 1, 6))})
    monkeypatch.setattr(schedules, "obtain_face_landmarker", lambda: None)
    monkeypatch.setattr(schedules, "FaceLandmarkDetector", lambda *_, **__: nullcontext())
    monkeypatch.setattr(schedules, "measure", lambda *_: [])
    schedules.main(["--only", "sd-like / ddim 30 / guidance 1$", *(["--seed", str(seed)] if seed else [])])
    assert made == [schedules.Sizes(1, 1, 6, seed)]

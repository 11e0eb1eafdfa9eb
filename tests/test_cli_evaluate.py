"""`fye evaluate`: what the flags become; the recipe's recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fye_command import Fye

from fye_pipeline.animate.session import recommended_guidance
from fye_pipeline.evaluation import rendered as reenactment
from fye_pipeline.evaluation.run import Run

ROW = {"l1": 0.03, "psnr": 25.0, "ssim": 0.85, "landmark_error": None, "frames_without_face": 3}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def record(load: Any, plan: reenactment.Plan, run: Run, **options: Any) -> dict[str, Any]:
        seen.append({"plan": plan, "run": run})
        return {"ours": ROW, "conditions": {"seed": plan.seed}}

    monkeypatch.setattr(reenactment, "evaluate_rendered", record)
    return seen


def test_flags_become_a_plan(fye: Fye, calls: list[dict[str, Any]], tmp_path: Path, face_landmarker_path: Path) -> None:
    target = tmp_path / "figures.json"
    code, out, err = fye(
        *("evaluate", "rendered", "--face-landmarker", face_landmarker_path, "--clips", "3", "--seed", "5"),
        *("--N", "3", "--jobs", "2", "--no-cross", "--resume", "--json", target),
    )
    assert code == 0, err
    plan = calls[0]["plan"]
    assert (plan.clips, plan.seed, plan.cross) == (3, 5, False)
    assert plan.cache == {"N": 3, "order": 2, "cut": "outer"}
    assert calls[0]["run"] == Run(target, jobs=2, resume=True)
    assert "0.0300" in out
    assert "n/a" in out


def test_without_n_there_is_no_cached_row(fye: Fye, calls: list[dict[str, Any]], face_landmarker_path: Path) -> None:
    fye("evaluate", "rendered", "--face-landmarker", face_landmarker_path, "--guidance", "2.5")
    assert calls[0]["plan"].cache is None
    assert calls[0]["plan"].guidance == 2.5


def test_bad_flags_are_refused_before_any_work(fye: Fye, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    assert fye.refused("evaluate", "rendered", "--split", "test") == (
        "fye: --split must be held, train or demo, got 'test'."
    )
    assert "Cache: " in fye.refused("evaluate", "rendered", "--N", "3", "--cut", "middle")
    there = tmp_path / "there.json"
    there.write_text("{}")
    assert "--overwrite" in fye.refused("evaluate", "rendered", "--json", there)
    assert not calls


def test_the_recipe_recommends_a_guidance(tmp_path: Path) -> None:
    from fye_pipeline.errors import UserError

    assert recommended_guidance(tmp_path) == 3.5
    (tmp_path / "recipe.json").write_text('{"guidance": 1.2}', encoding="utf-8")
    assert recommended_guidance(tmp_path) == 1.2
    (tmp_path / "recipe.json").write_text('{"guidance": "much"}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a recipe"):
        recommended_guidance(tmp_path)

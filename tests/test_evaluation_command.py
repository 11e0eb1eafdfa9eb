"""`fye evaluate rendered`: what the flags become, what is written; the recipe's recommendation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fye_pipeline.errors import UserError
from fye_pipeline.evaluate_command import app
from fye_pipeline.evaluation import reenactment
from fye_pipeline.models.recipe import recommended_guidance
from fye_pipeline.pipeline import FollowYourEmojiPipeline

ROW = {"l1": 0.03, "psnr": 25.0, "ssim": 0.85, "landmark_error": None, "frames_without_face": 3}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def record(model: Any, **options: Any) -> dict[str, Any]:
        seen.append(options)
        return {"ours": ROW, "conditions": {"seed": options["seed"]}}

    monkeypatch.setattr(reenactment, "evaluate_rendered", record)
    monkeypatch.setattr(FollowYourEmojiPipeline, "from_pretrained", lambda folder: folder)
    return seen


def run(*arguments: str, task: Path) -> Any:
    return CliRunner().invoke(app, ["rendered", "--face-landmarker", str(task), *arguments])


def test_flags_become_options_and_figures_a_file(
    calls: list[dict[str, Any]], tmp_path: Path, face_landmarker_path: Path
) -> None:
    target = tmp_path / "figures.json"
    result = run("--clips", "3", "--seed", "5", "--N", "3", "--json", str(target), task=face_landmarker_path)
    assert result.exit_code == 0, result.output
    assert calls[0]["clips"] == 3
    assert calls[0]["cache"] == {"N": 3, "order": 2, "cut": "outer"}
    assert json.loads(target.read_text(encoding="utf-8")) == {"ours": ROW, "conditions": {"seed": 5}}
    assert "0.0300" in result.output
    assert "n/a" in result.output


def test_without_n_there_is_no_cached_row(calls: list[dict[str, Any]], face_landmarker_path: Path) -> None:
    run("--guidance", "2.5", task=face_landmarker_path)
    assert calls[0]["cache"] is None
    assert calls[0]["guidance"] == 2.5


def test_an_unknown_split_is_refused(calls: list[dict[str, Any]], face_landmarker_path: Path) -> None:
    result = run("--split", "test", task=face_landmarker_path)
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == "--split must be held, train or demo, got 'test'."
    assert not calls


def test_the_recipe_recommends_a_guidance(tmp_path: Path) -> None:
    assert recommended_guidance(tmp_path) == 3.5
    (tmp_path / "recipe.json").write_text('{"guidance": 1.2}', encoding="utf-8")
    assert recommended_guidance(tmp_path) == 1.2
    (tmp_path / "recipe.json").write_text('{"guidance": "much"}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a recipe"):
        recommended_guidance(tmp_path)

"""The ablation's rows are what they are called, its figures are right, and nothing finished is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ticache
from benchmarks.ablation import command as ablation
from benchmarks.ablation.command import Clip, RecipeRun, RecipeRunner
from benchmarks.ablation.rows import TABLES, UNCACHED, Recipe, recipes
from benchmarks.plots.error_per_step import CURVES, curves, draw_curves
from fye_pipeline.models.tiny import build_tiny
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training.config import TrainConfig, load_config

SIZE, FRAMES, STEPS = 32, 2, 5


def blind(_picture: Any) -> None:
    """A detector that finds no face."""


def make_clip(seed: int = 0) -> Clip:
    draw = np.random.default_rng(seed)
    landmarks = draw.uniform(0.3, 0.7, (FRAMES, 478, 3))
    face = np.zeros((FRAMES, SIZE, SIZE), np.float32)
    face[:, 8:24, 8:24] = 1
    return Clip(
        truth=draw.uniform(size=(FRAMES, SIZE, SIZE, 3)),
        landmarks=landmarks,
        region=face,
        face=face,
        seen=[None] * FRAMES,
        portrait=draw.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8),
        portrait_landmarks=landmarks[0],
        seed=seed,
    )


def make_take(value: float, *, face: float | None = None, steps: int = STEPS) -> RecipeRun:
    """Grey frames, with another grey in the face; latents off by 0.1 from the second step on, if the frames are."""
    video = np.full((FRAMES, SIZE, SIZE, 3), 0.5 + value)
    if face is not None:
        video[:, 8:24, 8:24] = 0.5 + face
    latents = [torch.full((1, 4, FRAMES, 4, 4), 0.1 if value and step else 0.0) for step in range(steps)]
    return RecipeRun(video, latents, [0, 2, 4] if value else list(range(steps)), 600 if value else 1000)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> RecipeRunner:
    """Two clips; a cached row is 0.1 off everywhere but in the face, where it is 0.01 off."""

    class Silent:
        device = torch.device("cpu")

        def set_progress_bar_config(self, **_: Any) -> None: ...

    def take(_self: RecipeRunner, recipe: Recipe, _clip: Clip, _model: Any = None) -> RecipeRun:
        return make_take(0.1, face=0.01, steps=recipe.steps) if recipe.cache or recipe.steps < STEPS else make_take(0)

    monkeypatch.setattr(RecipeRunner, "take", take)
    model: Any = Silent()
    return RecipeRunner(model, [make_clip(0), make_clip(1)], 1.0, blind)


CACHED = Recipe("ticache N=2 order=2", ("interval",), {"N": 2}, steps=STEPS)
FEWER = Recipe("DDIM 3", ("interval",), steps=3)


def test_every_row_is_there_once_and_valid() -> None:
    for quick in (True, False):
        planned = recipes(quick=quick)
        names = [recipe.name for recipe in planned]
        assert len(set(names)) == len(names)
        assert planned[0] == UNCACHED
        for recipe in planned:
            assert set(recipe.tables) <= set(TABLES)
            foreign = not recipe.cache or recipe.cache.get("forecaster") in ("chebyshev", "reuse")
            assert recipe.name.startswith("ticache") != foreign
            options = dict(recipe.cache)
            ticache.CacheConfig.from_preset(options.pop("preset", None), **options)
    assert {recipe.name for recipe in recipes(quick=True)} < {recipe.name for recipe in recipes(quick=False)}


def test_the_papers_table_5_is_whole() -> None:
    rows = {recipe.name: recipe for recipe in recipes(quick=True) if "paper" in recipe.tables}
    wanted = {(2, 0, None), (2, 1, None), (2, 2, None), (2, 3, None), (3, 2, None), (3, 2, 0.72)}
    found = {
        (recipe.cache["N"], recipe.cache["order"], recipe.cache.get("boundary"))
        for recipe in rows.values()
        if recipe.cache
    }
    assert found == wanted
    assert {"uncached", "DDIM 15", "DDIM 10"} < set(rows)
    assert all(recipe.cache["preset"] == "paper" for recipe in rows.values() if recipe.cache)
    assert all(recipe.region == ("boundary" in recipe.cache) for recipe in rows.values())


def test_every_table_compares_something() -> None:
    for quick, without in ((True, {"cut", "formula"}), (False, set())):
        for table in set(TABLES) - without:
            assert sum(table in recipe.tables for recipe in recipes(quick=quick)) >= 4, table


def test_a_training_config_differs_from_the_shipped_recipe_in_what_it_is_called() -> None:
    changed = {}
    for recipe in recipes(quick=True):
        if recipe.config is not None:
            ours, base = vars(load_config(recipe.config)), vars(TrainConfig())
            changed[recipe.config.stem] = {name for name in base if ours[name] != base[name]} - {"name"}
            assert ours["name"] == recipe.config.stem
            assert f"--config benchmarks/configs/{recipe.config.name}" in recipe.command
    assert changed.pop("no-expression-loss") == {"expression_loss"}
    assert changed.pop("no-facial-loss") == {"facial_loss"}
    assert changed.pop("no-ffg-loss") == {"expression_loss", "facial_loss"}
    assert changed
    assert all(options == {"landmark_style"} for options in changed.values())


def test_figures_of_a_row(bench: RecipeRunner) -> None:
    row = bench.measure(CACHED, lambda: None)
    area = 16 * 16 / SIZE**2
    assert row["psnr_region"] == pytest.approx(40)
    assert row["psnr"] == pytest.approx(-10 * np.log10(0.01 * (1 - area) + 0.0001 * area))
    assert row["psnr_clips"] == [row["psnr"]] * 2
    assert row["mse"] == pytest.approx([0, *[0.01] * (STEPS - 1)])
    assert (row["calls"], row["full_steps"], row["flops"]) == (3, [0, 2, 4], 600)
    assert row["flops_ratio"] == pytest.approx(1000 / 600)
    assert row["frames_without_face"] == 2 * FRAMES
    assert row["landmark_error"] is None
    assert row["error"] is None


def test_fewer_steps_have_no_curve(bench: RecipeRunner) -> None:
    row = bench.measure(FEWER, lambda: None)
    assert "mse" not in row
    assert row["psnr_region"] == pytest.approx(40)


def test_a_model_that_was_not_trained_says_how_it_is(
    bench: RecipeRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    recipe = next(recipe for recipe in recipes(quick=True) if recipe.name == "no facial loss")
    row = bench.measure(recipe, lambda: None)
    assert row["error"] == "n/a: not trained"
    assert (
        row["command"]
        == "fye train --config benchmarks/configs/no-facial-loss.toml --output runs/ablation/no-facial-loss"
    )
    assert "psnr" not in row


def test_ctrl_c_keeps_finished_rows_and_resume_measures_the_others(
    bench: RecipeRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[str] = []
    measure = RecipeRunner.measure

    def until_interrupted(self: RecipeRunner, recipe: Recipe, on_clip: Any) -> dict[str, Any]:
        if recipe.name == CACHED.name and not measured.count("stop"):
            measured.append("stop")
            raise KeyboardInterrupt
        measured.append(recipe.name)
        return measure(self, recipe, on_clip)

    monkeypatch.setattr(RecipeRunner, "measure", until_interrupted)
    planned, path = [FEWER, CACHED], tmp_path / "f.json"
    conditions = {"seed": 0}

    def save(rows: list[dict[str, Any]]) -> None:
        path.write_text(json.dumps({"conditions": conditions, "rows": rows}))

    rows, interrupted = ablation.run(bench, planned, {}, save)
    assert interrupted
    assert [row["name"] for row in rows] == ["DDIM 3"]
    known = ablation.earlier_rows(path, conditions)
    rows, interrupted = ablation.run(bench, planned, known, save)
    assert not interrupted
    assert measured == ["DDIM 3", "stop", CACHED.name]
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["DDIM 3", CACHED.name]


def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"conditions": {"seed": 0, "model_hash": "a"}, "rows": []}))
    with pytest.raises(SystemExit, match="other model_hash"):
        ablation.earlier_rows(path, {"seed": 0, "model_hash": "b"})
    assert ablation.earlier_rows(tmp_path / "absent.json", {}) == {}


def test_a_real_run_counts_and_keeps_the_latents() -> None:
    """The shipped architecture with random weights: exact until the first prediction, cheaper, calls as scheduled."""
    model = FollowYourEmojiPipeline(**build_tiny(0, in_channels=9, reference_hint=True))
    bench = RecipeRunner(model, [make_clip()], 1.0, blind)
    base = bench.take(Recipe("uncached", (), steps=STEPS), bench.clips[0])
    take = bench.take(Recipe("x", (), {"N": 2, "order": 1, "schedule": "uniform"}, steps=STEPS), bench.clips[0])
    assert model.session is None
    assert (base.full_steps, take.full_steps) == ([0, 1, 2, 3, 4], [0, 2, 4])
    assert take.flops < base.flops
    errors = ablation.step_errors(take, base)
    assert errors[0] == 0
    assert errors[1] > 0
    assert take.video.shape == (FRAMES, SIZE, SIZE, 3)


def test_the_curves_name_rows_that_are_measured(tmp_path: Path) -> None:
    names = {recipe.name for recipe in recipes(quick=True)}
    assert {name for name, *_ in CURVES} <= names
    row = {"name": CURVES[0][0], "mse": [0.0, 1e-5, 2e-5], "full_steps": [0, 2], "steps": 3}
    assert curves([row, {"name": "DDIM 10"}])[0][0] is row
    written = draw_curves({"rows": [row]}, tmp_path / "ablation")
    assert [path.name for path in written] == ["ablation-light.svg", "ablation-dark.svg"]
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in draw_curves({"rows": [row]}, tmp_path / "ablation")] == first

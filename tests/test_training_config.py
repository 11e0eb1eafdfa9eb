"""Recipes: named ones, files of changes, the rate over a phase."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fye_pipeline.errors import UserError
from fye_pipeline.training.config import PhaseConfig, TrainConfig, build_config, check_inputs, load_config


def test_the_rate_warms_up_rests_and_falls() -> None:
    phase = PhaseConfig(steps=100, batch=1, lr=1.0, warmup=10, decay_from=0.5, lr_end=0.1)
    assert phase.lr_at(0) == pytest.approx(0.1)
    assert phase.lr_at(9) == phase.lr_at(49) == pytest.approx(1.0)
    assert phase.lr_at(75) == pytest.approx(0.55)
    assert phase.lr_at(100) == pytest.approx(0.1)


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("seed = 3\nfacial_loss = false\n[video]\nsteps = 7\n", encoding="utf-8")
    config = load_config(path)
    assert (config.seed, config.facial_loss, config.expression_loss) == (3, False, True)
    assert config.video.steps == 7
    assert config.video.lr == TrainConfig().video.lr
    assert config.image == TrainConfig().image


def test_the_resolved_config_is_written_and_reads_back(tmp_path: Path) -> None:
    config = load_config("smoke")
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert load_config(path) == config
    assert json.loads(config.to_json())["image"]["steps"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1}, "unknown training options: learning_rate"),
        ({"image": {"stepz": 1}}, "training option image"),
        ({"phases": ["audio"]}, "phases must be among image, video, light, got audio"),
        ({"base": "huge"}, "base must be one of tiny, smoke, tiny-gpu, paper, tiny-light, got 'huge'"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of no, bf16, fp16, got 'fp8'"),
        ({"latents": "never"}, "latents must be one of cache, encode, got 'never'"),
        ({"landmark_style": "dots"}, "landmark_style must be one of expression, with-contour, without-pupils, plain"),
        ({"gradient_accumulation": 3}, r"image\.batch must be a multiple of gradient_accumulation \(3\), got 4"),
        ({"image": {"batch": 0}}, r"image\.batch must be >= 1, got 0"),
        ({"world": 3}, "world must be one of 1, 2, got 3"),
        ({"latent_channels": 0}, "latent_channels must be >= 4, got 0"),
        ({"vae_picture_share": 1.5}, r"vae_picture_share must be between 0 and 1, got 1\.5"),
        ({"vae_pictures": 0}, "vae_pictures must be >= 1, got 0; or vae_picture_share = 0"),
        ({"gradient_accumulation": 0}, "gradient_accumulation must be >= 1, got 0"),
    ],
)
def test_unknown_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(options)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"config must be one of tiny, smoke, tiny-gpu, paper, tiny-light or a \.toml or \.json file, got large",
    ):
        load_config("large")
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 3", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a training config"):
        load_config(broken)


def test_a_file_names_the_recipe_that_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "paper"\ninit = "model"\n[image]\nbatch = 4\n', encoding="utf-8")
    config = load_config(path, dataset="clips")
    assert (config.name, config.init, config.dataset, config.image.batch) == ("paper", "model", "clips", 4)
    assert config.image.lr == 1e-5
    check_inputs(config)


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    config = load_config("paper")
    assert (config.image.steps, config.image.batch, config.image.frames) == (30_000, 32, 1)
    assert (config.video.steps, config.video.batch, config.video.frames) == (10_000, 32, 16)
    for phase in (config.image, config.video):
        assert {phase.lr_at(step) for step in (0, 1, 9_999)} == {1e-5}
        assert phase.weight_decay == 0
    assert not config.train_image_encoder
    assert config.gradient_checkpointing


def test_what_a_recipe_needs_is_named_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"paper needs init \(a pipeline.*and dataset \(.*pass --init and --dataset"):
        check_inputs(load_config("paper"))
    with pytest.raises(UserError, match=r"paper needs dataset \(a folder made by `fye prepare`\): pass --dataset"):
        check_inputs(load_config("paper", init="model"))
    with pytest.raises(UserError, match="training on a dataset needs init"):
        check_inputs(load_config("tiny", dataset="clips"))
    check_inputs(load_config("tiny-gpu"))


def test_an_older_runs_config_still_reads(tmp_path: Path) -> None:
    """As a run wrote it before there were datasets, recipes to build on and seeds of the data."""
    older = json.loads(TrainConfig().to_json())
    for name in ("needs", "data_seed", "dataset", "motion_init", "latents", "workers", "landmark_style", "vae_batch"):
        del older[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(older), encoding="utf-8")
    assert load_config(path) == TrainConfig()

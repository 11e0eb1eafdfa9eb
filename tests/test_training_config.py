"""Recipes: named ones, files of changes, the rate over a phase."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fye_pipeline.errors import UserError
from fye_pipeline.training.config import PhaseConfig, TrainConfig, build_config, load_config


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
        ({"phases": ["audio"]}, "phases must be among image, video, got audio"),
    ],
)
def test_unknown_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(options)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config must be one of tiny, smoke, tiny-gpu, paper or a \.toml or \.json file, got large"):
        load_config("large")
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 3", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a training config"):
        load_config(broken)

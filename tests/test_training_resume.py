"""A run on a dataset, killed as hard as can be and resumed, has the losses of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from training_parts import assert_same_losses, fresh_accelerate, make_dataset, save_small
from warm_processes import warm_context

from fye_pipeline.training.checkpointing import cut_log
from fye_pipeline.training.config import TrainConfig, build_config, load_config
from fye_pipeline.training.loop import train

__all__ = ["fresh_accelerate"]  # a fixture


def train_until_killed(recipe: Path, output: Path) -> None:
    """In a process of its own: the run ends, as hard as can be, when step 7 is told of."""
    torch.set_num_threads(1)

    def report(text: str) -> None:
        if " 7/10 " in text:
            os.kill(os.getpid(), signal.SIGKILL)

    train(load_config(recipe), output=output, on_progress=report)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small model, a dataset, and what every run here does with them."""
    folder = tmp_path_factory.mktemp("start")
    return {
        "init": str(save_small(folder / "model")),
        "dataset": str(make_dataset(folder / "set")),
        "data": str(folder / "latents"),
        "phases": ["image"],
        "image": {"steps": 10, "batch": 2, "frames": 2, "warmup": 2},
        "video": {"steps": 4, "batch": 2, "frames": 3, "warmup": 1, "none_given": 0.5},
        "checkpoint_every": 5,
        "sample_every": 0,
        "log_every": 1,
    }


def run(start: dict[str, Any], output: Path, *, resume: bool = False, **options: Any) -> dict[int, float]:
    """The losses of a run, by their steps."""
    config = build_config({**start, **options})
    train(config, output=output, resume=resume, on_progress=lambda text: None)
    return losses(output, config)


def losses(output: Path, config: TrainConfig) -> dict[int, float]:
    entries = [json.loads(line) for line in (output / config.phases[-1] / "log.jsonl").read_text("utf-8").splitlines()]
    assert [entry["step"] for entry in entries] == sorted({entry["step"] for entry in entries})
    return {entry["step"]: entry["total"] for entry in entries}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_on_a_dataset_repeats_the_losses(start: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(start), encoding="utf-8")
    process = warm_context().Process(target=train_until_killed, args=(recipe, tmp_path / "cut"))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    pointer = json.loads((tmp_path / "cut" / "image" / "last.json").read_text(encoding="utf-8"))
    assert pointer["step"] == 5
    resumed = run(start, tmp_path / "cut", resume=True)
    whole = run(start, tmp_path / "whole")
    assert sorted(whole) == list(range(1, 11))
    assert_same_losses(resumed, whole)


def test_clips_resume_too_and_parts_and_encoding_keep_the_curve(start: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"phases": ["video"], "checkpoint_every": 2}
    whole = run(start, tmp_path / "whole", **options)
    config = build_config({**start, **options})
    train(config, output=tmp_path / "cut", max_steps=2, on_progress=lambda text: None)
    assert_same_losses(run(start, tmp_path / "cut", resume=True, **options), whole)
    parts = run(start, tmp_path / "parts", gradient_accumulation=2, **options)
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=1e-4)
    encoded = run(start, tmp_path / "encoded", latents="encode", **options)
    assert list(encoded.values()) == pytest.approx(list(whole.values()), rel=1e-2)  # without float16's rounding


def test_going_on_from_weights_takes_other_batches_with_another_data_seed(
    start: dict[str, Any], tmp_path: Path
) -> None:
    start = {**start, "image": {**start["image"], "steps": 1}}
    same = run(start, tmp_path / "same")
    assert_same_losses(run(start, tmp_path / "again"), same)
    assert list(run(start, tmp_path / "other", data_seed=1).values()) != pytest.approx(list(same.values()), rel=1e-2)


def test_bfloat16_trains_both_phases(start: dict[str, Any], tmp_path: Path) -> None:
    start = {**start, **{name: {**start[name], "steps": 2} for name in ("image", "video")}}
    exact = run(start, tmp_path / "exact", phases=["image", "video"])
    AcceleratorState._reset_state(True)
    rounded = run(start, tmp_path / "rounded", phases=["image", "video"], mixed_precision="bf16")
    assert rounded != exact
    assert list(rounded.values()) == pytest.approx(list(exact.values()), rel=0.03)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    cut_log(log, 3)
    assert not log.exists()
    log.write_text('{"step": 2}\n{"step": 3}\n{"step": 4}\n{"ste', encoding="utf-8")
    cut_log(log, 3)
    assert log.read_text(encoding="utf-8") == '{"step": 2}\n{"step": 3}\n'

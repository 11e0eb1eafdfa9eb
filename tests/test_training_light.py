"""The phase `light`: what a guided teacher predicts in two calls its student predicts in one; at a tiny size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from training_parts import assert_same_losses, make_dataset, save_small, small_parts

from fye_pipeline.errors import UserError
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training.batches import Batch
from fye_pipeline.training.clip_batches import ClipBatches
from fye_pipeline.training.config import PhaseConfig, TrainConfig, build_config, check_inputs
from fye_pipeline.training.dataset import Dataset
from fye_pipeline.training.distillation import guided, trailing_times
from fye_pipeline.training.light import ClipConditions, conditions_of, predicting, train_light
from fye_pipeline.training.loop import train
from fye_pipeline.training.losses import with_given_frames
from fye_pipeline.training.steps import PortraitModel


class OneBatch:
    """The same frame at every step."""

    cell, size = 8, 64

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def draw(self, *_: Any, **__: Any) -> Batch:
        return self.batch

    def examples(self, count: int, shown: int) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return small_parts()


@pytest.fixture(scope="module")
def batch(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Batch:
    dataset = Dataset(make_dataset(tmp_path_factory.mktemp("data") / "made", ((4,),)))
    batches = ClipBatches(dataset, None, parts["feature_extractor"], 0, cell=8, max_stride=1)
    return batches.draw(1, 1, 0, clips=True).encoded(parts["vae"])


def at_noise(batch: Batch, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert batch.clean is not None
    noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(0))
    return noise, torch.tensor([trailing_times(steps)[0]])


def test_what_is_made_once_is_what_training_gives_the_model(parts: dict[str, Any], batch: Batch) -> None:
    model = PortraitModel(parts).eval()
    latents, times = at_noise(batch, 2)
    assert batch.clean is not None
    sample = with_given_frames(latents, batch.clean, torch.zeros(1, 1, dtype=torch.bool), batch.reference, batch.bent)
    given = conditions_of(model, batch)
    with torch.no_grad():
        for each, keep in ((given, True), (given.without_reference(), False)):
            wanted = model(sample, times, batch, torch.tensor([keep]))
            torch.testing.assert_close(predicting(parts["unet"])(latents, times, each), wanted)


def test_a_student_takes_guidance_in(batch: Batch, tmp_path: Path) -> None:
    own = small_parts()
    teacher, model = small_parts()["unet"], PortraitModel(own).eval()
    others = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("unet.")}
    config = TrainConfig(
        light=PhaseConfig(steps=8, batch=1, frames=1, lr=4e-3, warmup=1, decay_from=1.0, ema=0.5),
        stages=(2,),
        light_clips=1,
        light_guidance=4.0,
        checkpoint_every=100,
    )
    train_light(config, Accelerator(cpu=True), own, OneBatch(batch), tmp_path, report=lambda text: None)
    given, (latents, times) = conditions_of(model, batch), at_noise(batch, 2)
    with torch.no_grad():
        wanted = guided(predicting(teacher), ClipConditions.without_reference, 4.0)(latents, times, given)
        plain, taught = (predicting(unet)(latents, times, given) for unet in (teacher, own["unet"]))
    assert (taught - wanted).abs().mean() < 0.9 * (plain - wanted).abs().mean()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in others.items())


def test_a_light_model_is_a_folder_that_says_so_and_a_broken_run_goes_on(tmp_path: Path) -> None:
    init, dataset = save_small(tmp_path / "init"), make_dataset(tmp_path / "made", ((4,),))
    index = json.loads((init / "model_index.json").read_text(encoding="utf-8"))
    (init / "model_index.json").write_text(json.dumps(index | {"noise_scale": 0.4}), encoding="utf-8")
    (init / "recipe.json").write_text('{"guidance": 2.0}', encoding="utf-8")
    config = build_config(
        {
            "base": "tiny-light",
            "init": str(init),
            "dataset": str(dataset),
            "data": str(tmp_path / "data"),
            "in_channels": 9,
            "bent_hint": False,
            "stages": [4, 2],
            "light": {"steps": 2, "frames": 1, "warmup": 1},
            "light_clips": 2,
            "clip_stride": 1,
            "checkpoint_every": 1,
            "log_every": 1,
        }
    )
    told: list[str] = []
    whole = train(config, output=tmp_path / "whole", on_progress=told.append)
    train(config, output=tmp_path / "part", max_steps=1, on_progress=told.append)
    assert not any("resumed" in line for line in told)
    (tmp_path / "part" / "light" / "4-steps" / "unet.safetensors").unlink()
    (tmp_path / "part" / "light" / "2-steps" / "last.json").unlink()
    (tmp_path / "part" / "light" / "2-steps" / "unet.safetensors").unlink()
    train(config, output=tmp_path / "part", resume=True, on_progress=told.append)
    assert "light, 4 steps: resumed at 1" in told
    for stage in ("4-steps", "2-steps"):
        assert_same_losses(*(losses(tmp_path / run / "light" / stage) for run in ("whole", "part")))

    assert json.loads((whole / "recipe.json").read_text(encoding="utf-8")) == {
        "name": "tiny-light",
        "guidance": 1.0,
        "steps": 2,
    }
    made, before = (FollowYourEmojiPipeline.from_pretrained(folder) for folder in (whole, init))
    assert made.noise_scale == 0.4
    same, other = made.appearance_net.state_dict(), before.appearance_net.state_dict()
    assert all(torch.equal(value, other[name].half().float()) for name, value in same.items())
    changed, teacher = made.unet.state_dict(), before.unet.state_dict()
    assert any(not torch.equal(value, teacher[name].half().float()) for name, value in changed.items())


def losses(stage: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (stage / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_without_guidance_the_first_stage_is_the_model_itself(
    parts: dict[str, Any], batch: Batch, tmp_path: Path
) -> None:
    told: list[str] = []
    config = TrainConfig(stages=(8,), light_guidance=1.0, light=PhaseConfig(steps=1, batch=1, frames=1, lr=1.0))
    train_light(config, Accelerator(cpu=True), parts, OneBatch(batch), tmp_path, report=told.append)
    assert told == ["light: guidance is 1, so that 8 steps are the model's own"]
    assert not list(tmp_path.iterdir())


def test_stages_that_do_not_halve_and_a_missing_teacher_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="half the steps"):
        build_config({"base": "tiny-light", "stages": [32, 8]})
    with pytest.raises(UserError, match="needs init"):
        check_inputs(replace(build_config({"base": "tiny-light"}), init=None))

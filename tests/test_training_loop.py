"""The loop end to end on a handful of heads: what is trained, how it goes on after a kill, what comes out."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_parts import assert_same_losses, small_parts
from warm_processes import launcher, warm_context

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.models.tiny import build_tiny
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training.checkpointing import Average, export
from fye_pipeline.training.config import TrainConfig, build_config, load_config
from fye_pipeline.training.heads import HeadBatches, render_heads
from fye_pipeline.training.loop import train
from fye_pipeline.training.steps import PortraitModel, Stepper, motion_left_out
from fye_pipeline.world import World


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with random weights in float16, from which runs begin."""
    folder = tmp_path_factory.mktemp("start") / "model"
    export(small_parts(1), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


def recipe(start: Path, data: Path, **options: Any) -> TrainConfig:
    return build_config(
        {
            "init": str(start),
            "data": str(data),
            "heads": 2,
            "phases": ["image"],
            "image": {"steps": 4, "batch": 1, "frames": 1, "warmup": 1},
            "video": {"steps": 2, "batch": 1, "frames": 3, "warmup": 1},
            "checkpoint_every": 2,
            "sample_every": 0,
            "log_every": 1,
            **options,
        }
    )


def losses(run: Path, phase: str = "image") -> dict[int, float]:
    lines = (run / phase / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["step"]: entry["total"] for entry in map(json.loads, lines)}


def silent(message: str) -> None:
    """No progress in tests."""


def test_a_resumed_run_repeats_the_losses(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data)
    options: dict[str, Any] = {"on_progress": silent}
    train(config, output=tmp_path / "whole", **options)
    train(config, output=tmp_path / "cut", max_steps=2, **options)
    with pytest.raises(UserError, match="already holds a training run"):
        train(config, output=tmp_path / "cut", **options)
    model = train(config, output=tmp_path / "cut", resume=True, **options)
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert sorted(whole) == [1, 2, 3, 4]
    assert_same_losses(cut, whole)
    pipe = FollowYourEmojiPipeline.from_pretrained(model)
    before = FollowYourEmojiPipeline.from_pretrained(start)
    assert not torch.equal(pipe.unet.conv_in.weight, before.unet.conv_in.weight)
    assert torch.equal(pipe.vae.decoder.conv_in.weight, before.vae.decoder.conv_in.weight)


def test_clips_train_the_motion_modules_and_the_input_only(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data, phases=["video"], gradient_checkpointing=True)
    model = train(config, output=tmp_path, on_progress=silent)
    after = FollowYourEmojiPipeline.from_pretrained(model)
    before = FollowYourEmojiPipeline.from_pretrained(start)
    changed = {
        name
        for name, value in after.unet.state_dict().items()
        if not torch.equal(value, before.unet.state_dict()[name])
    }
    assert changed
    assert all("motion_modules" in name or name.startswith("conv_in") for name in changed)
    old = before.appearance_net.state_dict()
    assert all(torch.equal(value, old[name]) for name, value in after.appearance_net.state_dict().items())


def test_pictures_train_everything_but_the_motion_modules() -> None:
    model = PortraitModel(build_tiny(0, in_channels=9, reference_hint=True))
    model.choose_trainable("image")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("motion_modules" in name for name in trainable)
    for part in ("image_encoder.", "appearance_net.conv_in", "landmark_encoder.conv_out", "unet.clip_fc"):
        assert any(name.startswith(part) for name in trainable)


def test_the_vision_model_and_the_input_can_be_left_as_they_are() -> None:
    model = PortraitModel(build_tiny(0, in_channels=9))
    model.choose_trainable("image", image_encoder=False)
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"appearance_net", "unet", "landmark_encoder"}
    model.choose_trainable("video", conv_in=False)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("motion_modules" in name for name in names)


@pytest.mark.parametrize(
    ("phase", "option", "frozen"),
    [("image", "train_image_encoder", "image_encoder."), ("video", "train_conv_in", "unet.conv_in.")],
)
def test_the_loop_hands_on_what_is_not_to_be_trained(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, option: str, frozen: str
) -> None:
    trained: list[str] = []

    def note(*arguments: Any, **options: Any) -> Stepper:
        trained.extend(name for name, parameter in arguments[3].named_parameters() if parameter.requires_grad)
        return Stepper(*arguments, **options)

    monkeypatch.setattr("fye_pipeline.training.loop.Stepper", note)
    config = recipe(start, data, phases=[phase], **{option: False})
    train(config, output=tmp_path / "run", max_steps=0, on_progress=silent)
    assert trained
    assert not [name for name in trained if name.startswith(frozen)]


@pytest.mark.usefixtures("warm_workers")
def test_several_processes_render_the_same_heads(tmp_path: Path) -> None:
    world = World(CanonicalFace.load(), size=64)
    alone = render_heads(world, tmp_path / "alone", 2)
    together = render_heads(world, tmp_path / "together", 2, jobs=2)
    # in another process a sum may round otherwise, and a pixel at an edge fall to its other side
    assert np.abs(alone.frames.astype(float) - together.frames).mean() < 0.01
    np.testing.assert_allclose(alone.landmarks, together.landmarks, atol=1e-5)
    assert together.frames.any(axis=(1, 2, 3, 4)).all()


def test_motion_modules_are_left_out_and_put_back() -> None:
    model = PortraitModel(build_tiny(0, in_channels=9)).eval()
    unet = model.unet
    for name, parameter in unet.named_parameters():
        if "motion_modules" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    sample, tokens = torch.randn(1, 9, 2, 16, 16), torch.randn(1, 17, unet.config["image_dim"])
    with torch.no_grad():
        moving = unet(sample, 5, tokens).sample
        with motion_left_out(model):
            both = unet(sample, 5, tokens).sample
            alone = unet(sample[:, :, 1:], 5, tokens).sample
        assert torch.allclose(both[:, :, 1:], alone, atol=1e-5)
        assert not torch.allclose(both, moving, atol=1e-3)
        assert torch.equal(unet(sample, 5, tokens).sample, moving)


def test_the_average_follows_and_goes_on_from_checkpoints_of_both_kinds() -> None:
    layer = torch.nn.Linear(3, 2)
    average = Average(layer.parameters(), 0.5)
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.step(layer.parameters())  # early steps follow faster: decay (1 + 1) / (10 + 1)
    average.store(layer.parameters())
    average.copy_to(layer.parameters())
    assert torch.allclose(layer.weight, first + 9 / 11)
    averages = {name: value.detach().clone() for name, value in layer.named_parameters()}
    average.restore(layer.parameters())
    assert torch.allclose(layer.weight, first + 1)
    for saved in (average.state_dict(), {"steps": 1, "shadow": averages}):
        again = Average(torch.nn.Linear(3, 2).parameters(), 0.25)
        again.load_state_dict(saved)
        assert (again.optimization_step, again.decay) == (1, 0.25)
        again.copy_to(layer.parameters())
        assert torch.allclose(layer.weight, first + 9 / 11)


def train_and_note(environment: dict[str, str], note: Path, recipe: Path, output: Path) -> None:
    """One of two processes, as a launcher starts them; it notes what it draws, says, and comes to."""
    os.environ |= environment
    torch.set_num_threads(1)
    note.mkdir()
    draw, copy_to = HeadBatches.draw, Average.copy_to
    classes: Any = (HeadBatches, Average)

    def append(name: str, text: str) -> None:
        with (note / name).open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def spy_draw(self: HeadBatches, *arguments: Any, **options: Any) -> Any:
        drawn = draw(self, *arguments, **options)
        assert drawn.clean is not None
        append("drawn", repr(drawn.clean.flatten().tolist()))
        return drawn

    def spy_copy(self: Average, parameters: list[torch.nn.Parameter]) -> None:
        torch.save(list(parameters), note / "weights")
        copy_to(self, parameters)

    classes[0].draw, classes[1].copy_to = spy_draw, spy_copy
    said = partial(append, "said")
    train(load_config(recipe), output=output, on_progress=said)


def test_two_processes_train_together(start: Path, data: Path, tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.json"
    config = recipe(start, data, image={"steps": 2, "batch": 1, "frames": 1, "warmup": 1})
    recipe_file.write_text(config.to_json(), encoding="utf-8")
    given = (recipe_file, tmp_path / "run")
    notes = [tmp_path / "first", tmp_path / "second"]
    with launcher(2) as ranks:
        processes = [
            warm_context().Process(target=train_and_note, args=(rank, note, *given))
            for rank, note in zip(ranks, notes, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    said = [(note / "said").read_text(encoding="utf-8") if (note / "said").exists() else "" for note in notes]
    assert [text.count("image 2/2") for text in said] == [1, 0]  # only the main process speaks
    first, second = ((note / "drawn").read_text(encoding="utf-8").splitlines() for note in notes)
    assert len(first) == len(second) == 2
    assert first != second  # each has a batch of its own ...
    ours, theirs = (torch.load(note / "weights", weights_only=True) for note in notes)
    # ... and both take the step of all of them; steps of their own would part them by twice the rate, 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

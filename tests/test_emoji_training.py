"""The stages: what each trains, what it draws, that it goes on after a kill, and a whole run in little."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emoji_parts import save_model, small_model
from safetensors.torch import load_file

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji import training
from fye_pipeline.emoji.model import EmojiModel, EmojiSettings, grey_states
from fye_pipeline.emoji.pairs import IterateConfig
from fye_pipeline.emoji.people import Meta, People, render_people
from fye_pipeline.emoji.training import (
    Batches,
    Examples,
    StageConfig,
    Trained,
    choose_trained,
    face_weights,
    own_pairs,
    train_stage,
    true_pairs,
)
from fye_pipeline.emoji.workspace import STAGES, Workspace
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World

CONFIG = StageConfig(steps=4, lr=1e-3, batch=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    world = World(CanonicalFace.load(), size=128)
    return render_people(world, tmp_path_factory.mktemp("people"), Meta(0, "train", 400_000, 4))


@pytest.fixture(scope="module")
def model() -> EmojiModel:
    return small_model()


@pytest.fixture(scope="module")
def examples(model: EmojiModel, people: People, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return Examples.make(people, tmp_path_factory.mktemp("latents"), model.pipe, model.identity_net)


def test_a_batch_is_of_its_step_alone(examples: Examples, people: People, model: EmojiModel) -> None:
    batches = Batches(examples, own_pairs(people), model.encoder, CONFIG)
    first, again, other = batches[3], batches[3], batches[4]
    assert np.array_equal(first.rows, again.rows)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.embeds[1], again.embeds[1])
    assert not torch.equal(first.noise, other.noise)
    assert (first.rows[:, 1] >= 1).all(), "the portrait has no expression picture of its own"


def test_what_is_dropped_is_nobody_no_face_and_no_words(examples: Examples, people: People, model: EmojiModel) -> None:
    grey = grey_states(model.encoder)[0]

    def drawn(**drops: float) -> Any:
        config = replace(CONFIG, drop_text=0.0, drop_images=0.0, drop_all=0.0, batch=8)
        return Batches(examples, own_pairs(people), model.encoder, replace(config, **drops))[0]

    whole = drawn()
    assert (whole.embeds[0].norm(dim=-1) > 0.99).all()
    assert not any(torch.equal(states, grey) for states in whole.embeds[1])
    blank = drawn(drop_all=1.0)
    assert (blank.embeds[0] == 0).all()
    assert all(torch.equal(states, grey) for states in blank.embeds[1])
    assert all(torch.equal(tokens, examples.blank) for tokens in blank.tokens)
    images = drawn(drop_images=1.0)
    assert (images.embeds[0] == 0).all()
    assert not any(torch.equal(tokens, examples.blank) for tokens in images.tokens)
    expression = drawn(drop_expression=1.0)
    assert all(torch.equal(states, grey) for states in expression.embeds[1])
    assert (expression.embeds[0].norm(dim=-1) > 0.99).all()


def test_true_pairs_show_another_person(people: People) -> None:
    own, true = own_pairs(people), true_pairs(people)
    assert own.rows.tolist() == true.rows.tolist() == [[p, k] for p in range(4) for k in range(1, 6)]
    assert np.array_equal(own.crops[7], people.crops[1, 3])
    assert np.array_equal(true.crops[7], people.swapped[1, 2])


def test_the_first_stage_trains_the_base_and_the_others_their_branch(model: EmojiModel) -> None:
    trained = Trained(model.pipe)
    everything = sum(w.numel() for w in trained.parameters())
    assert sum(w.numel() for w in choose_trained(trained, "identity")) == everything
    for stage in ("base", "refined", "oracle", "align"):
        chosen = choose_trained(trained, stage)
        assert {id(w) for w in chosen} == {id(w) for w in adapter.branch_parameters(model.pipe.unet, 1)}
        assert [w.requires_grad for w in trained.parameters()].count(True) == len(chosen)
    trained.requires_grad_(False)


def test_eyes_and_mouth_weigh_most(people: People) -> None:
    landmarks = np.asarray(people.landmarks[0])
    weights = face_weights(landmarks, 16).astype(np.float32)
    assert weights.shape == (6, 16, 16)
    assert np.allclose(weights.mean((1, 2)), 1, atol=1e-2)
    for weight, marks in zip(weights, landmarks, strict=True):
        x, y = (marks[468, :2] * 16).astype(int)
        assert weight[y, x] > 1.5 * weight[0, 0]
        assert weight[y, x] == pytest.approx(weight.max(), rel=0.4)


def test_killed_and_resumed_it_is_the_same(
    examples: Examples, people: People, model: EmojiModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh() -> tuple[Any, Batches]:
        return copy.deepcopy(model.pipe), Batches(examples, own_pairs(people), model.encoder, CONFIG)

    whole, batches = fresh()
    train_stage("base", whole, batches, tmp_path / "whole", CONFIG, report=lambda message: None)
    stopped, batches = fresh()
    save, saved = training.save_checkpoint, []

    def stop(*arguments: Any, **more: Any) -> None:
        save(*arguments, **more)
        saved.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train_stage("base", stopped, batches, tmp_path / "stopped", CONFIG, report=lambda message: None)
    monkeypatch.setattr(training, "save_checkpoint", save)
    resumed, batches = fresh()
    told: list[str] = []
    train_stage("base", resumed, batches, tmp_path / "stopped", CONFIG, report=told.append)
    assert told[0] == "base: resumed at step 2"
    for one, two in zip(*(adapter.branch_parameters(p.unet, 1) for p in (whole, resumed)), strict=True):
        assert torch.allclose(one, two, atol=1e-7)
    assert any(
        not torch.equal(one, two)
        for one, two in zip(*(adapter.branch_parameters(p.unet, 1) for p in (whole, model.pipe)), strict=True)
    )
    frozen = [p.unet.conv_in.weight for p in (whole, model.pipe)]
    assert torch.equal(*frozen)


def test_a_stage_before_its_time_says_which_comes_first(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, share=0.001, report=lambda message: None)
    for stage, first in (("identity", "networks"), ("base", "identity"), ("align", "identity")):
        with pytest.raises(UserError, match=f"run `fye emoji train --stage {first}` first"):
            workspace.train(stage)  # pyright: ignore[reportArgumentType]


def test_training_goes_on_from_a_finished_model(model: EmojiModel, tmp_path: Path) -> None:
    """The networks are taken over, the weights are where they were, and a run that has begun is left alone."""
    finished = save_model(copy.deepcopy(model), tmp_path / "finished")
    workspace = Workspace(tmp_path / "run", share=0.0001, report=lambda message: None)
    workspace.begin_from(finished)
    workspace.train("identity")
    before, after = (
        load_file(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (finished, tmp_path / "run" / "model")
    )
    moved = max(float((after[name].float() - before[name].float()).abs().max()) for name in before)
    assert 0 < moved < 0.02, "a run of two steps began elsewhere"
    with pytest.raises(UserError, match="holds a run already"):
        workspace.begin_from(finished)
    with pytest.raises(UserError, match="holds no EmojiDiff model"):
        Workspace(tmp_path / "other").begin_from(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_run_in_little(tmp_path: Path) -> None:
    """Every stage in its order, on few people and steps; what comes out loads and makes a table's row."""
    workspace = Workspace(tmp_path / "run", share=0.002, report=lambda message: None)
    for stage in STAGES[:3]:
        workspace.train(stage)
    verdicts = workspace.iterate(IterateConfig(count=8000, steps=2), lambda done, total: None)
    assert len(verdicts) == 16
    for stage in STAGES[3:]:
        workspace.train(stage)
    workspace.export(tmp_path / "model", tmp_path / "table", "aligned")
    assert EmojiSettings.read(tmp_path / "model").stage == "aligned"
    EmojiModel.load(tmp_path / "model")
    names = {path.stem for path in (tmp_path / "table").iterdir()}
    assert names == {"base", "refined", "refined_no_swap", "refined_no_filter", "oracle", "identity_metric",
                     "landmarks_metric"}  # fmt: skip
    logs = list((tmp_path / "run" / "stages").glob("*/log.jsonl"))
    assert len(logs) == 7
    assert all(np.isfinite(json.loads(line)["loss"]) for log in logs for line in log.read_text().splitlines())

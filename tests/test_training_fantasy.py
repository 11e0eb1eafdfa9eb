"""The training of FantasyPortrait's adapter: its sizes without memory, and its steps on a tiny Wan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fye_command import Fye, make_video
from wan_parts import pipeline, save_wan, trained, transformer

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.multi_portrait.expression import BlendshapeExtractor
from fye_pipeline.multi_portrait.expression_encoder import ExpressionEncoder
from fye_pipeline.training import fantasy
from fye_pipeline.training.fantasy import FantasyConfig, FlowMatching, construct, run_steps, train_fantasy
from fye_pipeline.training.fantasy_data import PeopleClip, RenderedPairs
from fye_pipeline.world import World

SMALL = FantasyConfig(steps=4, frames=5, size=64, extractor="blendshapes", checkpoint_every=2)
PAIRS = RenderedPairs(BlendshapeExtractor(), 64, 8)


def matching(config: FantasyConfig = SMALL) -> FlowMatching:
    host = transformer()
    return FlowMatching(pipeline(host), trained(host, BlendshapeExtractor.dims), config)


def loss_of(made: FlowMatching, clip: PeopleClip, seed: int = 0) -> float:
    with made.loss(clip, torch.Generator().manual_seed(seed)) as loss:
        return loss.item()


def test_the_whole_model_is_constructed_without_memory() -> None:
    """The branches' size is that of the published adapter: 40 blocks, twice 2048 x 5120."""
    sizes = construct()
    assert sizes.branches == 40 * 2 * 2048 * 5120
    assert 16.0e9 < sizes.transformer < 16.8e9
    assert 164e6 < sizes.encoder < 165e6


def test_a_step_trains_the_adapter_and_nothing_else() -> None:
    made = matching(replace(SMALL, dropout=0.0, lr=1e-2))
    frozen = {name: value.clone() for name, value in made.pipe.transformer.state_dict().items()}
    (loss,) = run_steps(made, PAIRS, 0, 1)
    assert np.isfinite(loss)
    changed = {
        name for name, value in made.pipe.transformer.state_dict().items() if not torch.equal(value, frozen[name])
    }
    assert changed
    assert all(".processor." in name for name in changed)
    clip = PAIRS.draw(np.random.default_rng(1), 5)
    assert loss_of(made, clip, seed=1) != loss_of(made, clip, seed=2)


def test_where_expressions_are_left_out_they_do_not_count() -> None:
    clip = PAIRS.draw(np.random.default_rng(0), 5)
    other = replace(clip, features={name: value + 1 for name, value in clip.features.items()})

    def loss(each: Any, dropout: float) -> float:
        return loss_of(matching(replace(SMALL, dropout=dropout)), each)

    assert loss(clip, 1.0) == pytest.approx(loss(other, 1.0), rel=1e-6)
    assert abs(loss(clip, 0.0) - loss(other, 0.0)) > 1e-6
    assert abs(loss(clip, 0.0) - loss(clip, 1.0)) > 1e-6


def test_masks_are_of_the_heads_side_by_side() -> None:
    clip = PAIRS.draw(np.random.default_rng(0), 5)
    assert clip.frames.shape == (5, 64, 128, 3)
    assert clip.masks.shape == (1, 2, 5, 8, 16)
    left, right = clip.masks[0, 0], clip.masks[0, 1]
    assert left[..., 8:].max() == 0
    assert right[..., :8].max() == 0
    assert min(left.max(), right.max()) > 0.9


def test_the_recipe_is_rehearsed_without_a_model(fye: Fye) -> None:
    code, out, err = fye("train", "--config", "fantasy-14b")
    assert code == 0, err
    assert "branches 839 M" in out
    assert "2 steps rehearsed" in out
    assert "needs both" in fye.refused("train", "--config", "fantasy-14b", "--init", "nowhere")


def test_chosen_videos_are_trained_on_and_a_broken_run_goes_on_as_if_unbroken(
    tmp_path: Path, face_landmarker_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(CanonicalFace.load(), size=128)
    clips = [world.clip("held", index, frames=8).frames for index in (0, 1)]
    video = make_video(tmp_path / "a.mp4", [np.concatenate(pair, axis=1) for pair in zip(*clips, strict=True)])
    (tmp_path / "people.jsonl").write_text(json.dumps({"video": str(video)}) + "\n", encoding="utf-8")
    small = {"width": 16, "queries": (4, 2), "resampler_dim": 8, "resampler_heads": 2, "resampler_head_dim": 4}
    monkeypatch.setattr(fantasy, "ExpressionEncoder", _Small(small))
    init = save_wan(tmp_path / "wan")
    common: dict[str, Any] = {"face_landmarker": face_landmarker_path, "device": "cpu"}
    folder = train_fantasy(init, tmp_path, tmp_path / "whole", SMALL, **common)
    train_fantasy(init, tmp_path, tmp_path / "part", SMALL, max_steps=2, **common)
    train_fantasy(init, tmp_path, tmp_path / "part", SMALL, resume=True, **common)
    one, two = (fantasy_weights(each) for each in (folder, tmp_path / "part" / "adapter"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    assert len(list((tmp_path / "whole" / "landmarks").glob("*_expression.npz"))) == 2
    lines = (tmp_path / "part" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def fantasy_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "expression_adapter.safetensors")


class _Small:
    """Makes encoders of small sizes."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        self._sizes = sizes

    def __call__(self, **widths: Any) -> ExpressionEncoder:
        return ExpressionEncoder(**widths, **self._sizes)

    def from_pretrained(self, folder: Path) -> ExpressionEncoder:
        return ExpressionEncoder.from_pretrained(folder)

"""The extractor `rendered`: its interface, its weights, and what its training asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.rendered_features import DIMS, FeatureNet, RenderedExtractor
from fye_pipeline.training.expression_features import (
    FeatureConfig,
    cross_correlation,
    info_nce,
    mixed_motion,
    probe,
    train_features,
    truth_of,
)
from fye_pipeline.world import World


def test_the_shipped_extractor_gives_four_vectors_a_frame() -> None:
    clip = World(CanonicalFace.load()).clip("held", 3, frames=3)
    made = RenderedExtractor()(clip.frames, clip.sequence)
    assert made.dims == DIMS
    assert len(made) == 3
    assert made.extractor == "rendered"
    assert (RenderedExtractor.dims, len(made.boxes)) == (DIMS, 3)


def test_the_shipped_vectors_tell_an_opened_mouth_from_a_shut_one_on_other_people() -> None:
    world, extractor = World(CanonicalFace.load()), RenderedExtractor()
    lips = {True: [], False: []}
    for person in range(6):
        for opened in (True, False):
            motion = mixed_motion(*((5, person, k) for k in range(4)))
            motion.expression[:, 10:19] = 0
            motion.expression[:, 10] = opened
            clip = world.render(world.head("held", person), motion, fps=None)
            lips[opened].append(extractor(clip.frames, clip.sequence).features["lip"][0])
    wide, shut = np.stack(lips[True]), np.stack(lips[False])
    between = np.linalg.norm(wide.mean(0) - shut.mean(0))
    assert between > 2 * max(wide.std(0).max(), shut.std(0).max())


def test_mixed_motions_share_one_factor_only() -> None:
    world = World(CanonicalFace.load())
    first = mixed_motion((1,), (2,), (3,), (4,))
    second = mixed_motion((1,), (5,), (6,), (7,))
    truths = [
        truth_of(world.render(world.head("train", k), motion, fps=None), motion)
        for k, motion in enumerate((first, second))
    ]
    np.testing.assert_allclose(truths[0]["head"], truths[1]["head"], atol=1.2)  # places count in the scale of each head
    for name in ("eye", "lip"):
        assert not np.allclose(truths[0][name], truths[1][name])


def test_pairs_that_are_alike_cost_least_and_what_is_shared_is_seen() -> None:
    torch.manual_seed(0)
    values = torch.randn(32, 8)
    assert info_nce(values, values) < 1 < info_nce(values, values.roll(1, 0))
    assert cross_correlation(values, values) > 0.05  # an eighth of the columns are the same
    assert abs(float(cross_correlation(torch.randn(4000, 4), torch.randn(4000, 3)))) < 1e-3


def test_a_probe_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5))
    fit = np.arange(400) % 2 == 0
    assert probe(features, features @ rng.normal(size=(5, 2)), fit) > 0.99
    assert probe(features, rng.normal(size=(400, 2)), fit) < 0.1


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    told: list[str] = []
    whole = train_features(FeatureConfig(groups=3, steps=4, batch=2, checkpoint_every=2), tmp_path / "a", told.append)
    cut = FeatureConfig(groups=3, steps=4, batch=2, checkpoint_every=2, stop_after=2)
    train_features(cut, tmp_path / "b", told.append)
    again = FeatureConfig(groups=3, steps=4, batch=2, checkpoint_every=2)
    resumed = train_features(again, tmp_path / "b", told.append, resume=True)
    assert any("resumed at step 2" in line for line in told)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_absent_weights_end_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expression features"):
        FeatureNet.load(tmp_path / "none.safetensors")


def test_the_factors_are_those_of_the_interface() -> None:
    assert tuple(DIMS) == FACTORS

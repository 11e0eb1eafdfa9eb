"""Extractors of expressions: PD-FGC's network read strictly from a user's file, and features as files of `fye`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fye_command import Fye, make_video
from landmark_faces import face, sequence

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.multi_portrait import pdfgc
from fye_pipeline.multi_portrait.expression import BlendshapeExtractor, ExpressionSequence
from fye_pipeline.multi_portrait.extractors import extractor_for, extractor_named
from fye_pipeline.multi_portrait.pdfgc import DIMS, MotionNet, PdFgcExtractor, features_of, load_motion_net
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor
from fye_pipeline.world import World

SMALL: dict[str, Any] = {"width": 16, "points": 6, "hidden": 32, "side": 64}
SMALL_DIMS = {"head": 6, "eye": 6, "emotion": 8, "lip": 32}


def small(seed: int = 0) -> MotionNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionNet(SMALL_DIMS, **SMALL).eval()


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published network at small sizes."""
    monkeypatch.setattr(pdfgc, "MotionNet", small)
    monkeypatch.setattr(PdFgcExtractor, "dims", SMALL_DIMS)


def faces(count: int = 5, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def test_the_network_has_the_published_sizes() -> None:
    with torch.device("meta"):
        network = MotionNet()
    assert sum(value.numel() for value in network.parameters()) == 9_035_727
    keys = set(network.state_dict())
    some = {"model.m0.b1_4.conv3.weight", "model.m0.b2_plus_1.bn1.weight", "model.conv2.downsample.2.weight"}
    assert some | {"to_headpose.2.running_var", "mouth_embed.1.weight", "model.bn_end0.bias"} <= keys
    made = features_of(small(), faces())
    assert {name: array.shape for name, array in made.items()} == {name: (5, dim) for name, dim in SMALL_DIMS.items()}


def test_faces_are_seen_one_by_one() -> None:
    """More than are seen at once, and in another order: the features go with the faces."""
    network, many = small(), faces(20)
    made, turned = features_of(network, many), features_of(network, many[::-1])
    for name, array in made.items():
        np.testing.assert_allclose(turned[name][::-1], array, atol=1e-5)
        assert np.abs(array[0] - array[1]).max() > 1e-4


def test_weights_are_read_strictly_and_what_serves_training_is_left_out(tmp_path: Path) -> None:
    state = small().state_dict()
    extra = {"mouth_fc.weight": torch.zeros(1), "classifier.0.weight": torch.zeros(1)}
    torch.save({f"module.{name}": value for name, value in (state | extra).items()}, tmp_path / "good.pth")
    read = load_motion_net(tmp_path / "good.pth", small(1))
    assert all(torch.equal(value, state[name]) for name, value in read.state_dict().items())
    first = next(iter(state))
    wrong = {
        "missing": {name: value for name, value in state.items() if name != first},
        "unexpected": state | {"surplus.weight": torch.zeros(1)},
        "shapes": state | {first: torch.zeros(3)},
    }
    for what, weights in wrong.items():
        torch.save(weights, tmp_path / f"{what}.pth")
        with pytest.raises(UserError, match=what):
            load_motion_net(tmp_path / f"{what}.pth", small())


def test_nothing_in_a_weight_file_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        PdFgcExtractor(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_it_needs_a_picture_for_every_frame(tmp_path: Path, shrunk: None) -> None:
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    extractor = extractor_named("pdfgc", tmp_path / "weights.pth")
    driver = replace(sequence([face() for _ in range(3)]), width=64, height=64)
    made = extractor(iter(faces(3)), driver)
    assert (made.extractor, len(made), made.dims) == ("pdfgc", 3, SMALL_DIMS)
    with pytest.raises(UserError, match="looks at pixels"):
        extractor(iter(()), driver)


def test_the_extractor_is_told_by_the_widths_of_the_encoder() -> None:
    def config(dims: Any) -> dict[str, int]:
        return {f"{name}_dim": dim for name, dim in dims.items()}

    assert extractor_for(config(BlendshapeExtractor.dims)).name == "blendshapes"
    assert extractor_for(config(RenderedExtractor.dims)).name == "rendered"
    with pytest.raises(UserError, match="looks at pixels"):
        extractor_named("rendered")(iter(()), sequence([face()]))
    with pytest.raises(UserError, match="--expression-weights"):
        extractor_for(config(DIMS))
    with pytest.raises(UserError, match="lip 5"):
        extractor_for(config({**DIMS, "lip": 5}))
    with pytest.raises(UserError, match="no extractor 'x'"):
        extractor_named("x")


def test_features_are_written_beside_the_landmarks(fye: Fye, tmp_path: Path, face_landmarker_path: Path) -> None:
    world = World(CanonicalFace.load(), size=128)
    clips = [world.clip("held", index, frames=3).frames for index in (0, 1)]
    video = make_video(tmp_path / "a.mp4", [np.concatenate(pair, axis=1) for pair in zip(*clips, strict=True)])
    output = tmp_path / "a.npz"
    command = ("landmarks", video, "--output", output, "--expression", "blendshapes", "--quiet")
    assert fye(*command)[0] == 0
    made = ExpressionSequence.load(tmp_path / "a_expression.npz")
    assert (len(made), made.extractor, made.fps) == (3, "blendshapes", 25)
    code, out, err = fye(*command[:-1], "--all-faces", "--json")
    assert code == 0, err
    assert len(json.loads(out)["tracks"]) == 2
    both = [ExpressionSequence.load(tmp_path / f"a_{number}_expression.npz") for number in (0, 1)]
    assert both[0].boxes[0, 0] < 0.5 < both[1].boxes[0, 0]
    assert "no extractor 'x'" in fye.refused("landmarks", video, "-o", tmp_path / "b.npz", "--expression", "x")

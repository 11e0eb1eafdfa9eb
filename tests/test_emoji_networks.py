"""The small networks: saved and loaded alike, places brought back to the picture, and what their losses do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fye_pipeline.emoji.expression_crop import EXPRESSION_TEMPLATE, FIVE
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet, as_batch, encoder_states, tiny_encoder, upright
from fye_pipeline.emoji.network_training import arcface
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World


@pytest.mark.parametrize("kind", [IdentityNet, LandmarkNet])
def test_a_network_saves_and_loads_alike(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = kind(widths=(8, 12, 16, 20)).eval()
    network.save(tmp_path / "network.safetensors")
    loaded = kind.load(tmp_path / "network.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].float(), value.half().float()), name
    assert loaded.settings() == network.settings()
    assert not any(weight.requires_grad for weight in loaded.parameters())
    pictures = torch.rand(2, 3, 128, 128)
    first, second = (torch.as_tensor(n(pictures)[0]) for n in (network, loaded))
    assert (first - second).abs().max() < 0.05  # the weights were rounded to float16


def test_a_missing_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        IdentityNet.load(tmp_path / "gone.safetensors")


def test_identities_are_unit_vectors() -> None:
    vectors = IdentityNet(widths=(8, 12, 16, 20)).eval()(torch.rand(3, 3, 112, 112))
    assert vectors.shape == (3, 256)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3))


def test_upright_crops_hold_the_five_points_where_the_template_has_them() -> None:
    clip = World(CanonicalFace.load(), size=128).clip("held", 3, frames=4, fps=2)
    landmarks = torch.from_numpy(clip.sequence.landmarks[:, :, :2]).float()
    five = landmarks[:, list(FIVE)]
    crops, places = upright(as_batch(clip.frames), five, EXPRESSION_TEMPLATE, 64)
    inside = (landmarks - places[:, None, :, 2]) @ places[:, :, :2].inverse().transpose(1, 2)
    assert (inside[:, list(FIVE)] - torch.from_numpy(EXPRESSION_TEMPLATE).float()).abs().max() < 0.12
    # The dark pupils of the picture are dark in the crop, where the matrices say that they lie.
    for crop, points, picture, marks in zip(crops, inside, clip.frames, landmarks, strict=True):
        for pupil in (468, 473):
            x, y = (points[pupil] * 64).long().clamp(0, 63)
            u, v = (marks[pupil] * 128).long()
            there = picture[max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2].mean() / 255
            assert abs(float(crop[:, y - 1 : y + 2, x - 1 : x + 2].mean()) - there) < 0.25


def test_landmarks_come_back_to_the_picture() -> None:
    """A network that sees the mean face in every crop must put it where the five points are, at any place and scale."""
    network = LandmarkNet(widths=(8, 12, 16, 20)).eval()
    mean = torch.rand(478, 2)
    five = torch.tensor(EXPRESSION_TEMPLATE * 0.5 + 0.3).float()
    with torch.no_grad():
        for layer in (network.points, network.five):
            layer.weight.zero_()
        network.points.bias.copy_(mean.flatten())
        network.five.bias.copy_(five.flatten())
    points, shapes = network(torch.rand(2, 3, 96, 96))
    assert (points - (mean * 0.5 + 0.3)).abs().max() < 1e-5
    assert shapes.shape == (2, 52)


def test_landmarks_have_gradients() -> None:
    network = LandmarkNet(widths=(8, 12, 16, 20)).eval()
    pictures = torch.rand(1, 3, 64, 64, requires_grad=True)
    network(pictures)[0].sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().sum() > 0


def test_the_encoder_gives_the_states_before_its_last_layer() -> None:
    encoder = tiny_encoder().eval()
    crops = torch.rand(2, 3, 96, 96)
    states = encoder_states(encoder, crops)
    assert states.shape == (2, 65, 128)
    with torch.no_grad():
        for weight in encoder.encoder.layers[-1].parameters():
            weight.zero_()
    assert torch.equal(encoder_states(encoder, crops), states)


def test_arcface_asks_for_more_than_the_nearest_centre() -> None:
    cosines = torch.tensor([[0.8, 0.1], [0.2, 0.9]])
    people = torch.tensor([0, 1])
    assert arcface(cosines, people, 0.5) > arcface(cosines, people, 0.0)
    assert arcface(cosines.flip(1), people, 0.0) > arcface(cosines, people, 0.0)


def test_pictures_become_batches() -> None:
    picture = np.zeros((1, 4, 6, 3), np.uint8)
    picture[0, 1, 2] = (255, 0, 51)
    batch = as_batch(picture)
    assert batch.shape == (1, 3, 4, 6)
    assert torch.allclose(batch[0, :, 1, 2], torch.tensor([1.0, 0.0, 0.2]))

"""The autoencoder's training: what it is shown, that it goes on where it broke off, and what recipes say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from training_parts import save_small, small_parts

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.training import start
from fye_pipeline.training.batches import to_tensor
from fye_pipeline.training.config import TrainConfig, build_config
from fye_pipeline.training.heads import HeadData, render_heads
from fye_pipeline.training.vae import VaeConfig, draw_batch, natural_pictures, normalise_latents, train_vae
from fye_pipeline.world import World

SIZE = 32


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> HeadData:
    world = World(CanonicalFace.load(), size=SIZE, version=2)
    return render_heads(world, tmp_path_factory.mktemp("heads"), 2)


def small_vae() -> Any:
    return small_parts()["vae"].eval()


@torch.no_grad()
def round_trip(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(pictures).latent_dist.mean).sample


def test_natural_pictures_are_a_function_of_the_seed() -> None:
    first, again, other = (natural_pictures(2, SIZE, seed) for seed in (3, 3, 4))
    assert first.shape == (2, SIZE, SIZE, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("share", "expected"), [(0.0, True), (1.0, False)])
def test_only_heads_are_to_keep_their_latents(heads: HeadData, share: float, expected: bool) -> None:
    natural = natural_pictures(2, SIZE)
    config = VaeConfig(batch=4, picture_share=share)
    pictures, weights, are_heads = draw_batch(heads, config, np.random.default_rng(0), 16, natural)
    assert pictures.shape == (4, 3, 16, 16)
    assert weights.shape == (4, 1, 16, 16)
    assert are_heads.tolist() == [expected] * 4


def test_training_goes_on_where_it_broke_off(heads: HeadData, tmp_path: Path) -> None:
    mix: dict[str, Any] = {"batch": 2, "crop": 16, "picture_share": 0.5, "ssim_weight": 0.5, "keep_weight": 0.1}
    natural = natural_pictures(2, SIZE)

    def train(seconds: float) -> tuple[Any, dict[str, Any]]:
        settings = VaeConfig(seconds=seconds, **mix)
        vae = train_vae(small_vae(), heads, tmp_path, settings, resume=True, natural=natural)
        return vae, torch.load(tmp_path / "last.pt", weights_only=True)

    _, first = train(0.2)
    assert first["step"] > 0
    weights = first["average"]["decoder.conv_out.weight"]
    assert (weights - small_vae().decoder.conv_out.weight).abs().max() > 1e-6
    written = (tmp_path / "last.pt").stat().st_mtime_ns
    resting, _ = train(first["spent"])
    assert (tmp_path / "last.pt").stat().st_mtime_ns == written, "nothing is left to do"
    assert torch.equal(resting.decoder.conv_out.weight, weights)
    _, second = train(first["spent"] + 0.01)
    assert second["step"] == first["step"] + 1


def test_only_new_channels_are_brought_to_one_size(heads: HeadData) -> None:
    vae = small_vae()
    vae.register_to_config(scaling_factor=0.5)
    pictures = to_tensor(heads.frames[0, :4])
    with torch.no_grad():
        before, decoded = vae.encode(pictures).latent_dist, round_trip(vae, pictures)
        normalise_latents(vae, heads, pictures=4, kept=1)
        after = vae.encode(pictures).latent_dist
        torch.testing.assert_close(round_trip(vae, pictures), decoded, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.mean[:, :1], before.mean[:, :1])
        assert not torch.allclose(after.mean[:, 1:], before.mean[:, 1:])
        assert vae.config["scaling_factor"] == 0.5
        normalise_latents(vae, heads, pictures=4)
        torch.testing.assert_close(round_trip(vae, pictures), decoded, rtol=1e-4, atol=1e-4)
        assert vae.config["scaling_factor"] == 1.0


def fake_training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[VaeConfig, Any, Any]]:
    """Record what the autoencoder would be trained with, and its first convolution, in place of training it."""
    calls = []

    def record(vae: Any, data: HeadData, output: Path, config: VaeConfig, *, natural: Any, **options: Any) -> None:
        output.mkdir(parents=True, exist_ok=True)
        calls.append((config, natural, vae.encoder.conv_in.weight.detach().clone()))

    monkeypatch.setattr(start, "train_vae", record)
    return calls


def obtain(config: TrainConfig, heads: HeadData, folder: Path) -> Any:
    parts: dict[str, Any] = {"vae": small_vae()}
    start._obtain_vae(config, parts, heads, folder, Accelerator(cpu=True), lambda text: None)
    return parts["vae"]


def test_a_new_autoencoder_is_shown_natural_pictures_too(
    heads: HeadData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_training(monkeypatch)
    config = build_config({"vae_pictures": 3, "vae_picture_share": 0.5, "vae_ssim_weight": 0.3, "seed": 4})
    made = obtain(config, heads, tmp_path / "vae")
    settings, natural, first = calls[0]
    assert (settings.picture_share, settings.ssim_weight, settings.textured_share) == (0.5, 0.3, 0.5)
    assert (settings.seconds, settings.keep_weight) == (1150.0, 0.0)
    assert np.array_equal(natural, natural_pictures(3, SIZE, 4))
    assert not torch.equal(first, small_vae().encoder.conv_in.weight), "it starts as a thumbnail"
    obtain(config, heads, tmp_path / "vae")
    assert len(calls) == 1, "what is there is read"
    pictures = torch.zeros(1, 3, SIZE, SIZE)
    assert torch.allclose(round_trip(made, pictures), round_trip(obtain(config, heads, tmp_path / "vae"), pictures))


def test_without_a_share_no_natural_pictures_are_drawn(
    heads: HeadData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_training(monkeypatch)
    monkeypatch.setattr(start, "natural_pictures", lambda *arguments: pytest.fail("drawn"))
    obtain(build_config({"vae_picture_share": 0, "vae_pictures": 0}), heads, tmp_path / "vae")
    assert calls[0][1] is None


def test_further_training_goes_on_from_the_weights_and_holds_to_their_latents(
    heads: HeadData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_training(monkeypatch)
    config = build_config({"init": "shipped", "vae_further_seconds": 20.0, "vae_pictures": 2})
    made = obtain(config, heads, tmp_path / "vae")
    settings, _, first = calls[0]
    assert (settings.seconds, settings.keep_weight) == (20.0, 0.02)
    assert torch.equal(first, small_vae().encoder.conv_in.weight)
    assert torch.equal(made.quant_conv.weight, small_vae().quant_conv.weight), "latents are not normalised anew"


@pytest.mark.parametrize(("further", "trained"), [(0.0, 0), (5.0, 1)])
def test_an_autoencoder_that_init_brings_is_kept_unless_more_is_asked_for(
    further: float, trained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Stop(Exception):
        pass

    def encode(*arguments: Any) -> None:
        raise Stop

    versions = []
    monkeypatch.setattr(start, "render_heads", lambda world, *arguments, **options: versions.append(world.version))
    monkeypatch.setattr(start, "_obtain_vae", lambda *arguments: calls.append("vae"))
    monkeypatch.setattr(start, "encode_heads", encode)
    folder = save_small(tmp_path / "model")
    config = build_config({"init": str(folder), "vae_further_seconds": further, "world": 1})
    with pytest.raises(Stop):
        start.open_run(config, tmp_path / "run", Accelerator(cpu=True), lambda text: None)
    assert len(calls) == trained
    assert versions == [1]

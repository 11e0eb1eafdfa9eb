"""Latents of more channels: what a model makes stays what it was until the new channels are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fye_pipeline.models.denoising_unet import channels_for
from fye_pipeline.models.latents import with_more_latents
from fye_pipeline.models.tiny import build_tiny


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    torch.manual_seed(3)
    parts = build_tiny(3, in_channels=14, reference_hint=True, bent_hint=True)
    for each in ("conv_in", "conv_out"):
        torch.nn.init.normal_(getattr(parts["unet"], each).bias)
    return parts


def spread(latents: torch.Tensor, channels: int) -> torch.Tensor:
    """Latents [B, 4, ...] with noise in further channels."""
    more = torch.randn(len(latents), channels - latents.shape[1], *latents.shape[2:])
    return torch.cat([latents, more], dim=1)


@torch.no_grad()
def test_pictures_and_predictions_stay_what_they_were(parts: dict[str, Any]) -> None:
    channels = 7
    grown = with_more_latents(parts, channels)
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    before, after = (each["vae"].encode(picture).latent_dist for each in (parts, grown))
    torch.testing.assert_close(after.mean[:, :4], before.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.logvar[:, :4], before.logvar, rtol=1e-4, atol=1e-5)
    assert after.mean[:, 4:].std() > 0.01
    decoded = [each["vae"].decode(latents).sample for each, latents in ((parts, before.mean), (grown, after.mean))]
    torch.testing.assert_close(decoded[1], decoded[0], rtol=1e-4, atol=1e-5)

    tokens = torch.randn(1, 17, 96)
    reference, noisy, given, bent = (torch.randn(1, 4, 8, 8) for _ in range(4))
    mask, trust = torch.rand(2, 1, 1, 8, 8)
    exported = [
        net["appearance_net"](latents, tokens) for net, latents in ((parts, reference), (grown, spread(reference, 7)))
    ]
    for one, two in zip(*exported, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert grown["unet"].config["in_channels"] == channels_for(3, channels) == 23
    samples = [
        torch.cat([noisy, given, mask, bent, trust], dim=1),
        torch.cat([spread(noisy, 7), spread(given, 7), mask, spread(bent, 7), trust], dim=1),
    ]
    v = [
        net["unet"](sample[:, :, None], 500, tokens, reference_tokens=exported[0]).sample
        for net, sample in zip((parts, grown), samples, strict=True)
    ]
    torch.testing.assert_close(v[1][:, :4], v[0], rtol=1e-4, atol=1e-5)
    assert v[1].shape[1] == channels
    assert not v[1][:, 4:].any()


def test_a_plain_unet_grows_too_and_none_shrinks(parts: dict[str, Any]) -> None:
    plain = build_tiny(3)
    grown = with_more_latents(plain, 8)
    assert grown["unet"].config["in_channels"] == 8
    assert not grown["unet"].takes_frames
    assert grown["image_encoder"] is plain["image_encoder"]
    with pytest.raises(ValueError, match="channels must be more than the 4 that there are, got 4"):
        with_more_latents(parts, 4)

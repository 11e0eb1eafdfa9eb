"""The three networks of the portrait model: what each row and each frame may see, gradients, sizes, saving."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from fye_pipeline import AppearanceNet, DenoisingUNet, LandmarkEncoder
from fye_pipeline.models.conditioning import build_image_prompt, spatial_blocks
from fye_pipeline.models.denoising_unet import FrameGroupNorm
from fye_pipeline.models.official import load_strictly, widen_conv_in
from fye_pipeline.models.tiny import build_tiny

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "num_attention_heads": 2,
    "cross_attention_dim": 8,
    "norm_num_groups": 8,
    "image_dim": 12,
    "prompt_heads": 2,
    "prompt_queries": 3,
    "prompt_layers": 4,
}
FRAMES, SIZE = 3, 16


def appearance_net(**changes: Any) -> AppearanceNet:
    types: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    torch.manual_seed(0)
    return AppearanceNet(**(SMALL | types | changes))


def denoising_unet(**changes: Any) -> DenoisingUNet:
    """A small UNet whose motion modules do something (they start at zero)."""
    types: dict[str, Any] = {
        "motion_num_attention_heads": 2,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    }
    torch.manual_seed(1)
    unet = DenoisingUNet(**(SMALL | types | changes))
    for name, parameter in unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def inputs(batch: int = 2, height: int = SIZE, width: int = SIZE, **changes: Any) -> dict[str, Any]:
    """Arguments of a UNet call on a batch whose every row has its reference."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tokens = draw(batch, 5, SMALL["image_dim"])
    with torch.no_grad():
        reference = appearance_net()(draw(batch, 4, height, width), tokens)
    given = {
        "sample": draw(batch, 4, FRAMES, height, width),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": tokens,
        "reference_tokens": reference,
        "landmark_features": draw(batch, SMALL["block_out_channels"][0], FRAMES, height, width),
    }
    return given | changes


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """The same names and the same bits."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def rows(given: dict[str, Any], chosen: slice) -> dict[str, Any]:
    """The same call for some rows of its batch."""
    return {
        name: [each[chosen] for each in value] if isinstance(value, list) else value[chosen] if value.ndim else value
        for name, value in given.items()
    }


def test_tiny_model_runs_from_picture_to_prediction() -> None:
    parts = build_tiny()
    with torch.no_grad():
        vision = parts["image_encoder"](torch.rand(1, 3, 64, 64)).last_hidden_state
        latent = parts["vae"].encode(torch.rand(1, 3, 128, 128)).latent_dist.mean
        reference = parts["appearance_net"](latent, vision)
        features = parts["landmark_encoder"](torch.rand(1, 3, FRAMES, 128, 128))
        unet = parts["unet"]
        noise = torch.randn(1, 4, FRAMES, 16, 16)
        prediction = unet(noise, 10, vision, reference_tokens=reference, landmark_features=features).sample
    assert latent.shape == (1, 4, 16, 16)
    assert features.shape == (1, 64, FRAMES, 16, 16)
    assert len(reference) == len(spatial_blocks(unet))
    assert prediction.shape == noise.shape
    assert prediction.isfinite().all()


def test_tiny_model_is_the_same_from_the_same_seed_and_fits_its_files() -> None:
    first, second, other = build_tiny(0), build_tiny(0), build_tiny(1)
    weight = "conv_in.weight"
    assert torch.equal(first["unet"].state_dict()[weight], second["unet"].state_dict()[weight])
    assert not torch.equal(first["unet"].state_dict()[weight], other["unet"].state_dict()[weight])
    for name in ("vae", "image_encoder", "appearance_net", "unet", "landmark_encoder"):
        assert 2 * first[name].num_parameters() <= 16 * 2**20, f"{name} in fp16 must fit into 16 MiB"


@pytest.mark.parametrize("channels", [(16,), (16, 32), (16, 24, 32, 32)])
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_any_number_of_levels_and_layers(channels: tuple[int, ...], layers: int) -> None:
    levels = len(channels)
    common = {"block_out_channels": channels, "layers_per_block": layers}
    net = appearance_net(
        **common, down_block_types=("CrossAttnDownBlock2D",) * levels, up_block_types=("CrossAttnUpBlock2D",) * levels
    )
    unet = denoising_unet(
        **common,
        down_block_types=("CrossAttnDownBlockMotion",) * levels,
        up_block_types=("CrossAttnUpBlockMotion",) * levels,
    )
    tokens = torch.randn(1, 5, SMALL["image_dim"])
    reference = net(torch.randn(1, 4, SIZE, SIZE), tokens)
    assert len(reference) == levels * (2 * layers + 1) + 1
    prediction = unet(torch.randn(1, 4, 2, SIZE, SIZE), 0, tokens, reference_tokens=reference).sample
    assert prediction.shape == (1, 4, 2, SIZE, SIZE)


@torch.no_grad()
def test_sides_that_levels_do_not_divide() -> None:
    given = inputs(1, height=9, width=13)
    assert denoising_unet()(**given).sample.shape == (1, 4, FRAMES, 9, 13)


@torch.no_grad()
def test_unconditional_rows_bypass_the_reference() -> None:
    unet, given = denoising_unet(), inputs(4)
    guided = given | {"reference_tokens": [tokens[2:] for tokens in given["reference_tokens"]]}
    prediction = unet(**guided).sample
    plain = unet(**(rows(given, slice(0, 2)) | {"reference_tokens": None})).sample
    conditional = unet(**rows(given, slice(2, 4))).sample
    torch.testing.assert_close(prediction[:2], plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction[2:], conditional, atol=1e-5, rtol=0)
    assert (plain - unet(**given).sample[:2]).abs().max() > 1e-3  # the reference does matter


@torch.no_grad()
def test_masked_rows_do_not_see_their_reference() -> None:
    unet, given = denoising_unet(), inputs(2)
    masked = unet(**given, reference_mask=torch.tensor([True, False])).sample
    plain = unet(**(given | {"reference_tokens": None})).sample
    torch.testing.assert_close(masked[0], unet(**given).sample[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(masked[1], plain[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_landmark_features_are_added_after_the_first_convolution() -> None:
    unet, given = denoising_unet(), inputs(1)
    moved = copy.deepcopy(unet)
    assert moved.conv_in.bias is not None
    moved.conv_in.bias += 0.25
    shifted = unet(**(given | {"landmark_features": given["landmark_features"] + 0.25})).sample
    torch.testing.assert_close(shifted, moved(**given).sample, atol=1e-5, rtol=0)
    one_for_all = inputs(2, landmark_features=given["landmark_features"])
    repeated = one_for_all | {"landmark_features": given["landmark_features"].repeat(2, 1, 1, 1, 1)}
    torch.testing.assert_close(unet(**one_for_all).sample, unet(**repeated).sample, atol=1e-6, rtol=0)


@torch.no_grad()
def test_image_tokens_per_frame_are_the_same_as_per_sample() -> None:
    unet, given = denoising_unet(), inputs(2)
    repeated = given | {"encoder_hidden_states": given["encoder_hidden_states"].repeat_interleave(FRAMES, dim=0)}
    torch.testing.assert_close(unet(**given).sample, unet(**repeated).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_meet_in_the_motion_modules_only() -> None:
    unet, given = denoising_unet(), inputs(1)
    frame = {"sample": given["sample"][:, :, :1], "landmark_features": given["landmark_features"][:, :, :1]}
    assert (unet(**given).sample[:, :, :1] - unet(**(given | frame)).sample).abs().max() > 1e-4
    for name, parameter in unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            parameter.zero_()
    torch.testing.assert_close(unet(**given).sample[:, :, :1], unet(**(given | frame)).sample, atol=1e-5, rtol=0)


def test_motion_modules_normalise_every_frame_by_itself() -> None:
    features = torch.randn(2, 16, FRAMES, 4, 5) * torch.arange(1, FRAMES + 1)[:, None, None]
    norm = FrameGroupNorm(4, 16)
    plain = torch.nn.GroupNorm(4, 16)
    for frame in range(FRAMES):
        torch.testing.assert_close(norm(features)[:, :, frame], plain(features[:, :, frame]))
    unet = denoising_unet()
    motion = [module for name, module in unet.named_modules() if name.endswith("motion_modules.0.norm")]
    assert motion
    assert all(isinstance(module, FrameGroupNorm) for module in motion)


def gradients(
    net: AppearanceNet, unet: DenoisingUNet, encoder: LandmarkEncoder, keep: Tensor | None
) -> dict[str, Tensor]:
    """Gradients of a training step through all three networks."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 5, SMALL["image_dim"], generator=generator)
    reference = net(torch.randn(2, 4, SIZE, SIZE, generator=generator), tokens)
    features = encoder(torch.rand(2, 3, FRAMES, 2 * SIZE, 2 * SIZE, generator=generator))
    noise = torch.randn(2, 4, FRAMES, SIZE, SIZE, generator=generator)
    timesteps = torch.tensor([10, 900])
    prediction = unet(
        noise, timesteps, tokens, reference_tokens=reference, reference_mask=keep, landmark_features=features
    ).sample
    (prediction - noise).square().mean().backward()
    found = {}
    for label, network in (("net", net), ("unet", unet), ("encoder", encoder)):
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{label}.{name} gets no gradient"
                found[f"{label}.{name}"] = parameter.grad.clone()
        network.zero_grad()
    return found


@pytest.mark.parametrize("prompt", ["linear", "resampler"])
def test_gradients_reach_everything_and_checkpointing_keeps_them(prompt: str) -> None:
    net, unet = appearance_net(image_prompt=prompt), denoising_unet(image_prompt=prompt)
    encoder = LandmarkEncoder(out_channels=16, hidden_channels=(4, 8))
    torch.nn.init.normal_(encoder.conv_out.weight, std=0.1)
    keep = torch.tensor([True, False])
    plain = gradients(net, unet, encoder, keep)
    silent = [name for name, gradient in plain.items() if not gradient.any()]
    assert not silent
    net.enable_gradient_checkpointing()
    unet.enable_gradient_checkpointing()
    assert net.is_gradient_checkpointing
    assert unet.is_gradient_checkpointing
    for name, gradient in gradients(net, unet, encoder, keep).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4, msg=f"{name} differs")


def test_a_dropped_reference_gets_no_gradient() -> None:
    given = inputs(2)
    reference = [tokens.clone().requires_grad_() for tokens in given["reference_tokens"]]
    keep = torch.tensor([False, True])
    denoising_unet()(**(given | {"reference_tokens": reference}), reference_mask=keep).sample.square().sum().backward()
    for tokens in reference:
        assert tokens.grad is not None
        assert not tokens.grad[0].any()
        assert tokens.grad[1].any()


@torch.no_grad()
def test_nine_channels_with_zero_columns_predict_as_four() -> None:
    four, nine = denoising_unet(), denoising_unet(in_channels=9)
    state = dict(four.state_dict())
    state["conv_in.weight"] = widen_conv_in(state["conv_in.weight"], 9)
    load_strictly(nine, state, "unet")
    given = inputs(1)
    more = given | {"sample": torch.cat([given["sample"], torch.randn(1, 5, FRAMES, SIZE, SIZE)], dim=1)}
    torch.testing.assert_close(nine(**more).sample, four(**given).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_networks_save_and_load_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("diffusers").addHandler(caplog.handler)  # diffusers does not propagate its records
    given = inputs(1)
    unet = denoising_unet(image_prompt="resampler")
    unet.save_pretrained(tmp_path / "unet")
    net = appearance_net()
    net.save_pretrained(tmp_path / "net")
    encoder = LandmarkEncoder(out_channels=16, hidden_channels=(4, 8))
    encoder.save_pretrained(tmp_path / "encoder")
    loaded: dict[str, Any] = {
        "unet": DenoisingUNet.from_pretrained(tmp_path / "unet"),
        "net": AppearanceNet.from_pretrained(tmp_path / "net"),
        "encoder": LandmarkEncoder.from_pretrained(tmp_path / "encoder"),
    }
    for name, saved in {"unet": unet.eval(), "net": net.eval(), "encoder": encoder.eval()}.items():
        assert loaded[name].config["_class_name"] == type(saved).__name__
        assert_same_weights(loaded[name], saved)
    # loaded weights are mapped from the file, and the alignment of memory moves the last bits of a product
    torch.testing.assert_close(loaded["unet"](**given).sample, unet(**given).sample, atol=1e-6, rtol=1e-5)
    latent, tokens = given["sample"][:, :, 0], given["encoder_hidden_states"]
    torch.testing.assert_close(loaded["net"](latent, tokens), net(latent, tokens), atol=1e-6, rtol=1e-5)
    assert loaded["encoder"].config["hidden_channels"] == [4, 8]
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert not caplog.records


def test_the_resampler_is_deaf_to_the_number_of_tokens() -> None:
    prompt = build_image_prompt("resampler", 12, 8, queries=3, layers=4, heads=2)
    assert prompt(torch.randn(2, 7, 12)).shape == (2, 3, 8)
    assert build_image_prompt("linear", 12, 8)(torch.randn(2, 7, 12)).shape == (2, 7, 8)


@pytest.mark.parametrize(
    ("kind", "heads", "words"),
    [("mean", 2, "image_prompt must be one of"), ("resampler", 3, "prompt_heads must divide")],
)
def test_image_prompt_refuses(kind: str, heads: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_image_prompt(kind, 12, 8, heads=heads)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sample": torch.zeros(2, 5, FRAMES, SIZE, SIZE)}, "4 channels, got 5"),
        ({"sample": torch.zeros(2, 4, 33, SIZE, SIZE)}, "at most 32 frames"),
        ({"encoder_hidden_states": torch.zeros(3, 5, 12)}, "2 rows"),
        ({"landmark_features": torch.zeros(2, 16, FRAMES, SIZE, SIZE - 1)}, "landmark_features must be"),
        ({"reference_tokens": [torch.zeros(2, 4, 16)]}, "reference_tokens must be 4 maps"),
        ({"reference_mask": torch.ones(3, dtype=torch.bool)}, r"reference_mask must be \[2\]"),
    ],
)
def test_unet_refuses_what_does_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        denoising_unet()(**(inputs(2) | change))


def test_foreign_attention_processors_are_noticed() -> None:
    given = inputs(1)
    unet, net = denoising_unet(), appearance_net()
    for block in spatial_blocks(unet):
        block.attn1.set_processor(AttnProcessor2_0())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="another attention processor"):
        unet(**given)
    spatial_blocks(net)[0].attn1.set_processor(AttnProcessor2_0())  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="another attention processor"):
        net(given["sample"][:, :, 0], given["encoder_hidden_states"])


@torch.no_grad()
def test_copies_share_nothing() -> None:
    unet, given = denoising_unet(), inputs(1)
    before = unet(**given).sample
    other = copy.deepcopy(unet)
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(unet(**given).sample, before)

"""Pictures larger than the trained size: how far deep convolutions see, when, and that nothing is left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pipeline import FRAMES, build, portrait, run
from torch import Tensor, nn

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.errors import UserError
from fye_pipeline.models.denoising_unet import DenoisingUNet
from fye_pipeline.models.dilation import deepest_convolutions, dilated, dilation_factor, is_early

STEPS = 5  # three of them early
TRAINED = 64  # pixels a side of the small model


@pytest.fixture(scope="module")
def pipe() -> FollowYourEmojiPipeline:
    return build()


def pictures(side: int, frames: int = FRAMES) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (frames, side, side, 3), generator=generator, dtype=torch.uint8).numpy()


def settings_of(unet: nn.Module) -> list[tuple[Any, ...]]:
    """What of its convolutions decides their result, hooks included."""
    convolutions = [module for module in unet.modules() if isinstance(module, nn.Conv2d)]
    return [
        (each.dilation, each.padding, len(each._forward_pre_hooks), len(each._forward_hooks)) for each in convolutions
    ]


def support(convolution: nn.Conv2d, side: int) -> int:
    """How many cells across the output at the centre of a map depends on, from the gradient of its input."""
    features = torch.randn(1, convolution.in_channels, side, side, requires_grad=True)
    convolution(features)[..., side // 2, side // 2].sum().backward()
    assert features.grad is not None
    reached = features.grad.abs().sum((0, 1)).gt(0).any(0).nonzero()
    return int(reached.max() - reached.min()) + 1


@pytest.mark.parametrize(
    ("size", "trained", "factor"),
    [
        ((64, 64), 64, 1.0),
        ((96, 96), 64, 1.5),
        ((128, 128), 64, 2.0),
        ((32, 32), 64, 1.0),
        ((72, 72), 64, 1.0),  # too little to be worth a resampling
        ((64, 144), 64, 1.5),
        ((2, 4, 9, 128, 128), 64, 2.0),
    ],
)
def test_the_factor_is_the_pictures_side_over_the_trained_one(size: Any, trained: Any, factor: float) -> None:
    assert dilation_factor(size, trained) == factor


def test_the_first_three_fifths_of_the_steps_are_early() -> None:
    assert [is_early(step, 5) for step in range(5)] == [True, True, True, False, False]
    assert sum(is_early(step, 30) for step in range(30)) == 18
    assert is_early(0, 1)


def test_what_is_spread_in_the_published_layout_is_what_scalecrafter_spreads() -> None:
    blocks = [("down_blocks.3", 2), ("mid_block", 2), ("up_blocks.0", 3)]  # residual blocks of each
    expected = {
        f"{block}.resnets.{index}.conv{half}" for block, count in blocks for index in range(count) for half in (1, 2)
    }
    unet = unet_of(sample_size=64, levels=4, layers=2)
    assert names_of(deepest_convolutions(unet), unet) == expected | {"up_blocks.0.upsamplers.0.conv"}


@pytest.mark.parametrize(("sample_size", "count"), [(16, 2), (64, 1), (24, 1), (8, 3)])
def test_maps_of_at_most_eight_cells_are_spread_and_always_the_smallest(sample_size: int, count: int) -> None:
    unet = unet_of(sample_size=sample_size, levels=3, layers=1)
    blocks = {".".join(name.split(".")[:2]) for name in names_of(deepest_convolutions(unet), unet)}
    down, up = {f"down_blocks.{2 - level}" for level in range(count)}, {f"up_blocks.{level}" for level in range(count)}
    assert {name for name in blocks if "mid_block" not in name} == down | up


def unet_of(*, sample_size: int, levels: int, layers: int) -> DenoisingUNet:
    """A narrow UNet without attention that matters; only its lowest level is of another kind, as published."""
    return DenoisingUNet(
        sample_size=sample_size,
        block_out_channels=(4,) * levels,
        layers_per_block=layers,
        num_attention_heads=1,
        motion_num_attention_heads=1,
        cross_attention_dim=4,
        image_dim=4,
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlockMotion",) * (levels - 1) + ("DownBlockMotion",),
        up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * (levels - 1),
    )


def names_of(convolutions: list[nn.Conv2d], unet: nn.Module) -> set[str]:
    names = {module: name for name, module in unet.named_modules()}
    return {names[each] for each in convolutions}


@pytest.mark.parametrize(("factor", "cells"), [(1.0, 3), (2.0, 5), (3.0, 7)])
def test_a_deep_convolution_reaches_as_far_as_the_factor_says(
    pipe: FollowYourEmojiPipeline, factor: float, cells: int
) -> None:
    for convolution in deepest_convolutions(pipe.unet):
        with dilated(pipe.unet, factor):
            assert support(convolution, 24) == cells
        assert support(convolution, 24) == 3


@pytest.mark.parametrize("factor", [1.0, 1.25, 1.5, 1.75, 2.0, 2.5])
def test_equal_taps_lie_as_far_apart_as_the_factor_says(factor: float) -> None:
    holder, convolution = averaging()
    side = 40
    features = torch.randn(1, 1, side, side, requires_grad=True)
    with dilated(holder, factor):
        result = convolution(features)
    squares = []
    for place in range(14, 22):  # over the phases of the resampling
        (gradient,) = torch.autograd.grad(result[0, 0, place, place], features, retain_graph=True)
        share, places = gradient[0, 0].sum(0), torch.arange(side) - float(place)
        assert share.sum() == pytest.approx(1, abs=1e-3)
        squares.append(float((share * places**2).sum() - (share * places).sum() ** 2))
    assert sum(squares) / len(squares) == pytest.approx(factor**2 * 2 / 3, rel=0.15)  # taps at -1, 0, 1


def averaging() -> tuple[Any, nn.Conv2d]:
    """A stand-in for a UNet of one convolution, which takes the mean of its nine taps."""
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(convolution.weight, 1 / 9)
    blocks = nn.ModuleList([convolution])
    config = {"sample_size": 8}
    ups = nn.ModuleList([nn.Module()])
    return SimpleNamespace(config=config, down_blocks=blocks, mid_block=nn.Module(), up_blocks=ups), convolution


def deep_reach(unet: Any, side: int) -> int:
    """How far across the middle block's residual nets a cell's influence spreads, as a test of the whole block."""
    features = torch.randn(1, 16, side, side, requires_grad=True)
    temb, result = torch.zeros(1, 64), features
    for resnet in unet.mid_block.resnets:
        resnet.norm1, resnet.norm2 = nn.Identity(), nn.Identity()  # a norm sees the whole map
        result = resnet(result, temb)
    result[..., side // 2, side // 2].sum().backward()
    assert features.grad is not None
    reached = features.grad.abs().sum((0, 1)).gt(0).any(0).nonzero()
    return int(reached.max() - reached.min()) + 1


def test_the_receptive_field_at_twice_the_size_is_the_trained_one() -> None:
    unet = build().unet
    trained = deep_reach(unet, 32)
    with dilated(unet, 2.0):
        larger = deep_reach(unet, 64)
    assert trained == 9  # four convolutions
    assert larger == 2 * (trained - 1) + 1  # as far from the centre, in twice as many cells


def test_a_fraction_keeps_a_constant_map_as_it_is() -> None:
    holder, convolution = averaging()
    with dilated(holder, 1.5):
        result = convolution(torch.ones(1, 1, 20, 31))
    assert result.shape == (1, 1, 20, 31)
    torch.testing.assert_close(result[..., 4:-4, 4:-4], torch.ones(1, 1, 12, 23))


def test_the_trained_size_is_unchanged_to_the_bit(pipe: FollowYourEmojiPipeline) -> None:
    for side in (32, TRAINED):
        plain = run(pipe, landmarks=pictures(side), dilation="none", num_inference_steps=STEPS)
        assert torch.equal(run(pipe, landmarks=pictures(side), num_inference_steps=STEPS), plain)


@pytest.mark.parametrize("side", [96, 128])
def test_a_larger_picture_is_made_with_it_and_none_leaves_it_out(pipe: FollowYourEmojiPipeline, side: int) -> None:
    before = settings_of(pipe.unet)
    wider = run(pipe, landmarks=pictures(side))
    assert not torch.equal(wider, run(pipe, landmarks=pictures(side), dilation="none"))
    assert wider.isfinite().all()
    assert settings_of(pipe.unet) == before


def dilations_at_each_step(pipe: FollowYourEmojiPipeline, **options: Any) -> list[int]:
    """The dilation of the middle block's first convolution at every call of it."""
    seen: list[int] = []
    deepest: Any = pipe.unet.get_submodule("mid_block.resnets.0.conv1")
    hook = deepest.register_forward_pre_hook(lambda module, args: seen.append(module.dilation[0]))
    try:
        run(pipe, landmarks=pictures(2 * TRAINED), num_inference_steps=STEPS, **options)
    finally:
        hook.remove()
    return seen


def test_after_the_early_steps_the_plain_convolutions_are_back(pipe: FollowYourEmojiPipeline) -> None:
    assert dilations_at_each_step(pipe) == [2, 2, 2, 1, 1]
    assert dilations_at_each_step(pipe, dilation="none") == [1] * STEPS


def test_progressive_clips_have_it_too() -> None:
    assert dilations_at_each_step(build(in_channels=9), long="progressive") == [2, 2, 2, 1, 1]


def test_an_error_in_a_step_leaves_the_network_as_it_was(pipe: FollowYourEmojiPipeline) -> None:
    before = settings_of(pipe.unet)

    def fail(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise KeyboardInterrupt

    for side in (96, 128):  # with resized features, and without
        hook = pipe.unet.conv_out.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            run(pipe, landmarks=pictures(side))
        hook.remove()
        assert settings_of(pipe.unet) == before


def test_an_interrupted_run_leaves_the_network_as_it_was(pipe: FollowYourEmojiPipeline) -> None:
    before = settings_of(pipe.unet)

    def stop(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert settings_of(pipe.unet) == before  # between two steps too
        pipe._interrupt = True
        return {}

    run(pipe, landmarks=pictures(128), callback_on_step_end=stop)
    assert settings_of(pipe.unet) == before


def test_the_switch_is_a_full_step_of_the_cache_with_a_fresh_history(pipe: FollowYourEmojiPipeline) -> None:
    session = pipe.enable_cache(schedule=[0, 1, 9], order=2)
    try:
        cached = run(pipe, landmarks=pictures(2 * TRAINED), num_inference_steps=10)
        report = session.report().to_dict()
        # Steps 0, 1 and 9 by the schedule, and 6, the first plain one, from which alone 7 and 8 are predicted.
        assert report["fallbacks"] == {"the dilation of its convolutions changed": 1}
        assert report["full_calls"] == 4
        assert dilations_at_each_step(pipe) == [2, 2, 1]  # of five steps 0 and 1, then 3, the first plain one
        run(pipe, landmarks=pictures(2 * TRAINED), num_inference_steps=10, dilation="none")
        assert session.report().to_dict()["fallbacks"] == {}
    finally:
        pipe.disable_cache()
    plain = run(pipe, landmarks=pictures(2 * TRAINED), num_inference_steps=10)
    assert (cached - plain).square().mean().sqrt() < 0.1


def test_every_step_full_is_exact_across_the_switch(pipe: FollowYourEmojiPipeline) -> None:
    for side in (96, 128):
        plain = run(pipe, landmarks=pictures(side), num_inference_steps=STEPS)
        pipe.enable_cache(N=1)
        try:
            assert torch.equal(run(pipe, landmarks=pictures(side), num_inference_steps=STEPS), plain)
        finally:
            pipe.disable_cache()


def test_another_word_is_one_sentence(pipe: FollowYourEmojiPipeline) -> None:
    options: Any = {"dilation": "some"}
    with pytest.raises(UserError, match="dilation must be one of"):
        pipe(portrait(), pictures(TRAINED), **options)

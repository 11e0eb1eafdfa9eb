"""Progressive runs that break off go on to the bit; other runs are not mixed in, and bad inputs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from progressive_cases import (
    FRAMES,
    PLAN,
    STEPS,
    Calls,
    break_off,
    collect,
    in_memory,
    pipe,
    region,
    shared_pipe,
    stream,
    whole,
)
from test_pipeline import build, pictures
from torch import Tensor

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.errors import UserError
from fye_pipeline.sampling.progressive import Interrupted

__all__ = ["pipe", "shared_pipe", "whole"]  # fixtures


@pytest.mark.parametrize("stop", [0, 7, STEPS * len(PLAN) - 1])
def test_a_killed_run_goes_on_to_the_bit(
    pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path, stop: int
) -> None:
    seen = break_off(pipe, tmp_path, stop)
    assert len(list(tmp_path.glob("clip-*.safetensors"))) == stop // STEPS
    assert len(list(tmp_path.glob("[!.]*"))) == 1 + stop // STEPS
    assert all(torch.equal(batch[0], frame) for batch, frame in zip(seen, whole, strict=False))
    with Calls(pipe) as calls:
        assert torch.equal(collect(stream(pipe, tmp_path)), whole)
    assert len(calls.samples) == STEPS * (len(PLAN) - stop // STEPS)  # the clip at hand is all that is lost


@pytest.mark.parametrize("stop", [4, 7])
def test_it_resumes_under_a_cache_too(pipe: FollowYourEmojiPipeline, tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {"num_inference_steps": 4, "landmarks": pictures(5), "region": region()[:5]}
    plain = in_memory(pipe, **options)
    pipe.enable_cache(N=2, order=1, boundary=2)
    unbroken = in_memory(pipe, **options)
    assert (unbroken - plain).abs().max() > 1e-5
    break_off(pipe, tmp_path, stop, **options)
    resumed = collect(stream(pipe, tmp_path, **options))
    assert torch.equal(resumed, collect(pipe.decode_frames(unbroken)))


def test_a_damaged_clip_is_made_again(pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path) -> None:
    break_off(pipe, tmp_path, STEPS * 3)
    clip = tmp_path / "clip-000001.safetensors"
    clip.write_bytes(clip.read_bytes()[:-7])
    (tmp_path / "clip-000002.safetensors").write_bytes(b"")
    (tmp_path / ".clip-000003.0123.part.safetensors").write_bytes(b"half")
    assert torch.equal(collect(stream(pipe, tmp_path)), whole)


def test_frames_that_the_caller_has_are_not_decoded_again(
    pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path
) -> None:
    collect(stream(pipe, tmp_path))
    decoded: list[int] = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    with Calls(pipe) as calls:
        rest = collect(stream(pipe, tmp_path, start=9, decode_chunk_size=3))
    hook.remove()
    torch.testing.assert_close(rest, whole[9:], atol=1e-5, rtol=0)
    assert not calls.samples
    assert decoded == [3]  # 8 too: batches are the same wherever a caller starts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, r"another run \(seed was 3 and is 4\); use another work folder"),
        ({"num_inference_steps": 3}, "num_inference_steps was 2 and is 3"),
        ({"guidance_scale": 1.0}, "guidance_scale was 3.5 and is 1.0"),
        ({"window": 5}, "window was 4 and is 5"),
        ({"landmarks": pictures(FRAMES - 1)}, "frames was 11 and is 10"),
        ({"image": np.zeros((80, 80, 3), np.uint8)}, "another portrait"),
        ({"image_tokens": torch.zeros(1, 5, 16)}, "another image_tokens"),
        ({"landmarks": pictures(FRAMES)[::-1]}, "other landmarks or regions of frames 0 to 10"),
        ({"region": np.zeros((FRAMES, 8, 8))}, "other landmarks or regions of frames 0 to 10"),
    ],
)
def test_another_run_is_not_mixed_in(
    pipe: FollowYourEmojiPipeline, begun: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        next(stream(pipe, begun, **change))


@pytest.fixture(scope="module")
def begun(shared_pipe: FollowYourEmojiPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the first clip done."""
    folder = tmp_path_factory.mktemp("begun")
    next(stream(shared_pipe, folder))
    return folder


def test_another_model_is_not_mixed_in(pipe: FollowYourEmojiPipeline, begun: Path) -> None:
    bias = pipe.unet.conv_out.bias
    assert bias is not None
    before = bias.data.clone()
    bias.data[0] += 1
    try:
        with pytest.raises(UserError, match="another model"):
            stream(pipe, begun)
    finally:
        bias.data.copy_(before)
    pipe.enable_cache(N=2)
    with pytest.raises(UserError, match="another cache"):
        stream(pipe, begun)
    pipe.disable_cache()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="leading")
    with pytest.raises(UserError, match="another scheduler"):
        stream(pipe, begun)


def test_a_folder_of_other_things_is_left_alone(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files and no settings\.json"):
        stream(pipe, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        stream(pipe, tmp_path / "file")
    (tmp_path / "settings.json").write_text("[1")
    with pytest.raises(UserError, match="cannot be read"):
        stream(pipe, tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "settings.json"]


def test_two_runs_in_one_folder_are_refused(pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path) -> None:
    frames = stream(pipe, tmp_path)
    next(frames)
    with pytest.raises(UserError, match="Another run is at work"):
        stream(pipe, tmp_path)
    frames.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(collect(stream(pipe, tmp_path)), whole)


def test_an_interrupted_run_keeps_whole_clips_only(
    pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path
) -> None:
    frames = stream(pipe, tmp_path)
    next(frames)
    pipe._interrupt = True
    with pytest.raises(Interrupted, match="interrupted in clip 2: the clips before it are kept"):
        next(frames)
    assert [path.name for path in sorted(tmp_path.glob("clip*"))] == ["clip-000000.safetensors"]
    assert torch.equal(collect(stream(pipe, tmp_path)), whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"landmarks": lambda frame: pictures()[frame]}, "frames must be set"),
        ({"frames": FRAMES + 1}, "frames must be 1 to 11, .* got 12"),
        ({"frames": 0}, "frames must be 1 to 11, .* got 0"),
        ({"landmarks": []}, "at least one picture, got none"),
        ({"window": 2}, "3 to 32 frames, got 2"),
        ({"window": 33}, "3 to 32 frames, got 33"),
        ({"region": np.zeros((3, 8, 8))}, "one mask for each of the 11 frames, got 3"),
        ({"landmarks": pictures().astype(float)}, "landmarks must be uint8"),
        ({"image": "portrait.png"}, "got str"),
    ],
)
def test_bad_inputs_are_refused_at_once(
    pipe: FollowYourEmojiPipeline, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        stream(pipe, tmp_path / "work", **options)
    assert not (tmp_path / "work").exists()


def test_pictures_of_several_sizes_are_refused(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    video = [*pictures(10), np.zeros((40, 32, 3), np.uint8)]
    with pytest.raises(UserError, match=r"frame 10 must be uint8 \[32, 32, 3\] .* got uint8 \[40, 32, 3\]"):
        next(stream(pipe, tmp_path, landmarks=video))


def test_noise_is_not_passed_in(pipe: FollowYourEmojiPipeline) -> None:
    with pytest.raises(UserError, match="latents must be None"):
        in_memory(pipe, latents=torch.zeros(1, 4, FRAMES, 4, 4))


def test_a_unet_of_four_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs a UNet of 9 input channels, .* this one has 4: use uniform or tiles"):
        stream(build(), tmp_path / "work")
    assert not (tmp_path / "work").exists()

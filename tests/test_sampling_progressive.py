"""Progressive generation: streamed as in memory, given frames untouched, seams, memory flat."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from progressive_cases import (
    FRAMES,
    PLAN,
    STEPS,
    WINDOW,
    Calls,
    collect,
    in_memory,
    pipe,
    region,
    shared_pipe,
    stream,
    whole,
)
from test_pipeline import SIDE, build, pictures
from torch import Tensor

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.sampling.clip_plan import plan_clips
from fye_pipeline.sampling.denoise import Given, with_given_frames
from fye_pipeline.training import losses

__all__ = ["pipe", "shared_pipe", "whole"]  # fixtures


def test_streamed_and_in_memory_are_the_same(pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path) -> None:
    video = pictures(FRAMES)
    batches = list(stream(pipe, tmp_path / "a" / "b", landmarks=lambda frame: video[frame], frames=FRAMES))
    assert {tuple(batch.shape) for batch in batches} == {(1, 3, SIDE, SIDE)}
    assert torch.equal(torch.cat(batches), whole)
    parts = list(stream(pipe, tmp_path / "a" / "b", decode_chunk_size=3))
    assert max(map(len, parts)) == 3
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.01
    assert len({frame.numpy().tobytes() for frame in whole}) == FRAMES


def test_the_seed_decides(pipe: FollowYourEmojiPipeline) -> None:
    generator = torch.Generator().manual_seed(3)
    options: dict[str, Any] = {"landmarks": pictures(5), "num_inference_steps": 1}
    first, second = in_memory(pipe, generator=generator, **options), in_memory(pipe, generator=[generator], **options)
    assert torch.equal(first, in_memory(pipe, **options))
    assert (first - second).abs().amax(dim=(0, 1, 3, 4)).min() > 0.1


def test_frames_come_as_soon_as_all_before_them_are_there(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    shown = []
    for batch in stream(pipe, tmp_path, on_progress=lambda done, total: progress.append((done, total))):
        assert torch.is_grad_enabled()
        shown.append((progress[-1][0], len(batch)))
    assert progress == [(done, FRAMES) for done in (0, 3, 4, 5, 6, 8, 9, 11)]
    assert [done for done, _ in shown] == [3, 6, 6, 8, 8, 8, 9, 9, 11, 11, 11]


@pytest.mark.parametrize("kind", [None, EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDPMScheduler])
# diffusers 0.42 turns tensors into arrays in a way that numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_given_frames_are_shown_clean_and_come_out_unchanged(
    pipe: FollowYourEmojiPipeline, kind: type[SchedulerMixin] | None
) -> None:
    if kind is not None:
        pipe.scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")  # pyright: ignore[reportCallIssue]
    ends: list[Tensor] = []

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.extend([tensors["latents"]] if step == STEPS - 1 else [])
        return {}

    with Calls(pipe) as calls:
        latents = in_memory(pipe, callback_on_step_end=after)
    assert latents.isfinite().all()
    for clip, end in zip(PLAN, ends, strict=True):
        mask = torch.tensor([frame in clip.given for frame in clip.frames])
        own = latents[:, :, list(clip.frames)]
        for sample in calls.samples[clip.number * STEPS : (clip.number + 1) * STEPS]:
            assert torch.equal(sample[:, 8], mask[None, :, None, None].float().expand_as(sample[:, 8]))
            assert torch.equal(sample[:, 4:8], own * mask[:, None, None])
        assert torch.equal(end[:, :, ~mask], own[:, :, ~mask])


def test_given_frames_are_noised_as_in_training(pipe: FollowYourEmojiPipeline) -> None:
    """The noisy latents of a given frame are a mixture of it and of noise that stays the same from step to step."""
    with Calls(pipe) as calls:
        latents = in_memory(pipe, num_inference_steps=4)
    alphas = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
    for clip in PLAN[1:]:
        samples = calls.samples[clip.number * 4 : (clip.number + 1) * 4]
        for frame in clip.given:
            at, clean = clip.frames.index(frame), latents[0, :, frame]
            noise = samples[0][0, :4, at]  # the first step is noise alone: zero terminal SNR
            for sample, alpha in zip(samples, alphas, strict=True):
                expected = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
                torch.testing.assert_close(sample[0, :4, at], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hinted", [False, True])
def test_the_input_is_laid_out_as_in_training(hinted: bool) -> None:
    noisy, clean, noise = torch.randn(3, 1, 4, 5, 3, 2).unbind()
    mask = torch.tensor([1, 0, 0, 1, 1]).bool()
    hint = torch.randn(1, 4, 3, 2) if hinted else None
    poisoned = torch.where(mask[:, None, None], clean, torch.nan)
    ours = with_given_frames(noisy, 9, hint, Given(poisoned, noise, mask))
    assert torch.equal(ours, losses.with_given_frames(noisy, clean, mask[None].float(), hint))
    rows = with_given_frames(noisy.expand(2, -1, -1, -1, -1), 9, hint, Given(clean, noise, mask))
    assert torch.equal(rows, ours.expand(2, -1, -1, -1, -1))


def test_a_hint_stands_where_nothing_is_given() -> None:
    pipe = build(in_channels=9, reference_hint=True)
    with Calls(pipe) as calls:
        latents = in_memory(pipe, num_inference_steps=1, landmarks=pictures(5))
    keys, gap = calls.samples[0], calls.samples[1]
    assert torch.equal(keys[:, 4:8, 0], keys[:, 4:8, 1])
    assert keys[:, 4:8].std() > 0
    assert torch.equal(gap[:, 4:8, 1], keys[:, 4:8, 0])
    assert torch.equal(gap[:, 4:8, 0], latents[:, :, 0])


def test_given_frames_matter(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    """Frames of a gap follow its ends, not the noise alone."""
    widened = pipe.unet.conv_in.weight.data[:, 4:].clone()
    plain = in_memory(pipe)
    try:
        pipe.unet.conv_in.weight.data[:, 4:8] = 0
        changed = in_memory(pipe)
    finally:
        pipe.unet.conv_in.weight.data[:, 4:] = widened
    keys = list(PLAN[0].frames)
    assert torch.equal(changed[:, :, keys], plain[:, :, keys])
    assert (changed - plain)[:, :, 1].abs().max() > 1e-3


def test_every_clip_has_its_own_region(pipe: FollowYourEmojiPipeline) -> None:
    plain = in_memory(pipe)
    session = pipe.enable_cache(N=1)
    seen: list[tuple[int, ...]] = []

    def note(module: Any, args: Any) -> None:
        values = torch.as_tensor(session.region)[:, 0, 0] * 16
        seen.append(tuple(round(value) for value in values.tolist()))

    hook = pipe.unet.register_forward_pre_hook(note)
    try:
        assert torch.equal(in_memory(pipe, region=region()), plain)  # every step full: exact
    finally:
        hook.remove()
    assert seen == [clip.frames for clip in PLAN for _ in range(STEPS)]


def peak(pipe: FollowYourEmojiPipeline, folder: Path, frames: int) -> tuple[int, int, int]:
    """Bytes of tensors alive at the worst moment looked at, the most frames in a call, and the count of calls."""
    frame_counts: list[int] = []
    most = 0

    def look() -> None:
        nonlocal most
        alive = (each for each in gc.get_objects() if issubclass(type(each), Tensor))
        most = max(most, sum(each.numel() * each.element_size() for each in alive))

    def draw(frame: int) -> np.ndarray:
        return np.random.default_rng(frame).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    def count(module: Any, args: Any) -> None:
        frame_counts.append(args[0].shape[2])
        if module is pipe.unet:
            look()

    hooks = [part.register_forward_pre_hook(count) for part in (pipe.unet, pipe.landmark_encoder)]
    options: dict[str, Any] = {"landmarks": draw, "frames": frames, "num_inference_steps": 1}
    try:
        for number, batch in enumerate(stream(pipe, folder, **options)):
            assert len(batch) == 1
            if number % 4 == 0:
                look()
    finally:
        for hook in hooks:
            hook.remove()
    return most, max(frame_counts), len(frame_counts)


def test_memory_does_not_grow_with_the_video(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    peak(pipe, tmp_path / "warm", 4)
    short, short_frames, _ = peak(pipe, tmp_path / "short", 7)
    long, long_frames, calls = peak(pipe, tmp_path / "long", 13)
    assert short_frames == long_frames == WINDOW
    assert calls == 2 * len(plan_clips(13, length=WINDOW))
    assert long <= short


def test_landmark_pictures_are_let_go(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    def draw(frame: int) -> np.ndarray:
        nonlocal most
        picture = pictures(FRAMES)[frame].copy()
        alive.add(id(picture))
        weakref.finalize(picture, alive.discard, id(picture))
        most = max(most, len(alive))
        return picture

    collect(stream(pipe, tmp_path, landmarks=draw, frames=FRAMES, num_inference_steps=1))
    assert WINDOW <= most <= WINDOW + 1


def test_a_video_of_one_clip(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    latents = in_memory(pipe, landmarks=pictures(3))
    assert latents.shape == (1, 4, 3, SIDE // 8, SIDE // 8)
    assert torch.equal(collect(stream(pipe, tmp_path, landmarks=pictures(3))), collect(pipe.decode_frames(latents)))


def test_seams_are_made_again_from_both_gaps_and_shown_so(tmp_path: Path) -> None:
    """Around a keyframe the frames shown are the seam's; what it is given are the gaps' frames."""
    pipe = build(in_channels=9)
    plan = plan_clips(FRAMES, length=6, seams=True)
    (seam,) = [clip for clip in plan if clip.seam]
    assert (seam.frames, seam.made) == ((2, 3, 4, 5, 6, 7, 8), (4, 5, 6))
    with Calls(pipe) as calls:
        latents = in_memory(pipe, window=6)
    shown = calls.samples[-1][:, 4:8]
    for at, frame in enumerate(seam.frames):
        assert torch.equal(shown[0, :, at], latents[0, :, frame]) == (frame in seam.given)
    keys = calls.samples[STEPS][:, 4:8]  # of the first gap, which was given the keyframe as it was first made
    assert not torch.equal(keys[0, :, -1], latents[0, :, 5])
    options: dict[str, Any] = {"window": 6, "seams": False}
    plain = collect(stream(pipe, tmp_path / "plain", **options))
    joined = collect(stream(pipe, tmp_path / "joined", window=6))
    changed = [number for number in range(FRAMES) if not torch.equal(plain[number], joined[number])]
    assert changed == [4, 5, 6]
    assert torch.equal(joined, collect(pipe.decode_frames(latents)))

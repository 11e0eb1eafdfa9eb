"""Progressive generation: streamed as in memory, resumed to the bit, given frames untouched, memory flat."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from test_pipeline import SIDE, build, pictures, portrait
from torch import Tensor

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.errors import UserError
from fye_pipeline.generation.clips import Given, with_given_frames
from fye_pipeline.generation.keyframes import plan_clips
from fye_pipeline.generation.progressive import Interrupted, generate
from fye_pipeline.training import masking

FRAMES, WINDOW, STEPS = 11, 4, 2
PLAN = plan_clips(FRAMES, length=WINDOW)  # three levels: 0 5 10; 0 2 5, 5 7 10; then the gaps between those


class StopError(Exception):
    """What a killed run dies of here."""


@pytest.fixture(scope="module")
def shared_pipe() -> FollowYourEmojiPipeline:
    return build(in_channels=9)


@pytest.fixture
def pipe(shared_pipe: FollowYourEmojiPipeline) -> Iterator[FollowYourEmojiPipeline]:
    scheduler = shared_pipe.scheduler
    yield shared_pipe
    shared_pipe.scheduler = scheduler
    shared_pipe.disable_cache()


@pytest.fixture(scope="module")
def whole(shared_pipe: FollowYourEmojiPipeline) -> Tensor:
    """The unbroken video of seed 3, made in memory. [F, 3, H, W]"""
    return in_memory(shared_pipe, output_type="pt")[0]


def in_memory(pipe: FollowYourEmojiPipeline, **options: Any) -> Tensor:
    """A progressive run by way of the pipeline."""
    given = {
        "landmarks": pictures(FRAMES),
        "long": "progressive",
        "window": WINDOW,
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    return pipe(portrait(), **(given | options)).frames


def stream(pipe: FollowYourEmojiPipeline, folder: Path, **options: Any) -> Iterator[Tensor]:
    given = {
        "image": portrait(),
        "landmarks": pictures(FRAMES),
        "work_folder": folder,
        "seed": 3,
        "window": WINDOW,
        "num_inference_steps": STEPS,
    }
    return generate(pipe, **(given | options))


def collect(batches: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(batches))


class Calls:
    """Counts UNet calls, keeps what the conditional row was shown, and stops a run before call `stop`."""

    def __init__(self, pipe: FollowYourEmojiPipeline, stop: int | None = None) -> None:
        self.samples: list[Tensor] = []
        self.stop = stop
        self._hook = pipe.unet.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        if len(self.samples) == self.stop:
            raise StopError
        sample = args[0] if args else kwargs["sample"]  # a cache passes all by name
        self.samples.append(sample[-1:].clone())

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def break_off(pipe: FollowYourEmojiPipeline, folder: Path, stop: int, **options: Any) -> list[Tensor]:
    """Run until the UNet's call `stop`; the frames that came out."""
    seen = []
    with Calls(pipe, stop), pytest.raises(StopError):
        seen.extend(stream(pipe, folder, **options))
    return seen


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


@pytest.mark.parametrize("stop", [0, 7, STEPS * len(PLAN) - 1])
def test_a_killed_run_goes_on_to_the_bit(
    pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path, stop: int
) -> None:
    seen = break_off(pipe, tmp_path, stop)
    assert len(list(tmp_path.glob("clip-*.safetensors"))) == stop // STEPS
    assert len(list(tmp_path.iterdir())) == 1 + stop // STEPS
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
    assert torch.equal(ours, masking.with_given_frames(noisy, clean, mask[None].float(), hint))
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


def region() -> np.ndarray:
    """A mask per frame whose first pixel tells the frame."""
    masks = np.ones((FRAMES, 8, 8), np.float32)
    masks[:, 0, 0] = np.arange(FRAMES) / 16
    return masks


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
    long, long_frames, calls = peak(pipe, tmp_path / "long", 22)
    assert short_frames == long_frames == WINDOW
    assert calls == 2 * len(plan_clips(22, length=WINDOW))
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, r"another run \(seed was 3 and is 4\); use another work folder"),
        ({"num_inference_steps": 3}, "num_inference_steps was 2 and is 3"),
        ({"guidance_scale": 1.0}, "guidance_scale was 3.5 and is 1.0"),
        ({"window": 5}, "window was 4 and is 5"),
        ({"landmarks": pictures(FRAMES - 1)}, "frames was 11 and is 10"),
        ({"image": np.zeros((80, 80, 3), np.uint8)}, "another portrait"),
        ({"image_tokens": torch.zeros(1, 17, 96)}, "another image_tokens"),
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


def test_an_interrupted_run_keeps_whole_clips_only(
    pipe: FollowYourEmojiPipeline, whole: Tensor, tmp_path: Path
) -> None:
    frames = stream(pipe, tmp_path)
    next(frames)
    pipe._interrupt = True
    with pytest.raises(Interrupted, match="interrupted in clip 2 of 7"):
        next(frames)
    assert [path.name for path in sorted(tmp_path.glob("clip*"))] == ["clip-000000.safetensors"]
    assert torch.equal(collect(stream(pipe, tmp_path)), whole)


def test_a_video_of_one_clip(pipe: FollowYourEmojiPipeline, tmp_path: Path) -> None:
    latents = in_memory(pipe, landmarks=pictures(3))
    assert latents.shape == (1, 4, 3, SIDE // 8, SIDE // 8)
    assert torch.equal(collect(stream(pipe, tmp_path, landmarks=pictures(3))), collect(pipe.decode_frames(latents)))

"""Long videos made progressively: keyframes first, then every gap with both its ends given.

`generate` streams a video of any length in the memory of one clip, and goes on where a killed run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Generator, Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.generation.clips import Clip, Conditions, Given
from fye_pipeline.generation.inputs import as_picture, check_landmarks, letterbox
from fye_pipeline.generation.keyframes import PlannedClip, plan_clips
from fye_pipeline.generation.work_folder import ClipStore, WorkFolder, digest_of, digest_of_weights

if TYPE_CHECKING:
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

CLIP_LENGTH = 16  # frames of the clips that the model is trained on

AfterStep = Callable[[int, Tensor, Tensor], Tensor]


class Interrupted(RuntimeError):
    """`pipe._interrupt` was set: the finished clips are in the work folder, and the same call goes on from there."""


@dataclass(frozen=True)
class Video:
    """What is generated. `landmarks` and `region` give one frame's picture [H, W, 3] and mask [H', W'] by its index."""

    portrait: Image.Image  # as large as the landmark pictures
    image_tokens: Tensor | None
    landmarks: Callable[[int], np.ndarray]
    region: Callable[[int], np.ndarray | Tensor] | None
    plan: list[PlannedClip]
    seed: int
    num_inference_steps: int
    guidance_scale: float

    @property
    def frames(self) -> int:
        """Frames of the whole video."""
        return sum(len(clip.made) for clip in self.plan)


def generate(
    pipe: FollowYourEmojiPipeline,
    image: Image.Image | np.ndarray,
    landmarks: Sequence[np.ndarray] | np.ndarray | Callable[[int], np.ndarray],
    *,
    work_folder: str | Path,
    frames: int | None = None,
    seed: int = 0,
    num_inference_steps: int = 30,
    guidance_scale: float = 3.5,
    window: int | None = None,
    region: Sequence[Any] | np.ndarray | Tensor | Callable[[int], np.ndarray | Tensor] | None = None,
    image_tokens: Tensor | None = None,
    start: int = 0,
    decode_chunk_size: int = 1,
    on_progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Iterator[Tensor]:
    """Animate `image` progressively. Yields its frames in order, float32 [n, 3, H, W] in [0, 1] on the CPU.

    Latents are written to `work_folder` clip by clip. The same call on the same folder goes on where the last one
    stopped, with the same result to the bit; other settings, weights or inputs are refused. The folder may be deleted
    when the video is complete. Noise depends on the seed and the clip's place alone.

    landmarks, region: what `FollowYourEmojiPipeline` takes, or a function from a frame's index to its picture or mask,
        called for one clip at a time, and then with `frames`, the length of the video. They must give the same again.
    window: the most frames that the UNet sees together, 16 by default.
    start: frames that the caller already has; they are not decoded again.
    on_progress(done, total): frames whose latents are finished, after every clip.
    Raises UserError on inputs that do not fit, before anything is generated; Interrupted when `pipe._interrupt` is set.
    """
    count, window = _count_frames(landmarks, frames), window or clip_length(pipe)
    if region is not None and not callable(region) and len(region) < count:
        raise UserError(f"region must have one mask for each of the {count} frames, got {len(region)}")
    at = _by_index(landmarks)
    first = check_landmarks(np.asarray(at(0))[None], pipe.vae_scale_factor)
    video = Video(
        portrait=letterbox(as_picture(image), *first.shape[2:0:-1]),
        image_tokens=image_tokens,
        landmarks=at,
        region=None if region is None else _by_index(region),
        plan=plan_video(pipe, count, window),
        seed=draw_seed(Generator().manual_seed(seed)),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    store = WorkFolder(work_folder, video.plan, describe(pipe, video) | {"seed": seed, "window": window})
    pipe._interrupt = False
    return _stream(pipe, video, store, start, decode_chunk_size, on_progress)


def plan_video(pipe: FollowYourEmojiPipeline, frames: int, window: int | None) -> list[PlannedClip]:
    """Plan a video within what the UNet takes. Raises UserError for a UNet that cannot be given frames."""
    channels, limit = pipe.unet.config["in_channels"], pipe.unet.config["motion_max_seq_length"]
    if channels < 9:
        raise UserError(
            f"progressive generation needs a UNet of 9 input channels, which is given finished frames, "
            f"and this one has {channels}: use uniform or tiles."
        )
    return plan_clips(frames, length=window or clip_length(pipe), limit=limit)


def clip_length(pipe: FollowYourEmojiPipeline) -> int:
    """The length of clips where none is asked for: what the model is trained on, as far as the UNet takes it."""
    return min(CLIP_LENGTH, pipe.unet.config["motion_max_seq_length"])


def draw_seed(generator: Generator | list[Generator] | None) -> int:
    """Draw the number that every clip's noise depends on."""
    if isinstance(generator, list):
        (generator,) = generator
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def clip_generator(seed: int, number: int) -> Generator:
    """A clip's own source of noise, on the CPU so that every device draws the same."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def denoise_video(
    pipe: FollowYourEmojiPipeline, video: Video, after_step: AfterStep, on_frames: Callable[[int], Any]
) -> Tensor:
    """Generate a video that fits in memory; `on_frames` hears how many frames were finished. -> [1, 4, F, h, w]."""
    store = ClipStore(video.plan)
    for clip in finish_clips(pipe, video, store, after_step):
        on_frames(len(clip.made))
    return store.read(range(video.frames))


def finish_clips(
    pipe: FollowYourEmojiPipeline, video: Video, store: ClipStore, after_step: AfterStep
) -> Iterator[PlannedClip]:
    """Yield every clip once the store holds it, generating those that it lacks."""
    conditions = None
    if pipe.session is not None:
        pipe.session.reset()  # a run that broke off leaves steps behind, which must not be taken for this one's
    for clip in video.plan:
        pictures, region = _clip_inputs(video, clip)
        digest = digest_of(pictures, region)
        if not store.holds(clip, digest):
            with torch.no_grad():
                if conditions is None:
                    guided = video.guidance_scale > 1
                    conditions = pipe.prepare_conditions(video.portrait, video.image_tokens, [], guided=guided)
                latents = make_clip(pipe, video, clip, conditions, pictures, region, store, after_step)
            if pipe.interrupt and store.resumable:
                raise Interrupted(f"interrupted in clip {clip.number + 1} of {len(video.plan)}")
            store.write(clip, latents, digest)
            del latents
        del pictures, region  # not held while the caller decodes, or beside the next clip's
        yield clip


def make_clip(
    pipe: FollowYourEmojiPipeline,
    video: Video,
    clip: PlannedClip,
    conditions: Conditions,
    pictures: np.ndarray,
    region: Tensor | None,
    store: ClipStore,
    after_step: AfterStep,
) -> Tensor:
    """Generate one clip. -> latents [n, 4, h, w] of the frames that it makes."""
    device, dtype, factor = pipe._execution_device, pipe.unet.dtype, pipe.vae_scale_factor
    scheduler, (height, width) = pipe.scheduler, pictures.shape[1:3]
    scheduler.set_timesteps(video.num_inference_steps, device=device)
    generator = clip_generator(video.seed, clip.number)
    shape = (1, pipe.vae.config["latent_channels"], len(clip.frames), height // factor, width // factor)
    noise = randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)
    given = _given_frames(clip, store, noise)

    def hold(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        latents = after_step(step, timestep, latents)
        last = step + 1 == len(scheduler.timesteps)
        return given.hold(latents, scheduler, None if last else scheduler.timesteps[step + 1])

    part = Clip(
        index=torch.arange(len(clip.frames), device=device),
        weights=torch.ones(len(clip.frames), device=device),
        landmark_features=pipe.encode_landmarks(pictures).to(dtype),
        region=None if region is None else region.to(device),
        given=given,
    )
    latents = given.hold(noise * scheduler.init_noise_sigma, scheduler, scheduler.timesteps[0])
    latents = pipe.denoise(latents, replace(conditions, clips=[part]), video.guidance_scale, generator, hold)
    return latents[0, :, ~given.mask].transpose(0, 1)


def describe(pipe: FollowYourEmojiPipeline, video: Video) -> dict[str, Any]:
    """Everything beside the frames' own inputs that decides the result, as JSON takes it."""
    session = pipe.session if pipe.session is not None and pipe.session.active else None
    tokens = video.image_tokens
    networks = ("vae", "image_encoder", "appearance_net", "unet", "landmark_encoder")
    return {
        "format": 1,
        "frames": video.frames,
        "size": f"{video.portrait.width} x {video.portrait.height}",
        "num_inference_steps": video.num_inference_steps,
        "guidance_scale": video.guidance_scale,
        "portrait": digest_of(np.asarray(video.portrait)),
        "image_tokens": None if tokens is None else digest_of(tokens.detach().float().cpu()),
        "model": digest_of_weights({name: pipe.components[name] for name in networks}),
        "scheduler": f"{type(pipe.scheduler).__name__} {dict(pipe.scheduler.config)}",
        "dtype": f"{pipe.unet.dtype}, {pipe.vae.dtype}",
        "device": torch.device(pipe._execution_device).type,
        "cache": None if session is None else str(session.config),
    }


def _stream(
    pipe: FollowYourEmojiPipeline,
    video: Video,
    store: WorkFolder,
    start: int,
    chunk: int,
    on_progress: Callable[[int, int], Any],
) -> Iterator[Tensor]:
    """Finish clip after clip, and decode frames as soon as all before them are there."""
    total, done, shown = video.frames, 0, 0
    waiting: set[int] = set()
    on_progress(0, total)
    for clip in finish_clips(pipe, video, store, lambda step, timestep, latents: latents):
        waiting.update(clip.made)
        done += len(clip.made)
        on_progress(done, total)
        stop = shown
        while stop in waiting:
            waiting.remove(stop)
            stop += 1
        for first in range(shown, stop, chunk):
            batch = range(first, min(first + chunk, stop))
            if batch.stop > start:  # batches are the same wherever a caller starts, so that frames are too
                for decoded in pipe.decode_frames(store.read(batch), chunk):
                    yield decoded[max(start - first, 0) :].cpu()
        shown = stop
    pipe.maybe_free_model_hooks()


def _given_frames(clip: PlannedClip, store: ClipStore, noise: Tensor) -> Given:
    """Read the latents of a clip's given frames."""
    mask = torch.tensor([frame in clip.given for frame in clip.frames], device=noise.device)
    latents = torch.zeros_like(noise)
    if clip.given:
        latents[:, :, mask] = store.read(clip.given).to(noise)
    return Given(latents=latents, noise=noise, mask=mask)


def _clip_inputs(video: Video, clip: PlannedClip) -> tuple[np.ndarray, Tensor | None]:
    """Landmark pictures [f, H, W, 3] and region [f, H', W'] of a clip. Raises UserError where sizes differ."""
    size = (video.portrait.height, video.portrait.width, 3)
    pictures = [np.asarray(video.landmarks(frame)) for frame in clip.frames]
    for frame, picture in zip(clip.frames, pictures, strict=True):
        if picture.shape != size or picture.dtype != np.uint8:
            raise UserError(
                f"the landmark picture of frame {frame} must be uint8 {list(size)} like the first, "
                f"got {picture.dtype} {list(picture.shape)}"
            )
    if video.region is None:
        return np.stack(pictures), None
    masks = [torch.as_tensor(video.region(frame)).to("cpu", torch.float32) for frame in clip.frames]
    return np.stack(pictures), torch.stack(masks)


def _by_index(source: Any) -> Callable[[int], Any]:
    return source if callable(source) else source.__getitem__


def _count_frames(landmarks: Any, frames: int | None) -> int:
    """The video's length: that of the landmarks, or of their first `frames`."""
    if callable(landmarks):
        if frames is None:
            raise UserError("frames must be set where landmarks is a function: how long is the video?")
        return frames
    count = len(landmarks)
    if not count:
        raise UserError("landmarks must have at least one picture, got none")
    if frames is not None and not 1 <= frames <= count:
        raise UserError(f"frames must be 1 to {count}, the landmark pictures at hand, got {frames}")
    return count if frames is None else frames

"""Long videos made progressively: keyframes first, then every gap with both its ends given, then the joints.

`generate` streams a video of any length in the memory of one clip, and goes on where a killed run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Generator, Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.sampling.clip_plan import PlannedClip, in_order, plan_clips
from fye_pipeline.sampling.clip_store import ClipStore, WorkFolder
from fye_pipeline.sampling.denoise import AfterStep, ClipMaker, Make, Video, clip_inputs, draw_seed
from fye_pipeline.sampling.identity import describe, digest_of
from fye_pipeline.sampling.inputs import as_picture, check_landmarks, letterbox

if TYPE_CHECKING:
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

CLIP_LENGTH = 16  # frames of the clips that the model is trained on


class Interrupted(RuntimeError):
    """`pipe._interrupt` was set: the finished clips are in the work folder, and the same call goes on from there."""


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
    joints: bool = True,
    region: Sequence[Any] | np.ndarray | Tensor | Callable[[int], np.ndarray | Tensor] | None = None,
    image_tokens: Tensor | None = None,
    start: int = 0,
    decode_chunk_size: int = 1,
    on_progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Iterator[Tensor]:
    """Animate `image` progressively. Yields its frames in order, float32 [n, 3, H, W] in [0, 1] on the CPU.

    Latents are written to `work_folder` clip by clip. The same call on the same folder goes on where the last one
    stopped, with the same result to the bit; other settings, weights or inputs are refused, and so is a second run at
    the same time. The folder may be deleted when the video is complete. Noise depends on the seed and the clip's place
    alone.

    landmarks, region: what `FollowYourEmojiPipeline` takes, or a function from a frame's index to its picture or mask,
        called for one clip at a time, and then with `frames`, the length of the video. They must give the same again.
    window: the most frames that the UNet sees together, 16 by default. joints: see `plan_clips`.
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
        plan=plan_video(pipe, count, window, joints=joints),
        seed=draw_seed(Generator().manual_seed(seed)),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    store = WorkFolder(
        work_folder,
        video.plan,
        describe(
            pipe,
            video.portrait,
            image_tokens,
            frames=count,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            window=window,
            joints=joints,
        ),
    )
    pipe._interrupt = False
    return _stream(pipe, video, store, start, decode_chunk_size, on_progress)


def plan_video(
    pipe: FollowYourEmojiPipeline, frames: int, window: int | None, *, joints: bool = True
) -> list[PlannedClip]:
    """Plan a video within what the UNet takes. Raises UserError for a UNet that cannot be given frames."""
    channels, limit = pipe.unet.config["in_channels"], pipe.unet.config["motion_max_seq_length"]
    if channels < 9:
        raise UserError(
            f"progressive generation needs a UNet of 9 input channels, which is given finished frames, "
            f"and this one has {channels}: use uniform or tiles."
        )
    return plan_clips(frames, length=window or clip_length(pipe), limit=limit, joints=joints)


def clip_length(pipe: FollowYourEmojiPipeline) -> int:
    """The length of clips where none is asked for: what the model is trained on, as far as the UNet takes it."""
    return min(CLIP_LENGTH, pipe.unet.config["motion_max_seq_length"])


def denoise_video(
    pipe: FollowYourEmojiPipeline, video: Video, after_step: AfterStep, on_frames: Callable[[int], Any]
) -> Tensor:
    """Generate a video that fits in memory; `on_frames` hears how many frames were finished. -> [1, 4, F, h, w]."""
    store = ClipStore(video.plan)
    for clip in finish_clips(pipe, video, store, ClipMaker(pipe, video, store, after_step)):
        on_frames(0 if clip.joint else len(clip.made))
    return store.read(range(video.frames))


def finish_clips(pipe: FollowYourEmojiPipeline, video: Video, store: ClipStore, make: Make) -> Iterator[PlannedClip]:
    """Yield every clip once the store holds it, making those that it lacks."""
    if pipe.session is not None:
        pipe.session.reset()  # a run that broke off leaves steps behind, which must not be taken for this one's
    for clip in video.plan:
        pictures, region = clip_inputs(video, clip)
        digest = digest_of(pictures, region)
        if not store.holds(clip, digest):
            latents, record = make(clip, pictures, region)
            if pipe.interrupt and store.resumable:
                raise Interrupted(f"interrupted in clip {clip.number + 1} of {len(video.plan)}")
            store.write(clip, latents, digest, record)
            del latents
        del pictures, region  # not held while the caller decodes, or beside the next clip's
        yield clip


def _stream(
    pipe: FollowYourEmojiPipeline,
    video: Video,
    store: WorkFolder,
    start: int,
    chunk: int,
    on_progress: Callable[[int, int], Any],
) -> Iterator[Tensor]:
    """Finish clip after clip, and decode frames as soon as all before them are there."""
    maker = ClipMaker(pipe, video, store, lambda step, timestep, latents: latents)
    done = 0
    on_progress(0, video.frames)
    try:
        for clip, ready in in_order(video.plan, finish_clips(pipe, video, store, maker)):
            done += 0 if clip.joint else len(clip.made)
            on_progress(done, video.frames)
            for first in range(ready.start, ready.stop, chunk):
                batch = range(first, min(first + chunk, ready.stop))
                if batch.stop > start:  # batches are the same wherever a caller starts, so that frames are too
                    for decoded in pipe.decode_frames(store.read(batch), chunk):
                        yield decoded[max(start - first, 0) :].cpu()
    finally:
        store.close()
    pipe.maybe_free_model_hooks()


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

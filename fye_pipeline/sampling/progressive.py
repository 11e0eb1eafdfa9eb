"""Long videos made progressively: keyframes first, then every gap with both its ends given, then the seams.

`generate` streams a video of any length in the memory of one clip, and goes on where a killed run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Generator, Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.media.image import letterbox
from fye_pipeline.models.denoising_unet import channels_for
from fye_pipeline.models.dilation import Dilation
from fye_pipeline.sampling.clip_plan import PlannedClip, ReadyFrames, plan_clips
from fye_pipeline.sampling.clip_store import ClipStore, WorkFolder, describe
from fye_pipeline.sampling.denoise import (
    AfterStep,
    Clip,
    Components,
    Conditions,
    Given,
    decode_frames,
    denoise,
    encode_bent,
    encode_landmarks,
    prepare_conditions,
)
from fye_pipeline.sampling.inputs import as_picture, check_landmarks
from fye_pipeline.storage.files import digest_of

CLIP_LENGTH = 16  # frames of the clips that the model is trained on


class Interrupted(RuntimeError):
    """`pipe._interrupt` was set: the finished clips are in the work folder, and the same call goes on from there."""


class ByFrame(Protocol):
    """What has one entry for each frame: a list, an array, or what works it out when it is asked."""

    def __getitem__(self, frame: int, /) -> Any: ...


@dataclass(frozen=True)
class Video:
    """What is generated. `landmarks`, `region` and `bent` give one frame's picture [H, W, 3], mask [H', W'] and
    bent portrait [H, W, 4] by its index."""

    portrait: Image.Image  # as large as the landmark pictures
    image_tokens: Tensor | None
    landmarks: ByFrame
    region: ByFrame | None
    bent: ByFrame | None
    plan: list[PlannedClip]
    seed: int
    num_inference_steps: int
    guidance_scale: float
    dilation: Dilation = "auto"

    @property
    def frames(self) -> int:
        """Frames of the whole video."""
        return self.plan[0].frames[-1] + 1  # the last frame is a keyframe of every level


@dataclass(frozen=True)
class ClipInputs:
    """A clip of the plan with what it is made from, and whether the store holds it already.

    pictures: landmarks, uint8 [f, H, W, 3]. region: [f, H', W']. bent: uint8 [f, H, W, 4]. digest: of all.
    """

    clip: PlannedClip
    pictures: np.ndarray
    region: Tensor | None
    bent: np.ndarray | None
    digest: str
    finished: bool


class ClipMaker:
    """Makes the clips of one video; the reference is encoded once, and again where the networks' numbers change.

    `after_step(step, timestep, latents)` may change the latents of a step.
    """

    def __init__(self, pipe: Components, video: Video, store: ClipStore, after_step: AfterStep) -> None:
        self._pipe, self._video, self._store, self._after_step = pipe, video, store, after_step
        self._conditions: Conditions | None = None
        self._dtype: torch.dtype | None = None

    @torch.no_grad()
    def __call__(self, inputs: ClipInputs) -> Tensor:
        """Latents [n, C, h, w] of the frames that the clip makes."""
        pipe, video, clip = self._pipe, self._video, inputs.clip
        device, dtype, factor = pipe._execution_device, pipe.unet.dtype, pipe.vae_scale_factor
        scheduler, (height, width) = pipe.scheduler, inputs.pictures.shape[1:3]
        conditions = self._encode()
        scheduler.set_timesteps(video.num_inference_steps, device=device)
        generator = clip_generator(video.seed, clip.number)
        shape = (1, pipe.vae.config["latent_channels"], len(clip.frames), height // factor, width // factor)
        noise = randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)
        given = _given_frames(clip, self._store, noise)

        part = Clip(
            index=torch.arange(len(clip.frames), device=device),
            weights=torch.ones(len(clip.frames), device=device),
            landmark_features=encode_landmarks(pipe, inputs.pictures).to(dtype),
            region=None if inputs.region is None else inputs.region.to(device),
            given=given,
            bent=encode_bent(pipe, inputs.bent),
        )
        # Given frames are noised as in training, whatever the samples begin from.
        latents = given.hold(noise * pipe.noise_scale * scheduler.init_noise_sigma, scheduler, scheduler.timesteps[0])
        conditions = replace(conditions, clips=[part])
        latents = denoise(pipe, latents, conditions, video.guidance_scale, generator, self._after_step)
        return latents[0, :, ~given.mask].transpose(0, 1)

    def _encode(self) -> Conditions:
        video, dtype = self._video, self._pipe.unet.dtype
        if self._conditions is None or self._dtype != dtype:
            guided = video.guidance_scale > 1
            options: Any = {"guided": guided, "dilation": video.dilation}
            self._conditions = prepare_conditions(self._pipe, video.portrait, video.image_tokens, [], **options)
            self._dtype = dtype
        return self._conditions


def generate(
    pipe: Components,
    image: Image.Image | np.ndarray,
    landmarks: Sequence[np.ndarray] | np.ndarray | Callable[[int], np.ndarray],
    *,
    work_folder: str | Path,
    frames: int | None = None,
    seed: int = 0,
    num_inference_steps: int = 30,
    guidance_scale: float = 3.5,
    window: int | None = None,
    seams: bool = True,
    dilation: Dilation = "auto",
    region: Sequence[Any] | np.ndarray | Tensor | Callable[[int], np.ndarray | Tensor] | None = None,
    bent: Sequence[np.ndarray] | np.ndarray | Callable[[int], np.ndarray] | None = None,
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

    landmarks, region, bent: what `FollowYourEmojiPipeline` takes, or a function from a frame's index to its picture,
        called for one clip at a time, and then with `frames`, the length of the video. They must give the same again.
    window: the most frames that the UNet sees together, 16 by default. seams: see `plan_clips`.
    dilation: as for the pipeline. start: frames that the caller already has; they are not decoded again.
    on_progress(done, total): frames whose latents are finished, after every clip.
    Raises UserError on inputs that do not fit, before anything is generated; Interrupted when `pipe._interrupt` is set.
    """
    count, window = _count_frames(landmarks, frames), window or clip_length(pipe)
    given: tuple[tuple[str, str, Any], ...] = (("region", "mask", region), ("bent", "picture", bent))
    for name, what, source in given:
        if source is not None and not callable(source) and len(source) < count:
            raise UserError(f"{name} must have one {what} for each of the {count} frames, got {len(source)}")
    drawn = by_frame(landmarks)
    first = check_landmarks(np.asarray(drawn[0])[None], pipe.vae_scale_factor)
    video = Video(
        portrait=letterbox(as_picture(image), *first.shape[2:0:-1]),
        image_tokens=image_tokens,
        landmarks=drawn,
        region=None if region is None else by_frame(region),
        bent=None if bent is None else by_frame(bent),
        plan=plan_video(pipe, count, window, seams=seams),
        seed=draw_seed(Generator().manual_seed(seed)),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        dilation=dilation,
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
            seams=seams,
            dilation=dilation,
        ),
    )
    pipe._interrupt = False
    return _stream(pipe, video, store, start, decode_chunk_size, on_progress)


def plan_video(pipe: Components, frames: int, window: int | None, *, seams: bool = True) -> list[PlannedClip]:
    """Plan a video within what the UNet takes. Raises UserError for a UNet that cannot be given frames."""
    unet, limit = pipe.unet, pipe.unet.config["motion_max_seq_length"]
    if not unet.takes_frames:
        needed = channels_for(2, unet.config["out_channels"])
        raise UserError(
            f"progressive generation needs a UNet of {needed} input channels, which is given finished frames, "
            f"and this one has {unet.config['in_channels']}: use uniform or tiles."
        )
    return plan_clips(frames, length=window or clip_length(pipe), limit=limit, seams=seams)


def clip_length(pipe: Components) -> int:
    """The length of clips where none is asked for: what the model is trained on, as far as the UNet takes it."""
    return min(CLIP_LENGTH, pipe.unet.config["motion_max_seq_length"])


def denoise_video(pipe: Components, video: Video, after_step: AfterStep, on_frames: Callable[[int], Any]) -> Tensor:
    """Generate a video that fits in memory; `on_frames` hears how many frames were finished. -> [1, C, F, h, w]."""
    store = ClipStore(video.plan)
    for clip in finish_clips(pipe, video, store, after_step):
        on_frames(0 if clip.seam else len(clip.made))
    return store.read(range(video.frames))


def finish_clips(pipe: Components, video: Video, store: ClipStore, after_step: AfterStep) -> Iterator[PlannedClip]:
    """Yield every clip once the store holds it, making those that it lacks."""
    maker = ClipMaker(pipe, video, store, after_step)
    for inputs in clip_inputs(pipe, video, store):
        if not inputs.finished:
            keep_clip(pipe, store, inputs, maker(inputs))
        clip = inputs.clip
        del inputs  # not held while the caller decodes, or beside the next clip's
        yield clip


def clip_inputs(pipe: Components, video: Video, store: ClipStore) -> Iterator[ClipInputs]:
    """Yield the clips of the plan one after the other; each must be finished before the next is asked for.

    Raises UserError where landmark pictures differ in size.
    """
    if pipe.session is not None:
        pipe.session.reset()  # a run that broke off leaves steps behind, which must not be taken for this one's
    for clip in video.plan:
        yield _inputs_of(clip, video, store)


def keep_clip(pipe: Components, store: ClipStore, inputs: ClipInputs, latents: Tensor, record: Any = None) -> None:
    """Give the store what a clip made, [n, C, h, w]. Raises Interrupted where the run was told to stop within it."""
    if pipe._interrupt and store.resumable:
        raise Interrupted(f"interrupted in clip {inputs.clip.number + 1}: the clips before it are kept")
    store.write(inputs.clip, latents, inputs.digest, record)


def _inputs_of(clip: PlannedClip, video: Video, store: ClipStore) -> ClipInputs:
    pictures = np.stack([_picture_of(video, "landmarks", frame) for frame in clip.frames])
    masks = [] if video.region is None else [torch.as_tensor(video.region[frame]) for frame in clip.frames]
    region = torch.stack([mask.to("cpu", torch.float32) for mask in masks]) if masks else None
    bent = None if video.bent is None else np.stack([_picture_of(video, "bent", frame) for frame in clip.frames])
    digest = digest_of(pictures, region) if bent is None else digest_of(pictures, region, bent)
    return ClipInputs(clip, pictures, region, bent, digest, store.holds(clip, digest))


def _picture_of(video: Video, kind: Literal["landmarks", "bent"], frame: int) -> np.ndarray:
    """One frame's landmark picture [H, W, 3] or bent portrait [H, W, 4]. Raises UserError for another size or type."""
    picture = np.asarray(getattr(video, kind)[frame])
    channels, name = (3, "landmark picture") if kind == "landmarks" else (4, "bent portrait")
    size = (video.portrait.height, video.portrait.width, channels)
    if picture.shape != size or picture.dtype != np.uint8:
        raise UserError(
            f"the {name} of frame {frame} must be uint8 {list(size)} like the first landmark picture, "
            f"got {picture.dtype} {list(picture.shape)}"
        )
    return picture


def _stream(
    pipe: Components,
    video: Video,
    store: WorkFolder,
    start: int,
    chunk: int,
    on_progress: Callable[[int, int], Any],
) -> Iterator[Tensor]:
    """Finish clip after clip, and decode frames as soon as all before them are there."""
    done = 0
    on_progress(0, video.frames)
    try:
        order = ReadyFrames(video.plan)
        for clip in finish_clips(pipe, video, store, _unchanged):
            ready = order.after(clip)
            done += 0 if clip.seam else len(clip.made)
            on_progress(done, video.frames)
            for first in range(ready.start, ready.stop, chunk):
                batch = range(first, min(first + chunk, ready.stop))
                if batch.stop > start:  # batches are the same wherever a caller starts, so that frames are too
                    for decoded in decode_frames(pipe, store.read(batch), chunk):
                        yield decoded[max(start - first, 0) :].cpu()
    finally:
        store.close()
    pipe.maybe_free_model_hooks()


def _unchanged(_step: int, _timestep: Tensor, latents: Tensor) -> Tensor:
    return latents


class _Computed:
    """A function of the frame's index, as a `ByFrame`."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self._function = function

    def __getitem__(self, frame: int) -> Any:
        return self._function(frame)


def by_frame(source: Any) -> ByFrame:
    """A list or an array as it is, or a function of the frame's index as if it were one."""
    return _Computed(source) if callable(source) else source


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


def _given_frames(clip: PlannedClip, store: ClipStore, noise: Tensor) -> Given:
    """Read the latents of a clip's given frames."""
    mask = torch.tensor([frame in clip.given for frame in clip.frames], device=noise.device)
    latents = torch.zeros_like(noise)
    if clip.given:
        latents[:, :, mask] = store.given(clip.given).to(noise)
    return Given(latents=latents, noise=noise, mask=mask)

"""One clip of a progressive video: its noise, the frames that it is given, and its way through the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Generator, Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.sampling.clip_plan import PlannedClip
from fye_pipeline.sampling.clip_store import ClipStore, Record
from fye_pipeline.sampling.clips import Clip, Conditions, Given

if TYPE_CHECKING:
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

AfterStep = Callable[[int, Tensor, Tensor], Tensor]
Make = Callable[[PlannedClip, np.ndarray, Tensor | None], tuple[Tensor, Record | None]]


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
        return self.plan[0].frames[-1] + 1  # the last frame is a keyframe of every level


class ClipMaker:
    """Makes the clips of one video; the reference is encoded once, and again where the networks' numbers change.

    Called with a clip, its landmark pictures [f, H, W, 3] and its region [f, H', W'] -> latents [n, 4, h, w] of the
    frames that it makes, and no record. `after_step(step, timestep, latents)` may change the latents of a step.
    """

    def __init__(self, pipe: FollowYourEmojiPipeline, video: Video, store: ClipStore, after_step: AfterStep) -> None:
        self._pipe, self._video, self._store, self._after_step = pipe, video, store, after_step
        self._conditions: Conditions | None = None
        self._dtype: torch.dtype | None = None

    @torch.no_grad()
    def __call__(self, clip: PlannedClip, pictures: np.ndarray, region: Tensor | None) -> tuple[Tensor, None]:
        pipe, video, dtype = self._pipe, self._video, self._pipe.unet.dtype
        device, factor = pipe._execution_device, pipe.vae_scale_factor
        scheduler, (height, width) = pipe.scheduler, pictures.shape[1:3]
        conditions = self._encode()
        scheduler.set_timesteps(video.num_inference_steps, device=device)
        generator = clip_generator(video.seed, clip.number)
        shape = (1, pipe.vae.config["latent_channels"], len(clip.frames), height // factor, width // factor)
        noise = randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)
        given = _given_frames(clip, self._store, noise)

        def hold(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            latents = self._after_step(step, timestep, latents)
            last = step + 1 == len(scheduler.timesteps)
            return given.hold(latents, scheduler, None if last else scheduler.timesteps[step + 1])

        part = Clip(
            index=torch.arange(len(clip.frames), device=device),
            weights=torch.ones(len(clip.frames), device=device),
            landmark_features=pipe.encode_landmarks(pictures).to(dtype),
            region=None if region is None else region.to(device),
            given=given,
        )
        # Given frames are noised as in training, whatever the samples begin from.
        latents = given.hold(noise * pipe.noise_scale * scheduler.init_noise_sigma, scheduler, scheduler.timesteps[0])
        latents = pipe.denoise(latents, replace(conditions, clips=[part]), video.guidance_scale, generator, hold)
        return latents[0, :, ~given.mask].transpose(0, 1), None

    def _encode(self) -> Conditions:
        dtype = self._pipe.unet.dtype
        if self._conditions is None or self._dtype != dtype:
            video = self._video
            guided = video.guidance_scale > 1
            self._conditions = self._pipe.prepare_conditions(video.portrait, video.image_tokens, [], guided=guided)
            self._dtype = dtype
        return self._conditions


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


def clip_inputs(video: Video, clip: PlannedClip) -> tuple[np.ndarray, Tensor | None]:
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


def _given_frames(clip: PlannedClip, store: ClipStore, noise: Tensor) -> Given:
    """Read the latents of a clip's given frames."""
    mask = torch.tensor([frame in clip.given for frame in clip.frames], device=noise.device)
    latents = torch.zeros_like(noise)
    if clip.given:
        latents[:, :, mask] = store.given(clip.given).to(noise)
    return Given(latents=latents, noise=noise, mask=mask)

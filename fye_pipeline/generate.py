"""A video from a portrait and landmarks, part by part, and what is done when memory or range runs out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fye_pipeline import regions
from fye_pipeline.console import OnProgress
from fye_pipeline.errors import UserError
from fye_pipeline.inputs import OnNote
from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.models.recipe import recommended_guidance
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.settings import AnimationSettings

OVERLAP = 8  # frames that two parts share; there the one fades into the other
_WORTH_SAYING = 120.0  # seconds


@dataclass(frozen=True)
class Run:
    """One pass over one part: latents [1, 4, F, h, w], seconds of encoding and denoising, the cache's report."""

    latents: Tensor
    seconds: float
    report: Any | None


@dataclass(frozen=True)
class Job:
    """A loaded model with everything a run needs: cached and uncached runs differ in nothing but the cache.

    square: what the model sees of the portrait, uint8 [S', S', 3]. landmarks: [F, 478, 3] in it, 0..1. size: pixels a
    side of the result.
    """

    pipe: FollowYourEmojiPipeline
    settings: AnimationSettings
    square: NDArray[np.uint8]
    landmarks: NDArray
    size: int
    on_progress: OnProgress
    on_note: OnNote

    def __len__(self) -> int:
        return len(self.landmarks)

    def pictures(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The landmark pictures of some frames, uint8 [F, size, size, 3]."""
        return draw_sequence(self.landmarks[start:stop], self.size)

    def run(self, start: int, stop: int, *, cached: bool, stage: str) -> Run:
        """Denoise a part; once more in float32 where half precision overflows, or with less memory where it runs out.

        Raises:
            UserError: out of memory a second time.
        """
        part = (start, stop, cached, stage)
        try:
            run = self._denoise(*part)
        except torch.OutOfMemoryError:
            self.on_note("out of GPU memory: trying once more with the parts of the model moved in one by one")
            self._make_room()
            try:
                run = self._denoise(*part)
            except torch.OutOfMemoryError as error:
                raise UserError("Out of GPU memory: use a smaller --chunk or --size, or --device cpu.") from error
        if not run.latents.isfinite().all() and self.pipe.unet.dtype != torch.float32:
            self.on_note(f"{_name(self.pipe.unet.dtype)} overflowed: this is done again in float32")
            self.pipe.to(dtype=torch.float32)
            run = self._denoise(*part)
        return run

    def decode(self, run: Run) -> Iterator[NDArray[np.float32]]:
        """Decode a run frame by frame. Yields [H, W, 3] in [0, 1]; only the frame at hand is held."""
        for index in range(run.latents.shape[2]):
            latents = run.latents[:, :, index : index + 1]
            (frame,) = next(self.pipe.decode_frames(latents))
            if not frame.isfinite().all() and self.pipe.vae.dtype != torch.float32:
                self.on_note(f"{_name(self.pipe.vae.dtype)} overflowed in decoding: it goes on in float32")
                torch.nn.Module.to(self.pipe.vae, torch.float32)
                (frame,) = next(self.pipe.decode_frames(latents))
            yield frame.permute(1, 2, 0).cpu().numpy()

    def _denoise(self, start: int, stop: int, cached: bool, stage: str) -> Run:
        """One pass; the cache is on the UNet for its length only."""
        settings, pipe, landmarks = self.settings, self.pipe, self.landmarks[start:stop]
        guidance = recommended_guidance(settings.model) if settings.guidance is None else settings.guidance
        session = pipe.enable_cache(**settings.cache) if cached and settings.cache is not None else None
        region = None
        if cached:
            masks = (regions.expression_mask, regions.facial_mask)
            region = np.maximum(*(mask(landmarks, self.size, self.size) for mask in masks))
        began = time.perf_counter()

        def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 0 and start == 0:
                self._estimate((time.perf_counter() - began) * settings.steps * len(self) / (stop - start), stage)
            self.on_progress(stage, step + 1, settings.steps)
            return {}

        try:
            self.on_progress(stage, 0, settings.steps)
            (latents,) = pipe(
                Image.fromarray(self.square),
                self.pictures(start, stop),
                num_inference_steps=settings.steps,
                guidance_scale=guidance,
                long=settings.long,
                region=region,
                generator=torch.Generator("cpu").manual_seed(settings.seed),
                output_type="latent",
                callback_on_step_end=step_done,
                return_dict=False,
            )
            seconds = time.perf_counter() - began
            return Run(latents, seconds, None if session is None else session.report())
        finally:
            if session is not None:
                pipe.disable_cache()

    def _estimate(self, seconds: float, stage: str) -> None:
        if seconds >= _WORTH_SAYING:
            self.on_note(f"{stage} {len(self)} frames takes at most about {seconds / 60:.0f} minutes")

    def _make_room(self) -> None:
        if self.pipe.device.type == "cuda":
            self.pipe.enable_model_cpu_offload()
            torch.cuda.empty_cache()


@dataclass
class Take:
    """A job carried out, with the cache or without: its frames come one by one, and memory does not grow with them.

    seconds: encoding and denoising so far. report: the cache's, of the last part.
    """

    job: Job
    cached: bool
    stage: str = "denoising"
    seconds: float = 0.0
    report: Any | None = field(default=None)

    def frames(self) -> Iterator[NDArray[np.float32]]:
        """Yields [H, W, 3] in [0, 1]; where two parts overlap, the earlier fades into the later."""
        total = len(self.job)
        tail: list[NDArray[np.float32]] = []
        done = 0
        for start, stop in plan_parts(total, self.job.settings.chunk, OVERLAP):
            run = self.job.run(start, stop, cached=self.cached, stage=self.stage)
            self.seconds += run.seconds
            self.report = run.report
            before, tail = tail, []
            for offset, frame in enumerate(self.job.decode(run)):
                if offset < len(before):
                    share = np.float32((offset + 1) / (len(before) + 1))
                    frame = (before[offset] + share * (frame - before[offset])).astype(np.float32)
                if stop < total and start + offset >= stop - OVERLAP:
                    tail.append(frame)
                    continue
                done += 1
                self.job.on_progress("decoding", done, total)
                yield frame


def plan_parts(frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """Parts (first, one past the last) of at most `length` frames, each sharing `overlap` with the one before."""
    parts = [(0, min(length, frames))]
    while parts[-1][1] < frames:
        start = parts[-1][1] - overlap
        parts.append((start, min(start + length, frames)))
    return parts


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""One pass of the model over a portrait and its landmark pictures, and what is done when memory or range runs out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fye_pipeline.console import OnProgress
from fye_pipeline.errors import UserError
from fye_pipeline.inputs import OnNote
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.settings import AnimationSettings


@dataclass(frozen=True)
class Run:
    """One pass: latents [1, 4, F, h, w], seconds of encoding and denoising, the cache's report."""

    latents: Tensor
    seconds: float
    report: Any | None


@dataclass(frozen=True)
class Job:
    """A loaded model with everything a run needs: cached and uncached runs differ in nothing but the cache."""

    pipe: FollowYourEmojiPipeline
    settings: AnimationSettings
    square: NDArray[np.uint8]
    pictures: NDArray[np.uint8]
    region: NDArray[np.float32]

    def run(self, *, cached: bool, on_progress: OnProgress, on_note: OnNote, stage: str = "denoising") -> Run:
        """Denoise; once more in float32 where half precision overflows, once more with less memory where it runs out.

        Raises:
            UserError: out of memory a second time.
        """
        try:
            run = self._denoise(cached, on_progress, stage)
        except torch.OutOfMemoryError:
            on_note("out of GPU memory: trying once more with the parts of the model moved in one by one")
            self._make_room()
            try:
                run = self._denoise(cached, on_progress, stage)
            except torch.OutOfMemoryError as error:
                raise UserError("Out of GPU memory: use a smaller --size, fewer --frames, or --device cpu.") from error
        if not run.latents.isfinite().all() and self.pipe.unet.dtype != torch.float32:
            on_note(f"{_name(self.pipe.unet.dtype)} overflowed: this is done again in float32")
            self.pipe.to(dtype=torch.float32)
            run = self._denoise(cached, on_progress, stage)
        return run

    def frames(self, run: Run, on_progress: OnProgress, on_note: OnNote) -> Iterator[NDArray[np.float32]]:
        """Decode a run frame by frame. Yields [H, W, 3] in [0, 1]; only the frame at hand is held."""
        count = run.latents.shape[2]
        for index in range(count):
            latents = run.latents[:, :, index : index + 1]
            (frame,) = next(self.pipe.decode_frames(latents))
            if not frame.isfinite().all() and self.pipe.vae.dtype != torch.float32:
                on_note(f"{_name(self.pipe.vae.dtype)} overflowed in decoding: it goes on in float32")
                self.pipe.vae.to(dtype=torch.float32)
                (frame,) = next(self.pipe.decode_frames(latents))
            yield frame.permute(1, 2, 0).cpu().numpy()
            on_progress("decoding", index + 1, count)

    def _denoise(self, cached: bool, on_progress: OnProgress, stage: str) -> Run:
        """One pass; the cache is on the UNet for its length only."""
        settings, pipe = self.settings, self.pipe
        session = pipe.enable_cache(**settings.cache) if cached and settings.cache is not None else None

        def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_progress(stage, step + 1, settings.steps)
            return {}

        try:
            on_progress(stage, 0, settings.steps)
            began = time.perf_counter()
            (latents,) = pipe(
                Image.fromarray(self.square),
                self.pictures,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                long=settings.long,
                region=self.region if cached else None,
                generator=torch.Generator("cpu").manual_seed(settings.seed),
                output_type="latent",
                callback_on_step_end=step_done,
                return_dict=False,
            )
            return Run(latents, time.perf_counter() - began, None if session is None else session.report())
        finally:
            if session is not None:
                pipe.disable_cache()

    def _make_room(self) -> None:
        if self.pipe.device.type == "cuda":
            self.pipe.enable_model_cpu_offload()
            torch.cuda.empty_cache()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

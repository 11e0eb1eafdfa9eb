"""A loaded model with the inputs of one animation, and what is done when memory or range runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import OnNote
from fye_pipeline.animate.machine import tile_vae
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks import masks as regions
from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.landmarks.retargeting import Motion
from fye_pipeline.models.recipe import recommended_guidance
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import OnProgress


@dataclass(frozen=True)
class Run:
    """One pass over some frames: its latents, seconds of encoding and denoising, the cache's report."""

    latents: Tensor
    seconds: float
    report: Any | None


@dataclass(frozen=True)
class Job:
    """A loaded model with everything a run needs: cached and uncached runs differ in nothing but the cache.

    square: what the model sees of the portrait, uint8 [S', S', 3]. motion: the landmarks in it. size: pixels a side of
    the result. dtype: the numbers that the networks were loaded in.
    """

    pipe: FollowYourEmojiPipeline
    settings: AnimationSettings
    square: NDArray[np.uint8]
    motion: Motion
    size: int
    dtype: torch.dtype
    on_progress: OnProgress
    on_note: OnNote

    def __len__(self) -> int:
        return len(self.motion)

    @property
    def guidance(self) -> float:
        """What was asked for, else what the model was tuned for."""
        settings = self.settings
        return recommended_guidance(settings.model) if settings.guidance is None else settings.guidance

    @property
    def long(self) -> str:
        """How more frames than a clip are made: what was asked for, else progressively where the model can."""
        if self.settings.long != "auto":
            return self.settings.long
        return "progressive" if self.pipe.unet.config["in_channels"] >= 9 else "tiles"

    def pictures(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The landmark pictures of some frames, uint8 [F, size, size, 3]."""
        return draw_sequence(self.motion[start:stop], self.size)

    def region(self, start: int, stop: int) -> NDArray[np.float32]:
        """Where expression and face are in some frames, [F, size, size], for the cache."""
        landmarks = self.motion[start:stop]
        masks = (regions.expression_mask, regions.facial_mask)
        return np.maximum(*(mask(landmarks, self.size, self.size) for mask in masks))

    def run(self, attempt: Callable[[], Tensor], *, cached: bool) -> Run:
        """Denoise; once more in float32 where half precision overflows, or with less memory where it runs out.

        Raises:
            UserError: out of memory a second time.
        """
        try:
            run = self._denoise(attempt, cached)
        except torch.OutOfMemoryError:
            self.on_note("out of GPU memory: trying once more with the parts of the model moved in one by one")
            self._make_room()
            try:
                run = self._denoise(attempt, cached)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "Out of GPU memory: use --offload sequential, a smaller --size or --chunk, or --device cpu."
                ) from error
        if not run.latents.isfinite().all() and self.pipe.unet.dtype != torch.float32:
            self.on_note(f"{_name(self.pipe.unet.dtype)} overflowed: this is done again in float32")
            self.pipe.to(dtype=torch.float32)
            run = self._denoise(attempt, cached)
        return run

    def decode(self, latents: Tensor) -> Iterator[NDArray[np.float32]]:
        """Decode [1, 4, F, h, w] frame by frame. Yields [H, W, 3] in [0, 1]; only the frame at hand is held."""
        for index in range(latents.shape[2]):
            part = latents[:, :, index : index + 1]
            frame = self._decoded(part)
            if not frame.isfinite().all() and self.pipe.vae.dtype != torch.float32:
                self.on_note(f"{_name(self.pipe.vae.dtype)} overflowed in decoding: it goes on in float32")
                torch.nn.Module.to(self.pipe.vae, torch.float32)
                frame = self._decoded(part)
            yield frame.permute(1, 2, 0).cpu().numpy()

    def _decoded(self, part: Tensor) -> Tensor:
        """Decode one frame, [1, 4, 1, h, w] -> [3, H, W]; in four tiles from when memory has run out.

        Raises:
            UserError: out of memory in spite of that.
        """
        try:
            (frame,) = next(self.pipe.decode_frames(part))
        except torch.OutOfMemoryError:
            self.on_note("out of GPU memory in decoding: it goes on in tiles")
            cell = self.pipe.vae_scale_factor
            tile_vae(self.pipe, max(self.size // 2 // cell, 1) * cell)
            self._make_room()
            try:
                (frame,) = next(self.pipe.decode_frames(part))
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "Out of GPU memory in decoding: use --offload model, a smaller --size, or --device cpu."
                ) from error
        return frame

    def _denoise(self, attempt: Callable[[], Tensor], cached: bool) -> Run:
        """One pass; the cache is on the UNet for its length only."""
        pipe, cache = self.pipe, self.settings.cache if cached else None
        session = None if cache is None else pipe.enable_cache(**cache)
        began = time.perf_counter()
        try:
            latents = attempt()
            seconds = time.perf_counter() - began
            return Run(latents, seconds, None if session is None else session.report())
        finally:
            if session is not None:
                pipe.disable_cache()

    def empty_report(self) -> Any:
        """A report of the cache before its first run."""
        report = self.pipe.enable_cache(**(self.settings.cache or {})).report()
        self.pipe.disable_cache()
        return report

    def _make_room(self) -> None:
        """Leave on the GPU what is needed at a time only: a network, or, where that is so already, a layer."""
        if self.pipe._execution_device.type != "cuda":
            return
        offloaded = self.pipe.device.type != "cuda"
        (self.pipe.enable_sequential_cpu_offload if offloaded else self.pipe.enable_model_cpu_offload)()
        torch.cuda.empty_cache()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

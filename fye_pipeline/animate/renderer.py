"""The model with the inputs of one animation, and its frames: clips finished one by one, kept, shown in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.detail import BentPortraits, with_detail
from fye_pipeline.animate.session import recommended_guidance, tile_vae
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import draw_sequence, face_region
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks
from fye_pipeline.media.image import letterbox
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import FrameProgress, OnProgress, logger
from fye_pipeline.sampling.clip_plan import PlannedClip, ReadyFrames
from fye_pipeline.sampling.clip_store import ClipStore, Record, WorkFolder, describe
from fye_pipeline.sampling.denoise import AfterStep, decode_frames
from fye_pipeline.sampling.progressive import ClipMaker, Video, by_frame, clip_inputs, draw_seed, keep_clip, plan_video
from fye_pipeline.storage.files import digest_of

OVERLAP = 8  # frames that two parts share; there the one fades into the other
_OVERFLOWED = "float32"  # a mark in the work folder: half precision was given up
_SUMS = ("full_calls", "predicted_calls", "flops_full", "flops_run", "flops_saved", "macs_saved", "seconds_run")


@dataclass(frozen=True)
class RenderContext:
    """A loaded model with everything a run needs: cached and uncached runs differ in nothing but the cache.

    square: what the model sees of the portrait, uint8 [S', S', 3]. landmarks: those of every frame in it. size: pixels
    a side that the model works at. dtype: the numbers that the networks were loaded in. bent: the portrait bent to each
    frame, for a model that takes it. sharp: the square at the resolution of the result, uint8 [S, S, 3], where detail
    is laid over the model's frames.
    """

    pipe: FollowYourEmojiPipeline
    settings: AnimationSettings
    square: NDArray[np.uint8]
    landmarks: RetargetedLandmarks
    size: int
    dtype: torch.dtype
    on_progress: OnProgress
    bent: BentPortraits | None = None
    sharp: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def side(self) -> int:
        """Pixels a side of the frames."""
        return self.size if self.sharp is None else len(self.sharp)

    def finish(self, frame: int, made: NDArray[np.float32]) -> NDArray[np.float32]:
        """A model's frame with the portrait's detail, where it was asked for. [size, size, 3] -> [side, side, 3]."""
        if self.bent is None or self.sharp is None:
            return made
        return with_detail(self.pipe, made, self.bent, frame, self.sharp)

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
        return "progressive" if self.pipe.unet.takes_frames else "tiles"

    @property
    def cache_identity(self) -> str | None:
        """What the cache will really do: the schedule that a preset stands for today, and not its name."""
        if self.settings.cache is None:
            return None
        config = self.pipe.enable_cache(**self.settings.cache).config
        self.pipe.disable_cache()
        return config.to_json()

    def empty_report(self) -> Any:
        """A report of the cache before its first run."""
        report = self.pipe.enable_cache(**(self.settings.cache or {})).report()
        self.pipe.disable_cache()
        return report

    def pictures(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The landmark pictures of some frames, uint8 [F, size, size, 3]."""
        return draw_sequence(self.landmarks[start:stop], self.size)

    def region(self, start: int, stop: int) -> NDArray[np.float32]:
        """Where expression and face are in some frames, [F, size, size], for the cache."""
        return face_region(self.landmarks[start:stop], self.size, self.size)

    def run(self, attempt: Callable[[], Tensor], *, cached: bool) -> tuple[Tensor, Record]:
        """Denoise; once more in float32 where half precision overflows, or with less memory where it runs out.

        Raises:
            UserError: out of memory a second time.
        """
        try:
            latents, record = self._denoise(attempt, cached)
        except torch.OutOfMemoryError:
            logger.info("out of GPU memory: trying once more with the parts of the model moved in one by one")
            self._make_room()
            try:
                latents, record = self._denoise(attempt, cached)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "Out of GPU memory: use --offload sequential, a smaller --size or --chunk, or --device cpu."
                ) from error
        if not latents.isfinite().all() and self.pipe.unet.dtype != torch.float32:
            logger.info(f"{_name(self.pipe.unet.dtype)} overflowed: this is done again in float32")
            self.pipe.to(dtype=torch.float32)
            latents, record = self._denoise(attempt, cached)
        return latents, record

    @cached_property
    def _device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.pipe._execution_device

    def decode(self, latents: Tensor) -> Iterator[NDArray[np.float32]]:
        """Decode [1, C, F, h, w] frame by frame. Yields [H, W, 3] in [0, 1]; only the frame at hand is held."""
        for index in range(latents.shape[2]):
            part = latents[:, :, index : index + 1]
            frame = self._decoded(part)
            if not frame.isfinite().all() and self.pipe.vae.dtype != torch.float32:
                logger.info(f"{_name(self.pipe.vae.dtype)} overflowed in decoding: it goes on in float32")
                torch.nn.Module.to(self.pipe.vae, torch.float32)
                frame = self._decoded(part)
            yield frame.permute(1, 2, 0).cpu().numpy()

    def _decoded(self, part: Tensor) -> Tensor:
        """Decode one frame, [1, C, 1, h, w] -> [3, H, W]; in four tiles from when memory has run out.

        Raises:
            UserError: out of memory in spite of that.
        """
        try:
            (frame,) = next(decode_frames(self.pipe, part, device=self._device))
        except torch.OutOfMemoryError:
            logger.info("out of GPU memory in decoding: it goes on in tiles")
            cell = self.pipe.vae_scale_factor
            tile_vae(self.pipe, max(self.size // 2 // cell, 1) * cell)
            self._make_room()
            try:
                (frame,) = next(decode_frames(self.pipe, part, device=self._device))
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "Out of GPU memory in decoding: use --offload model, a smaller --size, or --device cpu."
                ) from error
        return frame

    def _denoise(self, attempt: Callable[[], Tensor], cached: bool) -> tuple[Tensor, Record]:
        """One pass; the cache is on the UNet for its length only."""
        pipe, cache = self.pipe, self.settings.cache if cached else None
        session = None if cache is None else pipe.enable_cache(**cache)
        began = time.perf_counter()
        try:
            latents = attempt()
            seconds = time.perf_counter() - began
            return latents, {"seconds": seconds, "report": None if session is None else session.report().to_dict()}
        finally:
            if session is not None:
                pipe.disable_cache()

    def _make_room(self) -> None:
        """Leave on the GPU what is needed at a time only: a network, or, where that is so already, a layer."""
        if self.pipe._execution_device.type != "cuda":
            return
        offloaded = self.pipe.device.type != "cuda"
        (self.pipe.enable_sequential_cpu_offload if offloaded else self.pipe.enable_model_cpu_offload)()
        torch.cuda.empty_cache()


@dataclass
class RunStatistics:
    """Adds up the records of clips, each `{"seconds": ..., "report": what the cache's report gives as a dict}`."""

    seconds: float = 0.0
    _clips: int = 0
    _last: dict[str, Any] = field(default_factory=dict)
    _sums: Counter[str] = field(default_factory=Counter)
    _peak: int = 0
    _fallbacks: dict[str, Counter[str]] = field(
        default_factory=lambda: {"fallbacks": Counter(), "unattributed": Counter()}
    )
    _full: float = 0.0  # seconds of all full calls, each at its clip's mean
    _notes: dict[str, None] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """One clip more."""
        self.seconds += record.get("seconds", 0.0)
        values = record.get("report")
        if values is None:
            return
        self._clips += 1
        self._last = values
        self._sums.update({name: values[name] for name in _SUMS})
        self._peak = max(self._peak, values["peak_bytes"])
        self._full += (values["seconds_full"] or 0.0) * values["full_calls"]
        for name, counts in self._fallbacks.items():
            counts.update(values[name])
        self._notes.update(dict.fromkeys(values["notes"]))

    def report(self, empty: Any) -> Any:
        """The figures of all clips as one report of `empty`'s kind."""
        if not self._clips:
            return empty
        sums = dict(self._sums)
        full, predicted = sums["full_calls"], sums["predicted_calls"]
        mean_full = self._full / full if full else None
        mean_predicted = (sums["seconds_run"] - self._full) / predicted if predicted else None
        notes = list(self._notes)
        if self._clips > 1:
            notes.append(f"these are the figures of {self._clips} clips together; steps are those of the last")
        return replace(
            empty,
            values=self._last
            | sums
            | {name: dict(counts) for name, counts in self._fallbacks.items()}
            | {
                "runs": self._clips,
                "total_full_calls": full,
                "total_predicted_calls": predicted,
                "flops_ratio": sums["flops_full"] / sums["flops_run"] if sums["flops_run"] else None,
                "seconds_full": mean_full,
                "seconds_predicted": mean_predicted,
                "speedup": mean_full * (full + predicted) / sums["seconds_run"] if mean_full and predicted else None,
                "peak_bytes": self._peak,
                "notes": notes,
            },
        )


@dataclass
class Renderer:
    """One pass over the frames, with the cache or without; they come one by one, and memory does not grow with them.

    folder: where finished clips are kept, so that a killed run goes on; None keeps them in memory.
    statistics: of all clips, also those that an earlier process finished.
    """

    context: RenderContext
    cached: bool
    stage: str = "denoising"
    folder: Path | None = None
    statistics: RunStatistics = field(default_factory=RunStatistics)

    @property
    def report(self) -> Any | None:
        """The cache's figures over all clips; None without a cache."""
        return (
            self.statistics.report(self.context.empty_report()) if self.cached and self.context.settings.cache else None
        )

    def frames(self) -> Iterator[NDArray[np.float32]]:
        """Yields [H, W, 3] in [0, 1]."""
        made = self._progressive() if self.context.long == "progressive" else self._in_parts()
        for done, frame in enumerate(made, 1):
            self.context.on_progress("decoding", done, len(self.context))
            yield self.context.finish(done - 1, frame)

    def _progressive(self) -> Iterator[NDArray[np.float32]]:
        """Clip by clip, each given frames of those before it."""
        context, settings = self.context, self.context.settings
        plan = plan_video(context.pipe, len(context), None)
        video = Video(
            portrait=self._portrait(),
            image_tokens=None,
            landmarks=by_frame(lambda frame: context.pictures(frame, frame + 1)[0]),
            region=by_frame(lambda frame: context.region(frame, frame + 1)[0]) if self.cached else None,
            bent=context.bent,
            plan=plan,
            seed=draw_seed(torch.Generator("cpu").manual_seed(settings.seed)),
            num_inference_steps=settings.steps,
            guidance_scale=context.guidance,
            dilation=settings.dilation,
        )
        store, progress = self._store(plan), self._progress(plan)
        make = ClipMaker(context.pipe, video, store, progress.step_done)

        order = ReadyFrames(plan)
        try:
            for inputs in clip_inputs(context.pipe, video, store):
                clip = inputs.clip
                if not inputs.finished:
                    progress.begin(len(clip.frames))
                    latents, record = self._run(partial(make, inputs), store)
                    keep_clip(context.pipe, store, inputs, latents, record)
                    del latents
                del inputs  # not held while frames are decoded, or beside the next clip's
                progress.end(len(clip.frames))
                self.statistics.add(store.record(clip))
                for frame in order.after(clip):
                    yield from context.decode(store.read((frame,)))
        finally:
            store.close()
        context.pipe.maybe_free_model_hooks()

    def _in_parts(self) -> Iterator[NDArray[np.float32]]:
        """Part by part, each by uniform windows or tiles; where two parts overlap, the earlier fades into the later."""
        context, total = self.context, len(self.context)
        plan = [
            PlannedClip(number, 0, tuple(range(*part)), ())
            for number, part in enumerate(plan_parts(total, context.settings.chunk, OVERLAP))
        ]
        store, progress = self._store(plan), self._progress(plan)
        tail: list[NDArray[np.float32]] = []
        try:
            for clip in plan:
                start, stop = clip.frames[0], clip.frames[-1] + 1
                pictures = context.pictures(start, stop)
                region = context.region(start, stop) if self.cached else None
                bent = None if context.bent is None else context.bent.stack(start, stop)
                digest = digest_of(pictures, region) if bent is None else digest_of(pictures, region, bent)
                if not store.holds(clip, digest):
                    progress.begin(len(clip.frames))
                    attempt = partial(self._denoise_part, pictures, region, bent, progress.step_done)
                    latents, record = self._run(attempt, store)
                    store.write(clip, latents[0].transpose(0, 1), digest, record)
                progress.end(len(clip.frames))
                self.statistics.add(store.record(clip))
                before, tail = tail, []
                for offset, frame in enumerate(context.decode(store.read_clip(clip))):
                    if offset < len(before):
                        share = np.float32((offset + 1) / (len(before) + 1))
                        frame = (before[offset] + share * (frame - before[offset])).astype(np.float32)
                    if stop < total and start + offset >= stop - OVERLAP:
                        tail.append(frame)
                        continue
                    yield frame
        finally:
            store.close()

    def _denoise_part(self, pictures: NDArray[np.uint8], region: Any, bent: Any, step_done: AfterStep) -> Tensor:
        settings = self.context.settings

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": step_done(step, timestep, tensors["latents"])}

        (latents,) = self.context.pipe(
            Image.fromarray(self.context.square),
            pictures,
            num_inference_steps=settings.steps,
            guidance_scale=self.context.guidance,
            long=self.context.long,
            dilation=settings.dilation,
            region=region,
            bent=bent,
            generator=torch.Generator("cpu").manual_seed(settings.seed),
            output_type="latent",
            callback_on_step_end=after_step,
            return_dict=False,
        )
        return latents

    def _run(self, attempt: Callable[[], Tensor], store: ClipStore) -> tuple[Tensor, Record]:
        """Run with the guards of `RenderContext.run`; that half precision was given up outlives the process."""
        latents, record = self.context.run(attempt, cached=self.cached)
        if self.context.pipe.unet.dtype != self.context.dtype:
            store.mark(_OVERFLOWED)
        return latents, record

    def _portrait(self) -> Image.Image:
        return letterbox(Image.fromarray(self.context.square), self.context.size, self.context.size)

    def _progress(self, plan: list[PlannedClip]) -> FrameProgress:
        context, work = self.context, sum(len(clip.frames) for clip in plan)
        return FrameProgress(self.stage, len(context), work, context.settings.steps, context.on_progress)

    def _store(self, plan: list[PlannedClip]) -> ClipStore:
        """Where finished clips go. Raises `UserError` where the folder holds another run's."""
        if self.folder is None:
            return ClipStore(plan)
        context, settings = self.context, self.context.settings
        identity = describe(
            context.pipe,
            self._portrait(),
            frames=len(context),
            long=context.long,
            chunk=settings.chunk,
            num_inference_steps=settings.steps,
            guidance_scale=context.guidance,
            seed=settings.seed,
            cache=context.cache_identity if self.cached else None,
            dilation=settings.dilation,
            dtype=str(context.dtype),
        )
        store = WorkFolder(self.folder, plan, identity)
        if store.marked(_OVERFLOWED):
            context.pipe.to(dtype=torch.float32)
        return store


def plan_parts(frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """Parts (first, one past the last) of at most `length` frames, each sharing `overlap` with the one before."""
    parts = [(0, min(length, frames))]
    while parts[-1][1] < frames:
        start = parts[-1][1] - overlap
        parts.append((start, min(start + length, frames)))
    return parts


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""A job carried out: its clips or parts are finished one by one, kept, and their frames come out in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fye_pipeline.animate.generate import Job
from fye_pipeline.animate.preflight import time_note
from fye_pipeline.animate.run_statistics import Tally
from fye_pipeline.sampling.clip_plan import PlannedClip, in_order
from fye_pipeline.sampling.clip_store import ClipStore, Record, WorkFolder
from fye_pipeline.sampling.denoise import AfterStep, ClipMaker, Video, draw_seed
from fye_pipeline.sampling.identity import describe, digest_of
from fye_pipeline.sampling.inputs import letterbox
from fye_pipeline.sampling.progressive import finish_clips, plan_video

OVERLAP = 8  # frames that two parts share; there the one fades into the other
_OVERFLOWED = "float32"  # a mark in the work folder: half precision was given up


@dataclass
class Take:
    """A job carried out, with the cache or without: its frames come one by one, and memory does not grow with them.

    folder: where finished clips are kept, so that a killed run goes on; None keeps them in memory.
    tally: what all clips took, also those that an earlier process finished.
    """

    job: Job
    cached: bool
    stage: str = "denoising"
    folder: Path | None = None
    tally: Tally = field(default_factory=Tally)

    @property
    def report(self) -> Any | None:
        """The cache's figures over all clips; None without a cache."""
        return self.tally.report(self.job.empty_report()) if self.cached and self.job.settings.cache else None

    def frames(self) -> Iterator[NDArray[np.float32]]:
        """Yields [H, W, 3] in [0, 1]."""
        made = self._progressive() if self.job.long == "progressive" else self._in_parts()
        for done, frame in enumerate(made, 1):
            self.job.on_progress("decoding", done, len(self.job))
            yield frame

    def _progressive(self) -> Iterator[NDArray[np.float32]]:
        """Clip by clip, each given frames of those before it."""
        job, settings = self.job, self.job.settings
        plan = plan_video(job.pipe, len(job), None)
        video = Video(
            portrait=self._portrait(),
            image_tokens=None,
            landmarks=lambda frame: job.pictures(frame, frame + 1)[0],
            region=(lambda frame: job.region(frame, frame + 1)[0]) if self.cached else None,
            plan=plan,
            seed=draw_seed(torch.Generator("cpu").manual_seed(settings.seed)),
            num_inference_steps=settings.steps,
            guidance_scale=job.guidance,
        )
        store = self._store(plan)
        watch = _Watch(job, self.stage, plan)
        maker = ClipMaker(job.pipe, video, store, watch.step_done)

        def make(clip: PlannedClip, pictures: NDArray[np.uint8], region: Tensor | None) -> tuple[Tensor, Record]:
            watch.begin(clip)
            return self._make(lambda: maker(clip, pictures, region)[0], store)

        try:
            for clip, ready in in_order(plan, finish_clips(job.pipe, video, store, make)):
                watch.end(clip)
                self.tally.add(store.record(clip))
                for frame in ready:
                    yield from job.decode(store.read((frame,)))
        finally:
            store.close()
        job.pipe.maybe_free_model_hooks()

    def _in_parts(self) -> Iterator[NDArray[np.float32]]:
        """Part by part, each by uniform windows or tiles; where two parts overlap, the earlier fades into the later."""
        job, total = self.job, len(self.job)
        plan = [
            PlannedClip(number, 0, tuple(range(*part)), ())
            for number, part in enumerate(plan_parts(total, job.settings.chunk, OVERLAP))
        ]
        store = self._store(plan)
        watch = _Watch(job, self.stage, plan)
        tail: list[NDArray[np.float32]] = []
        try:
            for clip in plan:
                start, stop = clip.frames[0], clip.frames[-1] + 1
                pictures = job.pictures(start, stop)
                region = job.region(start, stop) if self.cached else None
                digest = digest_of(pictures, region)
                if not store.holds(clip, digest):
                    watch.begin(clip)
                    attempt = partial(self._denoise_part, pictures, region, watch.step_done)
                    latents, record = self._make(attempt, store)
                    store.write(clip, latents[0].transpose(0, 1), digest, record)
                watch.end(clip)
                self.tally.add(store.record(clip))
                before, tail = tail, []
                for offset, frame in enumerate(job.decode(store.read_clip(clip))):
                    if offset < len(before):
                        share = np.float32((offset + 1) / (len(before) + 1))
                        frame = (before[offset] + share * (frame - before[offset])).astype(np.float32)
                    if stop < total and start + offset >= stop - OVERLAP:
                        tail.append(frame)
                        continue
                    yield frame
        finally:
            store.close()

    def _denoise_part(self, pictures: NDArray[np.uint8], region: Any, step_done: AfterStep) -> Tensor:
        settings = self.job.settings

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": step_done(step, timestep, tensors["latents"])}

        (latents,) = self.job.pipe(
            Image.fromarray(self.job.square),
            pictures,
            num_inference_steps=settings.steps,
            guidance_scale=self.job.guidance,
            long=self.job.long,
            region=region,
            generator=torch.Generator("cpu").manual_seed(settings.seed),
            output_type="latent",
            callback_on_step_end=after_step,
            return_dict=False,
        )
        return latents

    def _make(self, attempt: Callable[[], Tensor], store: ClipStore) -> tuple[Tensor, Record]:
        """Run with the guards of `Job.run`. -> latents, and what goes into the tally."""
        run = self.job.run(attempt, cached=self.cached)
        if self.job.pipe.unet.dtype != self.job.dtype:
            store.mark(_OVERFLOWED)
        return run.latents, {"seconds": run.seconds, "report": None if run.report is None else run.report.to_dict()}

    def _portrait(self) -> Image.Image:
        return letterbox(Image.fromarray(self.job.square), self.job.size, self.job.size)

    def _store(self, plan: list[PlannedClip]) -> ClipStore:
        """Where finished clips go. Raises `UserError` where the folder holds another run's."""
        if self.folder is None:
            return ClipStore(plan)
        job, settings = self.job, self.job.settings
        identity = describe(
            job.pipe,
            self._portrait(),
            frames=len(job),
            long=job.long,
            chunk=settings.chunk,
            num_inference_steps=settings.steps,
            guidance_scale=job.guidance,
            seed=settings.seed,
            cache=str(settings.cache) if self.cached else None,
            dtype=str(job.dtype),
        )
        store = WorkFolder(self.folder, plan, identity)
        if store.marked(_OVERFLOWED):
            job.pipe.to(dtype=torch.float32)
        return store


class _Watch:
    """Tells how far a take is, in frames, step by step; and after the first step, how long it may take."""

    def __init__(self, job: Job, stage: str, plan: Sequence[PlannedClip]) -> None:
        self._job, self._stage = job, stage
        self._work = sum(len(clip.frames) for clip in plan)
        self._done, self._made = 0, 0
        self._clip = plan[0]
        self._began = time.perf_counter()
        self._tell(0)

    def begin(self, clip: PlannedClip) -> None:
        """A clip is being made."""
        self._clip, self._began = clip, time.perf_counter()

    def step_done(self, step: int, timestep: Any, latents: Tensor) -> Tensor:
        """An `AfterStep` that changes nothing."""
        steps = self._job.settings.steps
        if self._made == 0 and step == 0:
            seconds = (time.perf_counter() - self._began) / len(self._clip.frames)
            note = time_note(self._stage, len(self._job), seconds * steps * (self._work - self._done))
            if note:
                self._job.on_note(note)
        self._tell(len(self._clip.frames) * (step + 1) / steps)
        return latents

    def end(self, clip: PlannedClip) -> None:
        """A clip is finished, now or by an earlier process."""
        self._made += clip is self._clip
        self._done += len(clip.frames)
        self._tell(0)

    def _tell(self, more: float) -> None:
        share = min((self._done + more) / self._work, 1.0)
        self._job.on_progress(self._stage, int(share * len(self._job)), len(self._job))


def plan_parts(frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """Parts (first, one past the last) of at most `length` frames, each sharing `overlap` with the one before."""
    parts = [(0, min(length, frames))]
    while parts[-1][1] < frames:
        start = parts[-1][1] - overlap
        parts.append((start, min(start + length, frames)))
    return parts

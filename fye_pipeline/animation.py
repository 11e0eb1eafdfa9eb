"""The animator's main job, from files to a file: a portrait and a driving face give an animated portrait."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fye_pipeline import regions
from fye_pipeline.console import OnProgress, silent
from fye_pipeline.errors import UserError
from fye_pipeline.files import writable_target
from fye_pipeline.inputs import LazyDetector, OnNote, read_driver, read_reference
from fye_pipeline.landmarks.alignment import align
from fye_pipeline.landmarks.drawing import DRAW_SIZE, draw_sequence
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace
from fye_pipeline.model_files import SHIPPED_MODEL
from fye_pipeline.pictures import read_picture
from fye_pipeline.pipeline import FollowYourEmojiPipeline, letterbox
from fye_pipeline.video import read_comment, watermark, write_video

DEMO = Path(__file__).parent / "assets" / "demo"
DEMO_PORTRAIT = DEMO / "portrait.png"
DEMO_PORTRAIT_LANDMARKS = DEMO / "portrait_landmarks.npz"
DEMO_DRIVING = DEMO / "driving.npz"
PANEL = 256  # pixels a side, the least in the side-by-side video


@dataclass(frozen=True)
class AnimationSettings:
    """Everything that decides the result; checked once, written into the video's metadata as JSON.

    reference: a picture. driving: a video, a landmark sequence (.npz) or an official template (.npy). model: a
    pipeline folder. fps None: the driver's. size None: the model's own; pixels a side. frames None: all of them.
    long: how more frames than one clip are joined (`generation/windows.py`).
    cache: arguments of `ticache.apply`, None to run without it. reference_landmarks: a one-frame sequence of the
    portrait, which then needs no detector.
    """

    reference: Path = DEMO_PORTRAIT
    driving: Path = DEMO_DRIVING
    model: Path = SHIPPED_MODEL
    steps: int = 30
    guidance: float = 3.5
    seed: int = 0
    frames: int | None = None
    fps: Fraction | None = None
    size: int | None = None
    long: Literal["tiles", "uniform"] = "tiles"
    cache: dict[str, Any] | None = field(default_factory=lambda: {"N": 3, "order": 2, "cut": "outer"})
    compare: bool = False
    watermark: bool = True
    no_face: NoFace = "interpolate"
    max_gap: float = DEFAULT_MAX_GAP
    unaligned: bool = False
    reference_landmarks: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("frames", 1), ("size", 64), ("max_gap", 0), ("guidance", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be >= {least}, got {value}.")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UserError(f"fps must be from 1 to 240, got {self.fps}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be >= 0 and < 2^63, got {self.seed}.")

    def to_json(self) -> str:
        """The settings as JSON, paths and fractions as text."""
        return json.dumps(asdict(self), default=str)


@dataclass(frozen=True)
class AnimationResult:
    """What was made, and what it took.

    seconds: encoding and denoising, without decoding. psnr: dB against the uncached run, on pixels in [0, 1].
    frames_without_face: (first, one past the last) of each run of frames that was filled in.
    """

    output: Path
    comparison: Path | None
    frames: int
    fps: Fraction
    size: tuple[int, int]
    frames_without_face: list[tuple[int, int]]
    seconds: float
    uncached_seconds: float | None
    psnr: float | None
    report: Any | None
    settings: AnimationSettings

    @property
    def time_ratio(self) -> float | None:
        """Time of the uncached run over time of this one, encoding and denoising."""
        return None if self.uncached_seconds is None else self.uncached_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "output": str(self.output),
            "comparison": None if self.comparison is None else str(self.comparison),
            "frames": self.frames,
            "fps": str(self.fps),
            "size": list(self.size),
            "frames_without_face": self.frames_without_face,
            "seconds": self.seconds,
            "uncached_seconds": self.uncached_seconds,
            "time_ratio": self.time_ratio,
            "psnr": self.psnr,
            "cache": None if self.report is None else self.report.to_dict(),
            "settings": json.loads(self.settings.to_json()),
        }

    def __str__(self) -> str:
        lines = [f"{self.output}: {self.frames} frames of {self.size[0]} x {self.size[1]} at {float(self.fps):g} fps"]
        if self.frames_without_face:
            gaps = ", ".join(f"{start}-{stop - 1}" for start, stop in self.frames_without_face)
            lines.append(f"frames without a face, filled in: {gaps}")
        if self.report is not None:
            lines += ["", str(self.report)]
        if self.psnr is not None:
            lines += [
                "",
                f"against the uncached run: PSNR {self.psnr:.2f} dB, {self.time_ratio:.2f}x faster (without decoding)",
                f"side by side (portrait, landmarks, cached, uncached): {self.comparison}",
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Run:
    """One pass: frames [F, H, W, 3] in [0, 1], encoding and denoising seconds, the cache's report."""

    frames: NDArray[np.float32]
    seconds: float
    report: Any | None


@dataclass(frozen=True)
class Job:
    """A loaded model with everything a run needs: cached and uncached runs differ in nothing but the cache."""

    pipe: FollowYourEmojiPipeline
    settings: AnimationSettings
    portrait: NDArray[np.uint8]
    pictures: NDArray[np.uint8]
    region: NDArray[np.float32]

    def run(self, *, cached: bool, on_progress: OnProgress, stage: str = "denoising") -> Run:
        """Denoise and decode. The cache is on the UNet for the length of this run only."""
        settings, pipe = self.settings, self.pipe
        session = pipe.enable_cache(**settings.cache) if cached and settings.cache is not None else None

        def step_done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_progress(stage, step + 1, settings.steps)
            return {}

        try:
            on_progress(stage, 0, settings.steps)
            began = time.perf_counter()
            (latents,) = pipe(
                Image.fromarray(self.portrait),
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
            seconds = time.perf_counter() - began
            report = None if session is None else session.report()
        finally:
            if session is not None:
                pipe.disable_cache()
        frames = np.empty((len(self.pictures), *self.pictures.shape[1:]), np.float32)
        done = 0
        for part in pipe.decode_frames(latents):
            frames[done : done + len(part)] = part.permute(0, 2, 3, 1).cpu().numpy()
            done += len(part)
            on_progress("decoding", done, len(frames))
        return Run(frames, seconds, report)


def animate(
    settings: AnimationSettings,
    output: Path,
    *,
    overwrite: bool = False,
    face_landmarker: Path | None = None,
    on_progress: OnProgress = silent,
    on_note: OnNote = lambda text: None,
) -> AnimationResult:
    """Animate a portrait and write the video; the output takes its name only when it is complete.

    Args:
        settings: what to animate, with what, and how.
        output: the mp4 to write; `<stem>_compare.mp4` beside it with `settings.compare`.
        overwrite: replace what is there.
        face_landmarker: MediaPipe's task file; None looks in the usual places and fetches it.
        on_progress: told of detection, denoising and decoding as they advance.
        on_note: told one sentence where something is worth knowing.

    Raises:
        UserError: bad input, in one sentence.
    """
    output = writable_target(output, overwrite=overwrite)
    comparison = output.with_name(f"{output.stem}_compare{output.suffix}") if settings.compare else None
    if comparison is not None:
        writable_target(comparison, overwrite=overwrite)
    job, fps, gaps = prepare(settings, face_landmarker, on_progress, on_note)
    run = job.run(cached=settings.cache is not None, on_progress=on_progress)
    plain = job.run(cached=False, on_progress=on_progress, stage="uncached") if settings.compare else None

    comment = json.dumps({"note": "AI-generated", "settings": json.loads(settings.to_json())})
    mark = watermark if settings.watermark else np.ascontiguousarray
    write_video(output, map(mark, to_uint8(run.frames)), fps, comment=comment)
    if comparison is not None and plain is not None:
        panels = side_by_side(job.portrait, job.pictures, to_uint8(run.frames), to_uint8(plain.frames))
        write_video(comparison, map(mark, panels), fps, comment=comment)
    return AnimationResult(
        output=output,
        comparison=comparison,
        frames=len(run.frames),
        fps=fps,
        size=(run.frames.shape[2], run.frames.shape[1]),
        frames_without_face=gaps,
        seconds=run.seconds,
        uncached_seconds=None if plain is None else plain.seconds,
        psnr=None if plain is None else peak_signal_to_noise(run.frames, plain.frames),
        report=run.report,
        settings=settings,
    )


def is_finished(output: Path, settings: AnimationSettings) -> bool:
    """Whether `output` is there and was made with these settings, as its metadata tell.

    Raises:
        UserError: it is there and was made with others.
    """
    if not output.is_file():
        return False
    try:
        made_with = json.loads(read_comment(output))["settings"]
    except (ValueError, KeyError, TypeError):
        made_with = None
    if made_with != json.loads(settings.to_json()):
        raise UserError(f"{output} was made with other settings; pass --overwrite to replace it.")
    return True


def prepare(
    settings: AnimationSettings, face_landmarker: Path | None, on_progress: OnProgress, on_note: OnNote
) -> tuple[Job, Fraction, list[tuple[int, int]]]:
    """Read and detect everything, load the model. -> the job, the frame rate, the runs of frames without a face."""
    picture = read_picture(settings.reference, what="the reference")
    portrait = np.asarray(letterbox(Image.fromarray(picture), DRAW_SIZE, DRAW_SIZE))
    with LazyDetector(face_landmarker, on_note) as detector:
        reference = None
        if not settings.unaligned:
            name = str(settings.reference)
            reference = read_reference(portrait, detector, landmarks=settings.reference_landmarks, name=name)
        driver = read_driver(
            settings.driving,
            detector,
            frames=settings.frames,
            no_face=settings.no_face,
            max_gap=settings.max_gap,
            on_progress=on_progress,
            on_note=on_note,
        )
    sequence = driver.sequence
    landmarks = sequence.landmarks if reference is None else align(reference, sequence, DRAW_SIZE, DRAW_SIZE)
    pipe = FollowYourEmojiPipeline.from_pretrained(settings.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    size = settings.size or native_size(pipe)
    region = np.maximum(regions.expression_mask(landmarks, size, size), regions.facial_mask(landmarks, size, size))
    job = Job(pipe, settings, portrait, draw_sequence(landmarks, size), region)
    return job, settings.fps or driver.fps, sequence.gaps()


def native_size(pipe: FollowYourEmojiPipeline) -> int:
    """The side, in pixels, of the square pictures that a model was trained on."""
    return int(pipe.unet.config["sample_size"]) * pipe.vae_scale_factor


def to_uint8(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[F, H, W, 3] in [0, 1] -> 0..255, rounded."""
    return (frames * 255 + 0.5).astype(np.uint8)


def peak_signal_to_noise(frames: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """PSNR in dB of pixels in [0, 1] against peak 1; infinite where nothing differs."""
    error = float(np.mean((frames.astype(np.float64) - reference) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def side_by_side(portrait: NDArray[np.uint8], *videos: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The still portrait and frames of each video in one row, every panel at least 256 pixels a side."""
    side = max(PANEL, *(video.shape[1] for video in videos))

    def panel(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        way = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(picture, (side, side), interpolation=way), np.uint8)

    for frames in zip(*videos, strict=True):
        yield np.concatenate([panel(portrait), *map(panel, frames)], axis=1)

"""The animator's main job, from files to a file: a portrait and a driving face give an animated portrait."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.console import OnProgress, silent
from fye_pipeline.control import steer
from fye_pipeline.errors import UserError
from fye_pipeline.files import atomic_target, writable_target
from fye_pipeline.generate import Job, Take
from fye_pipeline.inputs import Driver, LazyDetector, OnNote, read_driver
from fye_pipeline.landmarks.alignment import align
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.machine import choose_device, choose_dtype, load_model
from fye_pipeline.model_files import SHIPPED_MODEL
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.portraits import Portrait, read_portrait
from fye_pipeline.settings import DEMO_DRIVING, DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS, AnimationSettings
from fye_pipeline.video import VideoWriter, read_comment, watermark

__all__ = [
    "DEMO_DRIVING",
    "DEMO_PORTRAIT",
    "DEMO_PORTRAIT_LANDMARKS",
    "SHIPPED_MODEL",
    "AnimationResult",
    "AnimationSettings",
    "Studio",
    "animate",
    "is_finished",
]

BYTES_A_PIXEL = 0.15  # of a busy picture at the quality that is written
PANEL = 256  # pixels a side, the least in the side-by-side video


@dataclass(frozen=True)
class AnimationResult:
    """What was made, and what it took.

    seconds: encoding and denoising, without decoding. psnr: dB against the uncached run, on pixels in [0, 1].
    frames_without_face: (first, one past the last) of each run of frames that was filled in. crop: the transform from
    the animated square to the portrait, None where the whole portrait was animated. sound: whether there is any.
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
    crop: dict[str, Any] | None
    sound: bool
    notes: list[str]
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
            "crop": self.crop,
            "sound": self.sound,
            "notes": self.notes,
            "settings": self.settings.to_dict(),
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


class Studio:
    """What many animations share: the face detector, opened when a face is first sought, and the last loaded model.

    Args:
        face_landmarker: MediaPipe's task file; None looks in the usual places and fetches it.
        device: auto, cpu, cuda, cuda:N or mps.
        on_note: told one sentence where something is worth knowing.
    """

    def __init__(
        self,
        face_landmarker: Path | None = None,
        *,
        device: str = "auto",
        on_note: OnNote = lambda text: None,
    ) -> None:
        self.on_note = on_note
        self.device = choose_device(device)
        self.detector = LazyDetector(face_landmarker, self.note)
        self._notes: list[str] = []
        self._loaded: tuple[tuple[Any, ...], FollowYourEmojiPipeline] | None = None

    def __enter__(self) -> Studio:
        self.detector.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        self.detector.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Tell the user, and keep it for the report of the animation at hand."""
        self._notes.append(text)
        self.on_note(text)

    def take_notes(self) -> list[str]:
        """The notes since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def model(self, settings: AnimationSettings) -> FollowYourEmojiPipeline:
        """The model of these settings, loaded once while they stay the same. Raises `UserError` as `load_model`."""
        dtype = choose_dtype(settings.dtype, self.device)
        key = (settings.model, dtype)
        if self._loaded is None or self._loaded[0] != key or self._loaded[1].unet.dtype != dtype:
            self._loaded = None  # two models need not be held at once
            self._loaded = (key, load_model(settings.model, self.device, dtype))
        return self._loaded[1]


def animate(
    settings: AnimationSettings,
    output: Path,
    *,
    overwrite: bool = False,
    face_landmarker: Path | None = None,
    device: str = "auto",
    studio: Studio | None = None,
    on_progress: OnProgress = silent,
    on_note: OnNote = lambda text: None,
) -> AnimationResult:
    """Animate a portrait and write the video; the output takes its name only when it is complete.

    Args:
        settings: what to animate, with what, and how.
        output: the mp4 to write; `<stem>_compare.mp4` beside it with `settings.compare`, and `<stem>_crop.json`, the
            transform back to the portrait, with the framing `crop`.
        overwrite: replace what is there.
        face_landmarker, device, on_note: as for `Studio`; they do not count where a `studio` is given.
        studio: detector and model of animations that were made before.
        on_progress: told of detection, denoising and decoding as they advance.

    Raises:
        UserError: bad input, in one sentence.
    """
    if studio is None:
        with Studio(face_landmarker, device=device, on_note=on_note) as own:
            return animate(settings, output, overwrite=overwrite, studio=own, on_progress=on_progress)
    output = writable_target(output, overwrite=overwrite)
    comparison = output.with_name(f"{output.stem}_compare{output.suffix}") if settings.compare else None
    transform = output.with_name(f"{output.stem}_crop.json") if settings.resolved_framing == "crop" else None
    for beside in (comparison, transform):
        if beside is not None:
            writable_target(beside, overwrite=overwrite)
    studio.take_notes()
    portrait, driver, job = prepare(settings, studio, on_progress)
    run = Take(job, cached=settings.cache is not None)
    plain = None if comparison is None else Take(job, cached=False, stage="uncached")

    written = _Written(settings, portrait, driver, job, overwrite, studio.note)
    check_room(output, len(job), written.size)
    error = written.write(output, comparison, run, plain)
    crop = written.transform
    if transform is not None and crop is not None:
        with atomic_target(transform) as temporary:
            temporary.write_text(json.dumps(crop, indent=2) + "\n")
    return AnimationResult(
        output=output,
        comparison=comparison,
        frames=len(job),
        fps=driver.fps,
        size=written.size,
        frames_without_face=driver.sequence.gaps(),
        seconds=run.seconds,
        uncached_seconds=None if plain is None else plain.seconds,
        psnr=None if plain is None else decibels(error),
        report=run.report,
        crop=crop,
        sound=written.sound is not None,
        notes=studio.take_notes(),
        settings=settings,
    )


@dataclass(frozen=True)
class _Written:
    """Turns runs into files, frame by frame."""

    settings: AnimationSettings
    portrait: Portrait
    driver: Driver
    job: Job
    overwrite: bool
    on_note: OnNote

    @property
    def sound(self) -> Path | None:
        return self.driver.sound if self.settings.audio else None

    @property
    def transform(self) -> dict[str, Any] | None:
        crop = self.portrait.crop
        return None if crop is None else crop.to_dict(self.job.size)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        if self.portrait.crop is None or self.settings.resolved_framing != "paste":
            return self.job.size, self.job.size
        return self.portrait.crop.width, self.portrait.crop.height

    def write(self, output: Path, comparison: Path | None, run: Take, plain: Take | None) -> float:
        """Make the frames and write them. -> mean squared error against the plain run."""
        mark = watermark if self.settings.watermark else np.ascontiguousarray
        others = None if plain is None else plain.frames()
        error = 0.0
        with ExitStack() as stack:
            video = stack.enter_context(self._writer(output))
            pairs = None if comparison is None else stack.enter_context(self._writer(comparison))
            for index, square in enumerate(run.frames()):
                video.write(mark(self.place(to_uint8(square))))
                if pairs is not None and others is not None:
                    other = next(others)
                    error += float(np.mean((square.astype(np.float64) - other) ** 2)) / len(self.job)
                    (landmarks,) = self.job.pictures(index, index + 1)
                    panels = (self.portrait.square, landmarks, to_uint8(square), to_uint8(other))
                    pairs.write(mark(side_by_side(*panels)))
        return error

    def place(self, square: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An animated square as a frame of the result: pasted into the portrait, or as it is."""
        if self.portrait.crop is None or self.settings.resolved_framing != "paste":
            return square
        return self.portrait.crop.paste(square, self.portrait.picture)

    def _writer(self, path: Path) -> VideoWriter:
        note = {
            "note": "AI-generated",
            "settings": self.settings.to_dict(),
            "crop": self.transform,
            "picture": list(self.size),  # an odd side is stored with one more pixel
        }
        return VideoWriter(
            path,
            self.driver.fps,
            comment=json.dumps(note),
            sound=self.sound,
            overwrite=self.overwrite,
            on_note=self.on_note,
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
    if made_with != settings.to_dict():
        raise UserError(f"{output} was made with other settings; pass --overwrite to replace it.")
    return True


def prepare(settings: AnimationSettings, studio: Studio, on_progress: OnProgress) -> tuple[Portrait, Driver, Job]:
    """Read and detect everything, load the model."""
    portrait = read_portrait(settings, studio.detector, studio.note)
    driver = read_driver(
        settings.driving,
        studio.detector,
        frames=settings.frames,
        fps=settings.fps,
        no_face=settings.no_face,
        max_gap=settings.max_gap,
        max_pixels=settings.max_pixels,
        background=settings.background,
        allow_partial=settings.allow_partial,
        on_progress=on_progress,
        on_note=studio.note,
    )
    sequence, neutral = driver.sequence, settings.neutral_frame
    if neutral is not None and neutral >= len(sequence):
        raise UserError(f"neutral_frame must be below the driver's {len(sequence)} frames, got {neutral}.")
    landmarks = sequence.landmarks
    if portrait.face is not None:
        steered = steer(
            portrait.face,
            sequence,
            regions=settings.regions,
            intensity=settings.intensity,
            pose=settings.pose,
            neutral_frame=neutral,
        )
        landmarks = align(portrait.face, steered, DRAW_SIZE, DRAW_SIZE, neutral_frame=neutral)
    pipe = studio.model(settings)
    size = settings.size or native_size(pipe)
    return portrait, driver, Job(pipe, settings, portrait.square, landmarks, size, on_progress, studio.note)


def check_room(output: Path, frames: int, size: tuple[int, int]) -> None:
    """Raise `UserError` where the disk has not the room that a video of this length and size may take."""
    needed = round(frames * size[0] * size[1] * BYTES_A_PIXEL)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise UserError(
            f"{output} may take {needed / 1e6:.0f} MB and its disk has {free / 1e6:.0f} MB left: free space."
        )


def native_size(pipe: FollowYourEmojiPipeline) -> int:
    """The side, in pixels, of the square pictures that a model was trained on."""
    return int(pipe.unet.config["sample_size"]) * pipe.vae_scale_factor


def to_uint8(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[..., H, W, 3] in [0, 1] -> 0..255, rounded."""
    return (frames * 255 + 0.5).astype(np.uint8)


def decibels(error: float) -> float:
    """PSNR in dB of a mean squared error of pixels in [0, 1]; infinite where nothing differs."""
    return math.inf if error == 0 else -10 * math.log10(error)


def side_by_side(*pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Square pictures in one row, every panel as large as the largest after the first, at least 256 pixels a side."""
    side = max(PANEL, *(picture.shape[0] for picture in pictures[1:]))
    return np.concatenate(list(_panels(pictures, side)), axis=1)


def _panels(pictures: tuple[NDArray[np.uint8], ...], side: int) -> Iterator[NDArray[np.uint8]]:
    for picture in pictures:
        way = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_CUBIC
        yield np.asarray(cv2.resize(picture, (side, side), interpolation=way), np.uint8)

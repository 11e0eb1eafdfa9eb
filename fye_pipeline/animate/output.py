"""Frames as files: pasted into the portrait, marked, encoded, beside others where they are compared."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import Driver
from fye_pipeline.animate.portrait import Portrait
from fye_pipeline.animate.renderer import RenderContext, Renderer
from fye_pipeline.media.image import resized
from fye_pipeline.media.writer import VideoWriter, watermark

PANEL = 256  # pixels a side, the least in the side-by-side video


@dataclass(frozen=True)
class VideoOutput:
    """Turns runs into files, frame by frame. inputs: what tells the portrait's and the driver's files from others."""

    settings: AnimationSettings
    portrait: Portrait
    driver: Driver
    context: RenderContext
    overwrite: bool
    inputs: dict[str, str]

    @property
    def sound(self) -> Path | None:
        return self.driver.sound if self.settings.audio else None

    @property
    def transform(self) -> dict[str, Any] | None:
        crop = self.portrait.crop
        return None if crop is None else crop.to_dict(self.context.side)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return frame_size(self.settings, self.portrait, self.context.side)

    def write(self, output: Path, comparison: Path | None, run: Renderer, plain: Renderer | None) -> float:
        """Make the frames and write them. -> mean squared error against the plain run."""
        mark = watermark if self.settings.watermark else np.ascontiguousarray
        matte = self.portrait.matte(self.settings, self.context.side)
        others = None if plain is None else plain.frames()
        error = 0.0
        with ExitStack() as stack:
            video = stack.enter_context(self._writer(output, alpha=matte is not None))
            pairs = None if comparison is None else stack.enter_context(self._writer(comparison))
            for index, square in enumerate(run.frames()):
                frame = self.place(to_uint8(square))
                video.write(mark(frame) if matte is None else matte.lay(frame, mark(frame)))
                if pairs is not None and others is not None:
                    other = next(others)
                    error += float(np.mean((square.astype(np.float64) - other) ** 2)) / len(self.context)
                    (landmarks,) = self.context.pictures(index, index + 1)
                    panels = (self.portrait.square, landmarks, to_uint8(square), to_uint8(other))
                    pairs.write(mark(side_by_side(*panels, side=max(PANEL, self.context.size))))
        return error

    def place(self, square: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An animated square as a frame of the result: pasted into the portrait, or as it is."""
        if self.portrait.crop is None or self.settings.resolved_framing != "paste":
            return square
        return self.portrait.crop.paste(square, self.portrait.picture)

    def _writer(self, path: Path, *, alpha: bool = False) -> VideoWriter:
        note = {
            "note": "AI-generated",
            "settings": self.settings.to_dict(),
            "inputs": self.inputs,
            "crop": self.transform,
            "picture": list(self.size),  # an odd side is stored with one more pixel
        }
        return VideoWriter(
            path,
            self.driver.fps,
            alpha=alpha,
            comment=json.dumps(note),
            sound=self.sound,
            overwrite=self.overwrite,
        )


def frame_size(settings: AnimationSettings, portrait: Portrait, side: int) -> tuple[int, int]:
    """Width and height of the result's frames, where the model makes squares of `side` pixels."""
    if portrait.crop is None or settings.resolved_framing != "paste":
        return side, side
    return portrait.crop.width, portrait.crop.height


def comparison_size(side: int) -> tuple[int, int]:
    """Width and height of the side-by-side video: portrait, landmarks, cached and uncached."""
    return 4 * max(PANEL, side), max(PANEL, side)


def to_uint8(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[..., H, W, 3] in [0, 1] -> 0..255, rounded."""
    return (frames * 255 + 0.5).astype(np.uint8)


def decibels(error: float) -> float:
    """PSNR in dB of a mean squared error of pixels in [0, 1]; infinite where nothing differs."""
    return math.inf if error == 0 else -10 * math.log10(error)


def side_by_side(*pictures: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Square pictures in one row of panels of `side` pixels."""
    return np.concatenate([resized(picture, side) for picture in pictures], axis=1)


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

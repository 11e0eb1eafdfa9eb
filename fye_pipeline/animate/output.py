"""Frames of a take as files: pasted into the portrait, marked, encoded, beside others where they are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import Driver, OnNote
from fye_pipeline.animate.generate import Job
from fye_pipeline.animate.portrait import Portrait
from fye_pipeline.animate.renderer import Take
from fye_pipeline.media.video import watermark
from fye_pipeline.media.writer import Writer, open_writer

PANEL = 256  # pixels a side, the least in the side-by-side video


@dataclass(frozen=True)
class Written:
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
        return frame_size(self.settings, self.portrait, self.job.size)

    def write(self, output: Path, comparison: Path | None, run: Take, plain: Take | None) -> float:
        """Make the frames and write them. -> mean squared error against the plain run."""
        mark = watermark if self.settings.watermark else np.ascontiguousarray
        matte = self.portrait.matte(self.settings, self.job.size)
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

    def _writer(self, path: Path, *, alpha: bool = False) -> Writer:
        note = {
            "note": "AI-generated",
            "settings": self.settings.to_dict(),
            "crop": self.transform,
            "picture": list(self.size),  # an odd side is stored with one more pixel
        }
        return open_writer(
            path,
            self.driver.fps,
            alpha=alpha,
            comment=json.dumps(note),
            sound=self.sound,
            overwrite=self.overwrite,
            on_note=self.on_note,
        )


def frame_size(settings: AnimationSettings, portrait: Portrait, side: int) -> tuple[int, int]:
    """Width and height of the result's frames, where the model makes squares of `side` pixels."""
    if portrait.crop is None or settings.resolved_framing != "paste":
        return side, side
    return portrait.crop.width, portrait.crop.height


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

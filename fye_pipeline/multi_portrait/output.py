"""An animation of several people as a file, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.output import PANEL, to_uint8
from fye_pipeline.animate.portrait import Crop
from fye_pipeline.animate.renderer import Renderer
from fye_pipeline.media.writer import Matte, VideoWriter, watermark
from fye_pipeline.multi_portrait.composition import Composition
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.progress import OnProgress

Frame = NDArray[np.float32]
OnFrame = Callable[[NDArray[np.uint8]], None]


@dataclass(frozen=True)
class MovedPerson:
    """Somebody who is moved: the number of the face from the left (from 1), and by which driver (from 0).

    crop: the square around the face. gaps: the driver's frames without a face, as (first, one past the last).
    """

    face: int
    driven_by: int
    crop: Crop
    gaps: list[tuple[int, int]]
    run: Renderer
    plain: Renderer | None = None  # without the cache, to compare with

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        report = self.run.report
        return {
            "face": self.face,
            "driver": self.driven_by,
            "frames_without_face": self.gaps,
            "seconds": self.run.statistics.seconds,
            "crop": self.crop.to_dict(self.run.context.side),
            "cache": None if report is None else report.to_dict(),
        }


@dataclass(frozen=True)
class GroupOutput:
    """Lays everybody's frames into the picture and writes them. inputs: digests of the files. matte: of the picture."""

    settings: GroupSettings
    people: Sequence[MovedPerson]
    composition: Composition
    frames: int
    fps: Fraction
    sound: Path | None
    inputs: dict[str, str]
    matte: Matte | None = None

    @property
    def uncached_seconds(self) -> float | None:
        """Of everybody's runs without the cache, once they are made; None where none are."""
        runs = [person.plain for person in self.people if person.plain is not None]
        return sum(run.statistics.seconds for run in runs) if runs else None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        height, width = self.composition.picture.shape[:2]
        return width, height

    def write(
        self,
        output: Path,
        comparison: Path | None,
        *,
        overwrite: bool,
        on_progress: OnProgress,
        on_frame: OnFrame | None = None,
    ) -> float | None:
        """Make the frames and write them; the file takes its name when the last one is in.

        comparison: gets picture, landmarks, the frame and that without the cache, side by side. on_frame: is told each
        frame [H, W, 3] before it is marked and encoded.
        -> mean squared error of people's squares against those without the cache, None where there are none.
        """
        mark = watermark if self.settings.watermark else np.ascontiguousarray
        note = {
            "note": "AI-generated",
            "settings": self.settings.to_dict(),
            "inputs": self.inputs,
            "people": [{"face": person.face, "driver": person.driven_by} for person in self.people],
            "picture": list(self.size),
        }
        options: dict[str, Any] = {"comment": json.dumps(note), "sound": self.sound, "overwrite": overwrite}
        everybody = [held(person.run.frames(), self.frames) for person in self.people]
        others = self._others()
        error = 0.0
        with ExitStack() as stack:
            video = stack.enter_context(VideoWriter(output, self.fps, alpha=self.matte is not None, **options))
            pairs = None if comparison is None else stack.enter_context(VideoWriter(comparison, self.fps, **options))
            for done, squares in enumerate(zip(*everybody, strict=True)):
                frame = self._laid(squares)
                if on_frame is not None:
                    on_frame(frame)
                video.write(mark(frame) if self.matte is None else self.matte.lay(frame, mark(frame)))
                if pairs is not None and others is not None:
                    plain = next(others)
                    apart = [
                        np.mean((one.astype(np.float64) - two) ** 2) for one, two in zip(squares, plain, strict=True)
                    ]
                    error += float(np.mean(apart)) / self.frames
                    panels = (self.composition.picture, self._landmarks(done), frame, self._laid(plain))
                    pairs.write(mark(in_a_row(panels)))
                on_progress("decoding", done + 1, self.frames)
        return None if others is None else error

    def _others(self) -> Iterator[tuple[Frame, ...]] | None:
        """Everybody's frames without the cache, where they are asked for."""
        runs = [person.plain for person in self.people if person.plain is not None]
        return zip(*(held(run.frames(), self.frames) for run in runs), strict=True) if runs else None

    def _laid(self, squares: Sequence[Frame]) -> NDArray[np.uint8]:
        return self.composition.lay([to_uint8(square) for square in squares])

    def _landmarks(self, frame: int) -> NDArray[np.uint8]:
        """Everybody's landmarks as they are drawn for the model, on black."""
        drawn = []
        for person in self.people:
            at = min(frame, len(person.run.context) - 1)
            drawn.append(person.run.context.pictures(at, at + 1)[0])
        black = np.zeros_like(self.composition.picture)
        return replace(self.composition, picture=black).lay(drawn)


def in_a_row(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of one size side by side, each `PANEL` pixels high."""
    height, width = pictures[0].shape[:2]
    size = max(round(width * PANEL / height), 1), PANEL
    way = cv2.INTER_AREA if height > PANEL else cv2.INTER_CUBIC
    return np.concatenate(
        [np.asarray(cv2.resize(each, size, interpolation=way), np.uint8) for each in pictures], axis=1
    )


def held(frames: Iterator[Frame], count: int) -> Iterator[Frame]:
    """So many frames: the first of a longer run, the last of a shorter one over and over."""
    last: list[Frame] = []
    for frame in islice(frames, count):
        last = [frame]
        count -= 1
        yield frame
    yield from chain.from_iterable(repeat(last, count))


@dataclass(frozen=True)
class GroupResult:
    """What was made of several people, and what it took; seconds: encoding and denoising, without decoding."""

    output: Path
    frames: int
    fps: Fraction
    size: tuple[int, int]
    seconds: float
    faces: int
    people: list[dict[str, Any]]
    sound: bool
    notes: list[str]
    settings: GroupSettings
    comparison: Path | None = None
    uncached_seconds: float | None = None
    psnr: float | None = None

    @property
    def time_ratio(self) -> float | None:
        """Time of the uncached runs over time of these, encoding and denoising."""
        return None if self.uncached_seconds is None else self.uncached_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "output": str(self.output),
            "frames": self.frames,
            "fps": str(self.fps),
            "size": list(self.size),
            "seconds": self.seconds,
            "comparison": None if self.comparison is None else str(self.comparison),
            "uncached_seconds": self.uncached_seconds,
            "time_ratio": self.time_ratio,
            "psnr": self.psnr,
            "faces": self.faces,
            "people": self.people,
            "sound": self.sound,
            "notes": self.notes,
            "settings": self.settings.to_dict(),
        }

    def __str__(self) -> str:
        lines = [f"{self.output}: {self.frames} frames of {self.size[0]} x {self.size[1]} at {float(self.fps):g} fps"]
        drivers = {person["face"]: person for person in self.people}
        for face in range(1, self.faces + 1):
            if face not in drivers:
                lines.append(f"face {face}: left as it is")
                continue
            gaps = ", ".join(f"{start}-{stop - 1}" for start, stop in drivers[face]["frames_without_face"])
            filled = f"; frames without a face, filled in: {gaps}" if gaps else ""
            lines.append(f"face {face}: driver {drivers[face]['driver']}{filled}")
        if self.psnr is not None:
            lines += [
                f"against the uncached runs: PSNR {self.psnr:.2f} dB, {self.time_ratio:.2f}x faster (without decoding)",
                f"side by side (picture, landmarks, cached, uncached): {self.comparison}",
            ]
        return "\n".join(lines)

"""Frames as files: pasted into the portrait, marked, encoded, beside others where they are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.portrait import Portrait
from fye_pipeline.animate.renderer import Renderer
from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.media.image import resized
from fye_pipeline.media.writer import Matte, VideoWriter, watermark

PANEL = 256  # pixels a side, the least in the side-by-side video


class Shown(NamedTuple):
    """A frame of the result, uint8 [H, W, 3], and, where it is compared, the side-by-side picture and its error.

    error: this frame's share of the mean squared error against the uncached run.
    """

    frame: NDArray[np.uint8]
    beside: NDArray[np.uint8] | None = None
    error: float = 0.0


@dataclass(frozen=True)
class Run:
    """An animation that has begun: the files that it writes, where it works, and what it is made from.

    comparison: the side-by-side video, `transform`: the file that leads back to the portrait; None where they are not
    asked for. inputs: what tells the files that are read from others. overwrite: replace outputs that are there.
    notes: what was worth knowing on the way, so far.
    """

    settings: AnimationSettings
    session: AnimationSession
    output: Path
    comparison: Path | None
    transform: Path | None
    inputs: dict[str, str]
    work: Path
    overwrite: bool
    notes: list[str]

    def write(
        self,
        frames: Iterable[Shown],
        fps: Fraction,
        size: tuple[int, int],
        sound: Path | None,
        matte: Matte | None = None,
        **more: Any,
    ) -> float:
        """Make the frames, mark them and write them; files take their names when the last frame is in.

        more: of what the metadata say. -> mean squared error against the uncached run, where it is compared.
        """
        about = {"note": "AI-generated", "settings": self.settings.to_dict(), "inputs": self.inputs, **more}
        comment = json.dumps({**about, "picture": list(size)})  # an odd side is stored with one more pixel
        options: dict[str, Any] = {"comment": comment, "sound": sound, "overwrite": self.overwrite}
        mark = watermark if self.settings.watermark else np.ascontiguousarray
        error = 0.0
        with ExitStack() as stack:
            video = stack.enter_context(VideoWriter(self.output, fps, alpha=matte is not None, **options))
            pairs = None
            if self.comparison is not None:
                pairs = stack.enter_context(VideoWriter(self.comparison, fps, **options))
            for frame, beside, share in frames:
                video.write(mark(frame) if matte is None else matte.lay(frame, mark(frame)))
                if pairs is not None and beside is not None:
                    pairs.write(mark(beside))
                error += share
        return error


def portrait_frames(portrait: Portrait, run: Renderer, plain: Renderer | None) -> Iterator[Shown]:
    """The squares of a run pasted into the portrait, or as they are; with those of a plain run to compare them with."""
    context, others = run.context, None if plain is None else plain.frames()
    crop = portrait.crop if context.settings.resolved_framing == "paste" else None
    for index, square in enumerate(run.frames()):
        picture = to_uint8(square)
        frame = picture if crop is None else crop.paste(picture, portrait.picture)
        if others is None:
            yield Shown(frame)
            continue
        other = next(others)
        (landmarks,) = context.pictures(index, index + 1)
        panels = (portrait.square, landmarks, picture, to_uint8(other))
        error = float(np.mean((square.astype(np.float64) - other) ** 2)) / len(context)
        yield Shown(frame, side_by_side(*panels, side=max(PANEL, context.size)), error)


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


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What was made, and what it took.

    seconds: encoding and denoising, without decoding. sound: whether there is any. notes: what was worth knowing on the
    way. Where it was compared with an uncached run: comparison, the side-by-side video; psnr: dB against that run, on
    pixels in [0, 1].
    """

    output: Path
    frames: int
    fps: Fraction
    size: tuple[int, int]
    seconds: float
    sound: bool
    notes: list[str]
    settings: AnimationSettings
    comparison: Path | None = None
    uncached_seconds: float | None = None
    psnr: float | None = None

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
            "seconds": self.seconds,
            "uncached_seconds": self.uncached_seconds,
            "time_ratio": self.time_ratio,
            "psnr": self.psnr,
            "sound": self.sound,
            "notes": self.notes,
            "settings": self.settings.to_dict(),
        }

    def described(self, details: Iterable[str], plain: str, panel: str) -> str:
        """The result in words. plain: what it was compared with. panel: the first panel of the side-by-side video."""
        lines = [f"{self.output}: {self.frames} frames of {self.size[0]} x {self.size[1]} at {float(self.fps):g} fps"]
        lines += details
        if self.psnr is not None:
            lines += [
                f"against the {plain}: PSNR {self.psnr:.2f} dB, {self.time_ratio:.2f}x faster (without decoding)",
                f"side by side ({panel}, landmarks, cached, uncached): {self.comparison}",
            ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class AnimationResult(VideoResult):
    """One face's. frames_without_face: (first, one past the last) of each run of frames that was filled in.

    report: the cache's. crop: the transform from the animated square to the portrait, None where the whole portrait was
    animated.
    """

    frames_without_face: list[tuple[int, int]]
    report: Any | None
    crop: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return super().to_dict() | {
            "frames_without_face": self.frames_without_face,
            "cache": None if self.report is None else self.report.to_dict(),
            "crop": self.crop,
        }

    def __str__(self) -> str:
        lines = []
        if self.frames_without_face:
            gaps = ", ".join(f"{start}-{stop - 1}" for start, stop in self.frames_without_face)
            lines.append(f"frames without a face, filled in: {gaps}")
        if self.report is not None:
            lines += ["", str(self.report)]
        if self.psnr is not None:
            lines.append("")
        return self.described(lines, "uncached run", "portrait")

"""An animation of several people as a file, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.output import to_uint8
from fye_pipeline.animate.portrait import Crop
from fye_pipeline.animate.renderer import Renderer
from fye_pipeline.media.writer import VideoWriter, watermark
from fye_pipeline.multi_portrait.composition import Composition
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.progress import OnProgress

Frame = NDArray[np.float32]


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
    """Lays everybody's frames into the picture and writes them. inputs: digests of the files."""

    settings: GroupSettings
    people: Sequence[MovedPerson]
    composition: Composition
    frames: int
    fps: Fraction
    sound: Path | None
    inputs: dict[str, str]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        height, width = self.composition.picture.shape[:2]
        return width, height

    def write(self, output: Path, *, overwrite: bool, on_progress: OnProgress) -> None:
        """Make the frames and write them; the file takes its name when the last one is in."""
        mark = watermark if self.settings.watermark else np.ascontiguousarray
        note = {
            "note": "AI-generated",
            "settings": self.settings.to_dict(),
            "inputs": self.inputs,
            "people": [{"face": person.face, "driver": person.driven_by} for person in self.people],
            "picture": list(self.size),
        }
        writer = VideoWriter(
            output,
            self.fps,
            comment=json.dumps(note),
            sound=self.sound,
            overwrite=overwrite,
        )
        everybody = [held(person.run.frames(), self.frames) for person in self.people]
        with writer as video:
            for done, squares in enumerate(zip(*everybody, strict=True), 1):
                frame = self.composition.lay([to_uint8(square) for square in squares])
                video.write(mark(frame))
                on_progress("decoding", done, self.frames)


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "output": str(self.output),
            "frames": self.frames,
            "fps": str(self.fps),
            "size": list(self.size),
            "seconds": self.seconds,
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
        return "\n".join(lines)

"""An animation of several people as a file, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.output import PANEL, Shown, VideoResult, to_uint8
from fye_pipeline.animate.portrait import Crop
from fye_pipeline.animate.renderer import Renderer
from fye_pipeline.multi_portrait.composition import Composition
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
class GroupFrames:
    """Lays everybody's frames into the picture, `count` of them."""

    people: Sequence[MovedPerson]
    composition: Composition
    count: int

    @property
    def uncached_seconds(self) -> float | None:
        """Of everybody's runs without the cache, once they are made; None where none are."""
        runs = [person.plain for person in self.people if person.plain is not None]
        return sum(run.statistics.seconds for run in runs) if runs else None

    def shown(self, on_progress: OnProgress, on_frame: OnFrame | None = None) -> Iterator[Shown]:
        """The frames, beside picture, landmarks and the frames without the cache, where those are made too.

        on_frame: is told each frame [H, W, 3] before it is marked and encoded.
        """
        everybody = [held(person.run.frames(), self.count) for person in self.people]
        others = self._others()
        for done, squares in enumerate(zip(*everybody, strict=True)):
            frame = self._laid(squares)
            if on_frame is not None:
                on_frame(frame)
            if others is None:
                yield Shown(frame)
            else:
                plain = next(others)
                apart = [np.mean((one.astype(np.float64) - two) ** 2) for one, two in zip(squares, plain, strict=True)]
                panels = (self.composition.picture, self._landmarks(done), frame, self._laid(plain))
                yield Shown(frame, in_a_row(panels), float(np.mean(apart)) / self.count)
            on_progress("decoding", done + 1, self.count)

    def _others(self) -> Iterator[tuple[Frame, ...]] | None:
        """Everybody's frames without the cache, where they are asked for."""
        runs = [person.plain for person in self.people if person.plain is not None]
        return zip(*(held(run.frames(), self.count) for run in runs), strict=True) if runs else None

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


@dataclass(frozen=True, kw_only=True)
class GroupResult(VideoResult):
    """What was made of several people. people: those who are moved, of so many `faces`."""

    faces: int
    people: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return super().to_dict() | {"faces": self.faces, "people": self.people}

    def __str__(self) -> str:
        lines = []
        drivers = {person["face"]: person for person in self.people}
        for face in range(1, self.faces + 1):
            if face not in drivers:
                lines.append(f"face {face}: left as it is")
                continue
            gaps = ", ".join(f"{start}-{stop - 1}" for start, stop in drivers[face]["frames_without_face"])
            filled = f"; frames without a face, filled in: {gaps}" if gaps else ""
            lines.append(f"face {face}: driver {drivers[face]['driver']}{filled}")
        return self.described(lines, "uncached runs", "picture")

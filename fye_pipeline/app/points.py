"""Five points clicked on a portrait in which no face is found: which comes next, the picture with them, their file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.points import NAMES, fit_points
from fye_pipeline.media.image import read_picture

FILE = "points.json"
_SIDE = 900  # pixels, the longer side of the picture that is clicked on
# In the order of `NAMES`.
_WORDS = (
    "the eye on the left of the picture",
    "the eye on the right",
    "the tip of the nose",
    "the corner of the mouth on the left",
    "the corner of the mouth on the right",
)
_READY = "All five are placed: no face is sought in this portrait."
_COLOUR = (20, 184, 166)


@dataclass(frozen=True)
class Clicks:
    """What was clicked so far on a picture.

    picture: as it is shown, uint8 [H, W, 3]; None before there is one. placed: x and y as shares of width and height,
    in the order of `NAMES`. file: the points as JSON, once all are placed. fault: why they will not do, in a sentence.
    """

    picture: NDArray[np.uint8] | None = field(default=None, compare=False)
    placed: tuple[tuple[float, float], ...] = ()
    file: Path | None = None
    fault: str = ""

    @property
    def shown(self) -> NDArray[np.uint8] | None:
        """The picture with a dot at each point."""
        if self.picture is None:
            return None
        picture = self.picture.copy()
        height, width = picture.shape[:2]
        radius = max(3, max(height, width) // 120)
        for x, y in self.placed:
            centre = (round(x * width), round(y * height))
            cv2.circle(picture, centre, radius + 2, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(picture, centre, radius, _COLOUR, -1, cv2.LINE_AA)
        return picture

    @property
    def sentence(self) -> str:
        """What to do next."""
        if self.fault:
            return f"{self.fault} Take back what is wrong."
        if self.file is not None:
            return _READY
        return (
            "" if self.picture is None else f"{len(self.placed) + 1} of {len(NAMES)}: click {_WORDS[len(self.placed)]}."
        )


def begin(portrait: str | Path | None) -> Clicks:
    """No clicks yet, on a portrait no larger than is worth showing; what cannot be read is a fault."""
    if portrait is None:
        return Clicks()
    try:
        picture = read_picture(portrait, what="the portrait")
    except UserError as error:
        return Clicks(fault=str(error).replace(str(portrait), Path(portrait).name))
    height, width = picture.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Clicks(np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8))


def click(clicks: Clicks, at: Sequence[float], new_file: Callable[[], Path]) -> Clicks:
    """One point more, at x and y in pixels of the picture shown; with the fifth the face is fitted and saved."""
    if clicks.picture is None or len(clicks.placed) == len(NAMES):
        return clicks
    height, width = clicks.picture.shape[:2]
    x, y = (round(float(np.clip(at[axis] / side, 0, 1)), 5) for axis, side in ((0, width), (1, height)))
    placed = (*clicks.placed, (x, y))
    if len(placed) < len(NAMES):
        return Clicks(clicks.picture, placed)
    points: dict[str, tuple[float, float]] = dict(zip(NAMES, placed, strict=True))
    try:
        fit_points(points, width, height)
    except UserError as error:
        return Clicks(clicks.picture, placed, fault=_as_sentence(str(error)))
    path = new_file()
    path.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
    return Clicks(clicks.picture, placed, path)


def take_back(clicks: Clicks) -> Clicks:
    """Without the last point."""
    return Clicks(clicks.picture, clicks.placed[:-1])


def new_file_in(folder: Path) -> Callable[[], Path]:
    """Names for files called `points.json`, each in a folder of its own there."""

    def new_file() -> Path:
        inner = folder / uuid.uuid4().hex
        inner.mkdir(parents=True)
        return inner / FILE

    return new_file


def _as_sentence(text: str) -> str:
    return text[:1].upper() + text[1:]

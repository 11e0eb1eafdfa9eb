"""The square around a face that the model sees, and the way back into the portrait with a soft seam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Box, Face

DEFAULT_SCALE = 2.0  # the square's side over the longer side of the face, which ends at the hairline
DEFAULT_SHIFT = (0.0, -0.08)  # shares of the side; upwards, where the hair is
SEAM = 0.12  # width of the soft seam, as a share of the side
_SCALES = (1.0, 8.0)


@dataclass(frozen=True)
class Crop:
    """A square of whole pixels in a portrait; it may reach beyond the picture, where the border's colour goes on.

    left, top, side: pixels of the portrait. width, height: the portrait's size.
    """

    left: int
    top: int
    side: int
    width: int
    height: int

    def cut(self, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """The square, resized. uint8 [H, W, 3] -> [size, size, 3], or one channel [H, W] -> [size, size]."""
        rows, columns = self._inside()
        before = rows.start - self.top, columns.start - self.left
        after = self.top + self.side - rows.stop, self.left + self.side - columns.stop
        edges = ((before[0], after[0]), (before[1], after[1]), (0, 0))[: picture.ndim]
        return _resized(np.pad(picture[rows, columns], edges, mode="edge"), size)

    def seam(self) -> NDArray[np.float32]:
        """How much of the animated square is seen at each of its pixels: 1 inside, falling to 0 at its sides.

        A side that lies on or beyond the portrait's border has no neighbour to blend with and does not fall.
        -> [side, side].
        """
        across = self._fall(self.left > 0, self.left + self.side < self.width)
        down = self._fall(self.top > 0, self.top + self.side < self.height)
        return np.minimum(down[:, None], across[None, :])

    def _fall(self, first: bool, last: bool) -> NDArray[np.float32]:
        place = (np.arange(self.side) + 0.5) / self.side
        share = np.minimum(place if first else 1.0, 1 - place if last else 1.0) / SEAM
        rise = np.clip(np.broadcast_to(share, self.side), 0, 1)
        return (rise * rise * (3 - 2 * rise)).astype(np.float32)

    def paste(self, frame: NDArray[np.uint8], portrait: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lay an animated square [S, S, 3] back into the portrait [H, W, 3] -> a new picture of the portrait's size."""
        rows, columns = self._inside()
        inner = (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )
        alpha = self.seam()[inner][..., None]
        square = _resized(frame, self.side)[inner].astype(np.float32)
        result = portrait.copy()
        under = portrait[rows, columns].astype(np.float32)
        result[rows, columns] = (under + alpha * (square - under) + 0.5).astype(np.uint8)
        return result

    def to_dict(self, size: int) -> dict[str, Any]:
        """The transform as plain values; `matrix` takes pixels of the result (`size` a side) to the portrait's."""
        scale = self.side / size
        return {
            "left": self.left,
            "top": self.top,
            "side": self.side,
            "portrait": [self.width, self.height],
            "size": size,
            "seam": SEAM,
            "matrix": [[scale, 0.0, float(self.left)], [0.0, scale, float(self.top)], [0.0, 0.0, 1.0]],
        }

    def _inside(self) -> tuple[slice, slice]:
        """Rows and columns of the portrait that the square covers."""
        return (
            slice(max(self.top, 0), min(self.top + self.side, self.height)),
            slice(max(self.left, 0), min(self.left + self.side, self.width)),
        )


def crop_around(
    box: Box, width: int, height: int, *, scale: float = DEFAULT_SCALE, shift: tuple[float, float] = DEFAULT_SHIFT
) -> Crop:
    """The square around a face: its longer side times `scale`, moved by `shift` (shares of the square's side).

    box: left, top, right, bottom of the face in 0..1 of a picture of width x height pixels.
    Raises `UserError` for a scale out of range, or a shift that leaves the face outside.
    """
    if not _SCALES[0] <= scale <= _SCALES[1]:
        raise UserError(f"crop-scale must be from {_SCALES[0]:g} to {_SCALES[1]:g}, got {scale:g}.")
    if max(map(abs, shift)) > 0.5:
        raise UserError(f"crop-shift must be from -0.5 to 0.5 of the crop's side, got {shift[0]:g},{shift[1]:g}.")
    left, top, right, bottom = box
    side = max(round(max((right - left) * width, (bottom - top) * height) * scale), 2)
    centre = (left + right) / 2 * width + shift[0] * side, (top + bottom) / 2 * height + shift[1] * side
    return Crop(round(centre[0] - side / 2), round(centre[1] - side / 2), side, width, height)


def pick_face(faces: list[Face], choice: str, name: str) -> tuple[Face, str | None]:
    """The face that `choice` names, and a sentence that lists them where there were several and none was chosen.

    choice: `largest`, a number from 1 (left to right), or `x,y` in pixels of the picture: the face that holds the
    point, else the nearest to it. Raises `UserError` for another choice, or a number that is too high.
    """
    if choice == "largest":
        face = max(faces, key=lambda each: each.size)
        if len(faces) == 1:
            return face, None
        listed = "; ".join(f"{number}: {_place(each)}" for number, each in enumerate(faces, 1))
        chosen = next(number for number, each in enumerate(faces, 1) if each is face)
        return face, f"{name} shows {len(faces)} faces, the largest ({chosen}) is used; choose with --face: {listed}."
    kind, values = parse_choice(choice)
    if kind == "number":
        number = int(values[0])
        if number > len(faces):
            raise UserError(f"{name} shows {len(faces)} face{'s' * (len(faces) > 1)}; there is no face {number}.")
        return faces[number - 1], None
    return min(faces, key=lambda each: _distance(each, values[0], values[1])), None


def parse_choice(choice: str) -> tuple[str, tuple[float, ...]]:
    """`largest`, a number from 1, or `x,y` -> ("largest" | "number" | "point", values). Raises `UserError`."""
    if choice == "largest":
        return "largest", ()
    parts = choice.split(",")
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) == 2 and all(map(np.isfinite, values)):
        return "point", values
    if len(values) == 1 and parts[0].strip().isdigit() and values[0] >= 1:
        return "number", values
    raise UserError(f"face must be largest, a number from 1 (left to right) or x,y in pixels, got {choice!r}.")


def _place(face: Face) -> str:
    left, top, right, bottom = face.box
    centre = (left + right) / 2 * face.width, (top + bottom) / 2 * face.height
    return f"{face.size:.0f} pixels at {centre[0]:.0f},{centre[1]:.0f}"


def _distance(face: Face, x: float, y: float) -> float:
    """Pixels from a point to a face's box; inside it, minus one over its size, so that the smallest box wins."""
    left, top, right, bottom = face.box
    dx = max(left * face.width - x, 0, x - right * face.width)
    dy = max(top * face.height - y, 0, y - bottom * face.height)
    return float(np.hypot(dx, dy)) or -1 / face.size


def _resized(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    way = cv2.INTER_AREA if picture.shape[0] > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (size, size), interpolation=way), np.uint8)

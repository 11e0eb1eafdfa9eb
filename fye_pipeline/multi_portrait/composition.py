"""Animated squares in one picture: each person's is seen in that person's own pixels and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.portrait import Crop
from fye_pipeline.multi_portrait.ownership import Labels, soft_inside

SEAM = 0.05  # width of the soft seam inside a person's region, as a share of the square's side


@dataclass(frozen=True)
class Composition:
    """A picture, uint8 [H, W, 3], and for each moved person the square and how much of it is seen, [side, side].

    The shares of two people never overlap, and a pixel with share 0 stays the picture's: who changes one person's
    square changes nothing of anybody else.
    """

    picture: NDArray[np.uint8]
    crops: tuple[Crop, ...]
    shares: tuple[NDArray[np.float32], ...]

    def lay(self, squares: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One frame from everybody's square [S, S, 3]. -> [H, W, 3]."""
        frame = self.picture
        for square, crop, share in zip(squares, self.crops, self.shares, strict=True):
            frame = crop.paste(square, frame, share)
        return frame


def compose(picture: NDArray[np.uint8], owners: Labels, people: Sequence[tuple[int, Crop]]) -> Composition:
    """owners: whose each pixel is, [H, W]. people: the label and the square of everybody who is moved."""
    shares = tuple(visible_share(crop, owners == number) for number, crop in people)
    return Composition(picture, tuple(crop for _, crop in people), shares)


def visible_share(crop: Crop, owned: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How much of a person's square is seen at each of its pixels: 0 outside the region [H, W] that is theirs.

    It falls to 0 inside the region, at its border and at the square's. -> [side, side].
    """
    inner = crop.inner()
    share = np.zeros((crop.side, crop.side), np.float32)
    share[inner] = np.minimum(soft_inside(owned[crop.inside()], SEAM * crop.side), crop.seam()[inner])
    return share

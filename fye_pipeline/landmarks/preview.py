"""A strip that shows what was read from a video: driving frames over their drawn landmarks."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import Style, draw_sequence
from fye_pipeline.landmarks.sequence import LandmarkSequence

_MARK_COLOUR = (255, 80, 0)
_MARK_SHARE = 1 / 32  # of a tile's height


def preview_strip(
    frames: Iterable[NDArray[np.uint8]],
    sequence: LandmarkSequence,
    *,
    columns: int = 8,
    tile_height: int = 256,
    style: Style = "expression",
) -> NDArray[np.uint8]:
    """Evenly spaced frames over their landmarks -> uint8 RGB [2 * tile_height, columns * tile width, 3].

    `frames` are the F frames the sequence was made from, taken one at a time; only those shown are kept. Fewer frames
    than columns give fewer tiles. An orange bar marks a frame whose face was not seen. Raises `UserError` where there
    are fewer frames than the sequence has.
    """
    if columns < 1 or tile_height < 1:
        raise ValueError(f"columns and tile_height must be >= 1, got {columns} and {tile_height}")
    if not len(sequence):
        raise UserError("The landmark sequence has no frames to preview.")
    picks = np.unique(np.linspace(0, len(sequence) - 1, columns).round().astype(int))
    width = max(round(tile_height * sequence.width / sequence.height), 1)
    tiles = []
    for number, frame in enumerate(frames):
        if number in picks:
            tiles.append(cv2.resize(np.ascontiguousarray(frame), (width, tile_height), interpolation=cv2.INTER_AREA))
        if number == picks[-1]:
            break
    if len(tiles) < len(picks):
        raise UserError(
            f"The landmark sequence has {len(sequence)} frames, the video fewer: they do not belong together."
        )
    drawn = draw_sequence(sequence.landmarks[picks], (width, tile_height), style=style)
    strip = np.concatenate([np.concatenate(tiles, axis=1), np.concatenate(list(drawn), axis=1)])
    for column, number in enumerate(picks):
        if not sequence.found[number]:
            strip[: max(round(tile_height * _MARK_SHARE), 1), column * width : (column + 1) * width] = _MARK_COLOUR
    return strip

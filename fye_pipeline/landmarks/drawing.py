"""What is drawn of landmarks: the pictures that the landmark encoder sees, and masks of expression and face.

OpenCV lines, pixel-identical to the released model's pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, Protocol, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks import topology
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import EXPRESSION_POINTS, FACE_OUTLINE, LEFT_PUPIL, RIGHT_PUPIL

Style = Literal["expression", "with-contour", "without-pupils", "plain"]
"""What is drawn; the last three are the ablations of Table 4, Follow-Your-Emoji-Faster.

- `expression`: eyes, brows, inner lips and pupils: the expression-aware landmarks of the released model;
- `with-contour`: the same and the outline of the face;
- `without-pupils`: the same without pupils;
- `plain`: MediaPipe's ordinary 2D landmarks: eyes, brows, both lip lines and the outline, no pupils.
"""

DRAW_SIZE = 512  # the released model's picture; smaller pictures are drawn at this size and area-averaged
PUPIL_COLOUR = (255, 0, 0)
PUPIL_HALF = 3  # a pupil is a square of 6 x 6 pixels at 512
CONTOUR_COLOUR = (200, 200, 200)
OUTER_LIP_COLOUR = (200, 100, 150)
_MARK_COLOUR = (255, 80, 0)  # of a preview's frame without a face
_MARK_SHARE = 1 / 32  # of a tile's height

Colour = tuple[int, int, int]
Chain = tuple[int, ...]

# Order matters where lines share points (the lips): the later line wins.
_EXPRESSION: tuple[tuple[Chain, Colour], ...] = (
    *((chain, (180, 200, 10)) for chain in topology.LEFT_EYE),
    *((chain, (180, 220, 10)) for chain in topology.LEFT_BROW),
    *((chain, (10, 200, 180)) for chain in topology.RIGHT_EYE),
    *((chain, (10, 220, 180)) for chain in topology.RIGHT_BROW),
    (topology.INNER_LIP_BOTTOM_RIGHT, (100, 100, 30)),
    (topology.INNER_LIP_BOTTOM_LEFT, (100, 150, 50)),
    (topology.INNER_LIP_TOP_RIGHT, (120, 100, 200)),
    (topology.INNER_LIP_TOP_LEFT, (150, 120, 100)),
)
_CONTOUR: tuple[tuple[Chain, Colour], ...] = ((topology.CONTOUR, CONTOUR_COLOUR),)
_OUTER_LIPS: tuple[tuple[Chain, Colour], ...] = tuple((chain, OUTER_LIP_COLOUR) for chain in topology.OUTER_LIPS)
_CHAINS: dict[str, tuple[tuple[Chain, Colour], ...]] = {
    "expression": _EXPRESSION,
    "with-contour": _CONTOUR + _EXPRESSION,
    "without-pupils": _EXPRESSION,
    "plain": _CONTOUR + _OUTER_LIPS + _EXPRESSION,
}


def draw_landmarks(landmarks: NDArray, width: int, height: int, *, style: Style = "expression") -> NDArray[np.uint8]:
    """Draw one frame's landmarks [478, >= 2] (x, y in 0..1) on black -> uint8 RGB [height, width, 3].

    A line is left out where an end lies outside the picture; pupils are cut at its border.
    """
    if style not in _CHAINS:
        raise ValueError(f"style must be one of {', '.join(get_args(Style))}, got {style!r}")
    if len(landmarks) < topology.N_POINTS:
        raise ValueError(f"landmarks must have {topology.N_POINTS} points, got {len(landmarks)}")
    size = np.array([width, height])
    # The official code passes through a float32 message: the rounding decides single pixels.
    points = np.asarray(landmarks)[:, :2].astype(np.float32).astype(np.float64)
    inside = np.all((points >= 0) & (points <= 1), axis=1)
    pixels = np.floor(np.where(inside[:, None], points, 0) * size).astype(int).clip(max=size - 1).tolist()
    picture = np.zeros((height, width, 3), np.uint8)
    for chain, colour in _CHAINS[style]:
        for start, end in pairwise(chain):
            if inside[start] and inside[end]:
                cv2.line(picture, pixels[start], pixels[end], colour, 1)
    if style in ("expression", "with-contour"):
        _draw_pupils(picture, np.asarray(landmarks, np.float64))
    return picture


def _draw_pupils(picture: NDArray[np.uint8], landmarks: NDArray) -> None:
    height, width = picture.shape[:2]
    for point in (LEFT_PUPIL, RIGHT_PUPIL):
        position = landmarks[point, :2] * (width, height)
        if not np.isfinite(position).all():
            continue
        x, y = np.trunc(position).clip(-PUPIL_HALF, max(width, height) + PUPIL_HALF).astype(int)
        rows = slice(max(y - PUPIL_HALF, 0), max(y + PUPIL_HALF, 0))
        columns = slice(max(x - PUPIL_HALF, 0), max(x + PUPIL_HALF, 0))
        picture[rows, columns] = PUPIL_COLOUR


def draw_sequence(
    landmarks: NDArray, size: int | tuple[int, int], *, draw_size: int = DRAW_SIZE, style: Style = "expression"
) -> NDArray[np.uint8]:
    """Draw landmarks [F, 478, >= 2] -> uint8 RGB [F, H, W, 3]; `size` is the square's side or (width, height).

    A picture smaller than `draw_size` is drawn with its longer side at `draw_size` and area-averaged, so that thin
    lines fade and a pupil keeps its share of the eye instead of covering it.
    """
    width, height = (size, size) if isinstance(size, int) else size
    scale = max(draw_size / max(width, height), 1.0)
    drawn_width, drawn_height = round(width * scale), round(height * scale)
    pictures = np.empty((len(landmarks), height, width, 3), np.uint8)
    for picture, frame in zip(pictures, landmarks, strict=True):
        drawn = draw_landmarks(frame, drawn_width, drawn_height, style=style)
        if scale > 1:
            drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        picture[:] = drawn
    return pictures


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


DEFAULT_RADIUS = 1 / 64  # of the longer side: 8 pixels at 512, one cell of the latent grid


def expression_mask(
    landmarks: NDArray, height: int, width: int, *, radius: float = DEFAULT_RADIUS
) -> NDArray[np.float32]:
    """A disc around every drawn landmark (eyes, brows, inner lips, pupils): [..., 478, >= 2] -> [..., H, W] in {0, 1}.

    Landmarks are x, y in 0..1; `radius` is a share of the picture's longer side. A pixel belongs to a disc when its
    centre is at most the radius away from the centre of the landmark's own pixel. M_e of the facial fine-grained loss.
    """
    if radius < 0:
        raise ValueError(f"radius must be >= 0, got {radius}")
    lead = landmarks.shape[:-2]
    points = np.asarray(landmarks, np.float64)[..., list(EXPRESSION_POINTS), :2].reshape(-1, len(EXPRESSION_POINTS), 2)
    pixels = radius * max(height, width)
    reach = int(pixels)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = dx**2 + dy**2 <= pixels**2
    far = 4 * (height + width)  # clipping only keeps the integers small: such discs stay out of the picture
    centres = np.floor((points * (width, height)).clip(-far, far)).astype(np.int64)
    x = centres[..., 0, None] + dx[disc]  # [B, points, pixels of a disc]
    y = centres[..., 1, None] + dy[disc]
    visible = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    frame = np.broadcast_to(np.arange(len(points))[:, None, None], x.shape)
    mask = np.zeros((len(points), height, width), np.float32)
    mask[frame[visible], y[visible], x[visible]] = 1
    return mask.reshape(*lead, height, width)


def facial_mask(landmarks: NDArray, height: int, width: int) -> NDArray[np.float32]:
    """The filled outline of the face without the forehead: [..., 478, >= 2] -> [..., H, W] in {0, 1}.

    M_f of the facial fine-grained loss; pixel-identical to the released code's mask at its own size.
    """
    lead = landmarks.shape[:-2]
    points = np.asarray(landmarks, np.float64)[..., list(FACE_OUTLINE), :2].reshape(-1, len(FACE_OUTLINE), 2)
    far = 4 * (height + width)
    polygons = np.trunc((points * (width, height)).clip(-far, far)).astype(np.int32)
    mask = np.zeros((len(polygons), height, width), np.uint8)
    for picture, polygon in zip(mask, polygons, strict=True):
        cv2.fillPoly(picture, [np.ascontiguousarray(polygon)], 1)
    return mask.astype(np.float32).reshape(*lead, height, width)


def face_region(landmarks: NDArray, height: int, width: int) -> NDArray[np.float32]:
    """Where the expression or the face is, for the cache: [..., 478, >= 2] -> [..., H, W] in {0, 1}."""
    return np.maximum(expression_mask(landmarks, height, width), facial_mask(landmarks, height, width))


def reduce_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Area-average masks to another grid: [..., H, W] -> [..., height, width], values in [0, 1]."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    return torch.nn.functional.interpolate(flat, size=(height, width), mode="area").reshape(
        *mask.shape[:-2], height, width
    )


class Landmarks(Protocol):
    """Landmarks of a sequence, by slices of frames. -> [n, 478, >= 2]."""

    def __getitem__(self, frames: slice, /) -> NDArray[np.floating]: ...

"""Where the expression and the face are in a frame: masks for the loss, for the cache's region and for the metrics."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.landmarks.topology import EXPRESSION_POINTS, FACE_OUTLINE

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

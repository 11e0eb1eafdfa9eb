"""Shapes that the painter draws: hulls of the head and the hair, soft masks, the background."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.world.anatomy import Array

Picture = NDArray[np.uint8]
SUBPIXEL = 4  # fractional bits of the polygon coordinates

CIRCLE = np.linspace(0, 2 * np.pi, 24, endpoint=False)


def to_bytes(color: tuple[float, ...] | Array) -> tuple[float, ...]:
    return tuple(float(v) for v in np.clip(np.round(np.asarray(color, np.float64) * 255), 0, 255))


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Points on an ellipsoid. -> [P, 3]."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, 10), np.linspace(0, 2 * np.pi, 18, endpoint=False))
    unit = np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], -1).reshape(-1, 3)
    return np.asarray(centre) + unit * np.asarray(radii)


def hair_shell(style: str, volume: float) -> Array:
    shell = ellipsoid((0, 2.0, -3.4), (8.4 + 0.9 * volume, 9.7 + 1.2 * volume, 9.2 + 0.5 * volume))
    if style == "short":
        return shell[shell[:, 1] > 0.5]
    if style == "medium":
        return np.concatenate([shell, shell[:, :] * np.array([1.0, 0.5, 0.7]) + np.array([0, -6.0, 0])])
    if style == "long":
        low = shell * np.array([1.05 + 0.1 * volume, 0.4, 0.5])
        return np.concatenate([shell, low + np.array([0, -14.0, -2.0])])
    return shell


def blush(vertices: Array) -> Array:
    """Redder cheeks and nose. [468, 3] -> [468]."""
    weight = np.zeros(len(vertices))
    for centre, radius in (((-4.6, -1.2, 3.5), 1.7), ((4.6, -1.2, 3.5), 1.7), ((0, -0.8, 6.8), 1.1)):
        weight += np.exp(-((vertices - np.asarray(centre)) ** 2).sum(-1) / (2 * radius**2))
    return np.clip(weight, 0, 1)


def background_gradient(colors: tuple[tuple[float, float, float], ...], style: str, size: int) -> Picture:
    """A soft gradient of three colours. -> uint8 [size, size, 3]."""
    top, bottom, side = (np.asarray(c) for c in colors)
    y, x = np.mgrid[0:16, 0:16][..., None] / 15
    small = top * (1 - y) + bottom * y
    small = small + (side - small) * 0.5 * np.clip(x * 1.2 - 0.4, 0, 1)
    if style == "cartoon":
        small = np.broadcast_to(np.asarray(top), small.shape)
    pixels = np.clip(small * 255, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def polygon_mask(xy: Array, shape: tuple[int, ...]) -> tuple[tuple[int, int, int, int], Array] | None:
    """A polygon's bounding box within the canvas and its soft mask [h, w, 1], or None where nothing of it shows."""
    low, high = np.floor(xy.min(0)).astype(int) - 1, np.ceil(xy.max(0)).astype(int) + 2
    x0, y0 = np.clip(low, 0, shape[1::-1])
    x1, y1 = np.clip(high, 0, shape[1::-1])
    if x1 <= x0 or y1 <= y0:
        return None
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    fixed = np.round((xy - np.array([x0, y0])) * (1 << SUBPIXEL)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], (255.0,), cv2.LINE_AA, SUBPIXEL)
    return (int(x0), int(y0), int(x1), int(y1)), mask[..., None] / 255.0


def blend(target: Picture, patch: Picture, mask: Array) -> None:
    target[:] = np.uint8(np.round(target + (patch.astype(np.float64) - target) * mask))

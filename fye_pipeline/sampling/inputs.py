"""What a run is given, checked once and brought into one form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fye_pipeline.errors import UserError


def as_picture(image: Image.Image | np.ndarray) -> Image.Image:
    """Take a PIL picture or a uint8 [H, W, 3] array. Raises UserError for anything else."""
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image must be a PIL picture or uint8 [height, width, 3], got {what}")
    return Image.fromarray(image)


def check_landmarks(landmarks: Sequence[np.ndarray] | np.ndarray, cell: int) -> np.ndarray:
    """Check landmark pictures, whose sides `cell` must divide. -> uint8 [F, H, W, 3]; raises UserError."""
    pictures = np.ascontiguousarray(landmarks)  # torch takes no reversed views
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or not len(pictures):
        raise UserError(f"landmarks must be uint8 [frames, height, width, 3], got {pictures.dtype} {pictures.shape}")
    height, width = pictures.shape[1:3]
    if height % cell or width % cell:
        raise UserError(f"landmark pictures must have sides that {cell} divides, got {width} x {height}")
    return pictures


def check_bent(bent: Sequence[np.ndarray] | np.ndarray | None, landmarks: np.ndarray) -> np.ndarray | None:
    """Check bent portraits, RGBA of the landmark pictures' count and size. -> uint8 [F, H, W, 4]; UserError."""
    if bent is None:
        return None
    pictures = np.ascontiguousarray(bent)
    expected = (*landmarks.shape[:3], 4)
    if pictures.dtype != np.uint8 or pictures.shape != expected:
        raise UserError(f"bent must be uint8 {list(expected)}, got {pictures.dtype} {list(pictures.shape)}")
    return pictures


def check_region(region: np.ndarray | Tensor | None, frames: int) -> Tensor | None:
    """Check a region, [F, H, W] with one mask per frame. -> float32; raises UserError with the shape that came."""
    if region is None:
        return None
    region = torch.as_tensor(region, dtype=torch.float32)  # numpy's float64 can go onto no Apple GPU
    if region.ndim != 3 or len(region) != frames:
        raise UserError(f"region must be [{frames}, height, width], one mask per frame, got {list(region.shape)}")
    return region

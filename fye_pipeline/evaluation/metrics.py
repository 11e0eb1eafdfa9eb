"""Picture metrics on float videos in [0, 1], and landmark error through a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

Video = NDArray[np.floating]
Detect = Callable[[NDArray[np.uint8]], NDArray[np.floating] | None]


def _same_shape(video: Video, truth: Video) -> None:
    if video.shape != truth.shape:
        raise ValueError(f"videos must have one shape, got {video.shape} and {truth.shape}")


def l1(video: Video, truth: Video) -> float:
    """Mean absolute difference. Videos [F, H, W, 3] in [0, 1]."""
    _same_shape(video, truth)
    return float(np.abs(video - truth).mean())


def psnr(video: Video, truth: Video, *, floor: float = 1e-10) -> float:
    """Peak signal-to-noise ratio in dB against peak 1, of the whole video; 100 where the two are equal."""
    _same_shape(video, truth)
    return float(-10 * np.log10(max(float(((video - truth) ** 2).mean()), floor)))


def ssim(video: Video, truth: Video) -> float:
    """Structural similarity, mean over frames (torchmetrics, Gaussian window of 11 pixels)."""
    _same_shape(video, truth)
    first, second = (torch.from_numpy(np.ascontiguousarray(v)).float().permute(0, 3, 1, 2) for v in (video, truth))
    return float(structural_similarity_index_measure(first, second, data_range=1.0))  # pyright: ignore[reportArgumentType]


def jitter(video: Video) -> float:
    """Mean absolute second difference in time: what flickers, beside what moves evenly. 0 below 3 frames."""
    return float(np.abs(np.diff(video, n=2, axis=0)).mean()) if len(video) > 2 else 0.0


def landmark_error(video: Video, expected: Sequence[NDArray[np.floating] | None], detect: Detect) -> tuple[float, int]:
    """Mean 2-D distance in picture widths between detected and expected landmarks [478, >= 2] (x, y in 0..1).

    Frames where either has no face are left out. -> (error, nan if no frame is left; frames without a face in `video`).
    """
    _, height, width, _ = video.shape
    scale = np.array([1.0, height / width])
    errors, missing = [], 0
    for frame, target in zip(to_uint8(video), expected, strict=True):
        found = detect(frame)
        if found is None:
            missing += 1
        elif target is not None:
            errors.append(float(np.linalg.norm((found[:, :2] - target[:, :2]) * scale, axis=1).mean()))
    return (float(np.mean(errors)) if errors else float("nan")), missing


def to_uint8(video: Video) -> NDArray[np.uint8]:
    """[0, 1] floats -> uint8."""
    return np.asarray(np.clip(np.round(np.asarray(video) * 255), 0, 255), np.uint8)

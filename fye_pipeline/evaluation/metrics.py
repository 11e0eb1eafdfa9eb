"""Picture metrics on float videos in [0, 1], and landmark error through a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

Video = NDArray[np.floating]
Mask = NDArray[np.floating] | NDArray[np.bool_]
Detect = Callable[[NDArray[np.uint8]], NDArray[np.floating] | None]


def l1(video: Video, truth: Video, mask: Mask | None = None) -> float:
    """Mean absolute difference. [..., H, W, 3] in [0, 1] -> 0 (equal) to 1.

    `mask`, here and below: weights >= 0 of the pixels, bool or float, of any shape that broadcasts to [..., H, W]; only
    they count, each as much as its weight. Raises ValueError for two shapes, and for a mask without any pixel.
    """
    return _mean(np.abs(_difference(video, truth)), mask)


def psnr(video: Video, truth: Video, mask: Mask | None = None, *, floor: float = 1e-10) -> float:
    """Peak signal-to-noise ratio, 10 log10(1 / mean squared error), of all pixels at once, in dB against peak 1.

    [..., H, W, 3] in [0, 1]; 100 where the two are equal (`floor` is the least error). `mask` and errors as `l1`.
    """
    return float(-10 * np.log10(max(_mean(_difference(video, truth) ** 2, mask), floor)))


def ssim(video: Video, truth: Video, mask: Mask | None = None) -> float:
    """Structural similarity (Wang et al. 2004; torchmetrics, Gaussian window of 11 pixels), mean over pixels.

    [..., H, W, 3] in [0, 1] -> at most 1. Windows reach beyond a `mask`, which only says whose values count. Raises
    ValueError as `l1`.
    """
    _same_shape(video, truth)
    first, second = (_pictures(v) for v in (video, truth))
    answer = structural_similarity_index_measure(first, second, data_range=1.0, return_full_image=True)
    similarity = answer[1].permute(0, 2, 3, 1).reshape(np.shape(video)).double().numpy()
    return _mean(similarity, mask)


def _same_shape(video: Video, truth: Video) -> None:
    if np.shape(video) != np.shape(truth):
        raise ValueError(f"videos must have one shape, got {np.shape(video)} and {np.shape(truth)}")


def _difference(video: Video, truth: Video) -> NDArray[np.float64]:
    _same_shape(video, truth)
    return np.asarray(video, np.float64) - np.asarray(truth, np.float64)


def _mean(values: NDArray[np.float64], mask: Mask | None) -> float:
    """Mean of [..., H, W, 3] over the pixels of a mask."""
    if mask is None:
        return float(values.mean())
    weights = np.broadcast_to(np.asarray(mask, np.float64), values.shape[:-1])
    if weights.min() < 0 or not weights.any():
        raise ValueError("mask must have weights >= 0 and at least one pixel above 0")
    return float((values.mean(-1) * weights).sum() / weights.sum())


def _pictures(video: Video) -> torch.Tensor:
    """[..., H, W, 3] -> [B, 3, H, W] float32."""
    flat = np.asarray(video, np.float32).reshape(-1, *np.shape(video)[-3:])
    return torch.from_numpy(np.ascontiguousarray(flat.transpose(0, 3, 1, 2)))


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

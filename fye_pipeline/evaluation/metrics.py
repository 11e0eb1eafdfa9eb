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
    return _mean(lambda one, two: np.abs(one - two), video, truth, mask)


def psnr(video: Video, truth: Video, mask: Mask | None = None, *, floor: float = 1e-10) -> float:
    """Peak signal-to-noise ratio, 10 log10(1 / mean squared error), of all pixels at once, in dB against peak 1.

    [..., H, W, 3] in [0, 1]; 100 where the two are equal (`floor` is the least error). `mask` and errors as `l1`.
    """
    return float(-10 * np.log10(max(_mean(lambda one, two: (one - two) ** 2, video, truth, mask), floor)))


def ssim(video: Video, truth: Video, mask: Mask | None = None) -> float:
    """Structural similarity (Wang et al. 2004; torchmetrics, Gaussian window of 11 pixels), mean over pixels.

    [..., H, W, 3] in [0, 1] -> at most 1. Windows reach beyond a `mask`, which only says whose values count. Raises
    ValueError as `l1`.
    """

    def similarity(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
        answer = structural_similarity_index_measure(
            _pictures(one), _pictures(two), data_range=1.0, return_full_image=True
        )
        return answer[1].permute(0, 2, 3, 1).reshape(one.shape).double().numpy()

    return _mean(similarity, video, truth, mask)


Compare = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _mean(compare: Compare, video: Video, truth: Video, mask: Mask | None) -> float:
    """Mean of what `compare` gives of [..., H, W, 3] over the pixels of a mask; a video is taken frame by frame."""
    if np.shape(video) != np.shape(truth):
        raise ValueError(f"videos must have one shape, got {np.shape(video)} and {np.shape(truth)}")
    shape = np.shape(video)[:-1]
    weights = np.broadcast_to(np.ones(1) if mask is None else np.asarray(mask), shape)
    if weights.min() < 0 or not weights.any():
        raise ValueError("mask must have weights >= 0 and at least one pixel above 0")
    total = weight = 0.0
    flat = [np.reshape(each, (-1, *shape[-2:], 3)) for each in (video, truth)]
    for one, two, share in zip(*flat, np.reshape(weights, (-1, *shape[-2:])), strict=True):
        values = compare(np.asarray(one, np.float64), np.asarray(two, np.float64)).mean(-1)
        total += float((values * share).sum())
        weight += float(share.sum())
    return total / weight


def _pictures(video: Video) -> torch.Tensor:
    """[..., H, W, 3] -> [B, 3, H, W] float32."""
    flat = np.asarray(video, np.float32).reshape(-1, *np.shape(video)[-3:])
    return torch.from_numpy(np.ascontiguousarray(flat.transpose(0, 3, 1, 2)))


def jitter(video: Video) -> float:
    """Mean absolute second difference in time: what flickers, beside what moves evenly. 0 below 3 frames."""
    if len(video) < 3:
        return 0.0
    triples = zip(video[:-2], video[1:-1], video[2:], strict=True)
    return float(np.mean([np.abs(one - 2 * two + three).mean() for one, two, three in triples]))


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

"""Which pixel belongs to whom: a hard label for every pixel and every token, so that nobody moves anybody else's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fye_pipeline.landmarks.faces import Box

Labels = NDArray[np.int32]  # 0: nobody; n: person n, counted from 1

# A head by the box of its face, which ends at the hairline: half axes over the box's, and how far its middle is higher.
_HEAD = (1.25, 1.4)
_HIGHER = 0.15  # of the box's height
GROWN = 0.15  # of the face's height, all around its hull
LEAST_COVER = 0.1  # of a token's area: whoever covers less does not own it


def nearest_heads(boxes: Sequence[Box], width: int, height: int) -> Labels:
    """The person whose head is nearest to each pixel, by the head's own size. -> [height, width], 1..N.

    boxes: faces in 0..1 of a picture of width x height pixels. The labels depend on the picture alone: where a driver
    moves a face does not change whose pixels they are.
    """
    nearest = np.full((height, width), np.inf, np.float32)
    owners = np.zeros((height, width), np.int32)
    across = (np.arange(width, dtype=np.float32) + 0.5)[None, :]
    down = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        half = (right - left) / 2 * width * _HEAD[0], (bottom - top) / 2 * height * _HEAD[1]
        middle = (left + right) / 2 * width, ((top + bottom) / 2 - _HIGHER * (bottom - top)) * height
        distance = np.hypot((across - middle[0]) / half[0], (down - middle[1]) / half[1])
        closer = distance < nearest
        nearest[closer], owners[closer] = distance[closer], number
    return owners


def soft_inside(owned: NDArray[np.bool_], width: float) -> NDArray[np.float32]:
    """1 in the inside of a region [H, W], falling smoothly to 0 at its border over `width` pixels; 0 outside.

    Where the region ends with the array it does not fall.
    """
    if owned.all():
        return np.ones(owned.shape, np.float32)
    distance = cv2.distanceTransform(owned.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rise = np.clip(np.asarray(distance, np.float32) / max(width, 1.0), 0, 1)
    return np.asarray(np.where(owned, rise * rise * (3 - 2 * rise), 0), np.float32)


def token_shares(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Hard ownership of the tokens of a grid from everybody's pixels. [B, P, H, W] -> [B, P, h, w] of 0 and 1.

    Each person's share of a token's area is averaged; the token belongs to whoever has the largest (of equals, the
    first), and to nobody below a tenth.
    """
    cover = functional.adaptive_avg_pool2d(masks.float(), grid)
    people = torch.arange(cover.shape[1], device=cover.device).view(1, -1, 1, 1)
    owned = (cover.argmax(dim=1, keepdim=True) == people) & (cover >= LEAST_COVER)
    return owned.float()


def face_masks(landmarks: Sequence[NDArray[np.floating]], width: int, height: int) -> NDArray[np.bool_]:
    """Where everybody's face is in one frame: the hull of the landmarks, grown by 15 % of the face's height.

    landmarks: of each person [478, >= 2], in 0..1 of a picture of width x height pixels. A person without landmarks
    (not finite) has no pixels. -> [P, height, width].
    """
    masks = np.zeros((len(landmarks), height, width), np.uint8)
    for mask, points in zip(masks, landmarks, strict=True):
        own = np.asarray(points)[:, :2] * (width, height)
        if not np.isfinite(own).all():
            continue
        hull = cv2.convexHull(own.astype(np.float32))
        cv2.fillConvexPoly(mask, np.round(hull).astype(np.int32), 1)
        reach = max(round(GROWN * float(np.ptp(own[:, 1]))), 1)
        cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)), dst=mask)
    return masks.astype(bool)


def face_shares(frames: Iterable[Sequence[NDArray[np.floating]]], width: int, height: int, cell: int) -> Tensor:
    """How much of each latent's pixels are a person's face, as `face_masks`. -> [1, P, F, height / cell, width / cell].

    frames: everybody's landmarks in each of F frames. cell: pixels a side of a latent.
    """
    every = [
        functional.avg_pool2d(torch.from_numpy(face_masks(people, width, height)).float(), cell) for people in frames
    ]
    return torch.stack(every, dim=1)[None]

"""What the adapters see of a face: the expression alone, and the face alone, both upright and of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks.topology import EXPRESSION_POINTS, OUTER_LIPS

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Colour = Literal["keep", "grey", "jitter"]

# Pupils, tip of the nose, corners of the mouth, as they are seen from left to right.
FIVE = (468, 473, 1, 61, 291)
# Where they lie in a crop of side 1: between the eyes `spread`, their height, and InsightFace's proportions below them.
NOSE_DROP, MOUTH_DROP, MOUTH_SPREAD = 0.57, 1.156, 0.83
NOSE = (1, 2, 98, 168, 327)
KEPT = sorted({*EXPRESSION_POINTS, *NOSE, *(point for chain in OUTER_LIPS for point in chain)})
EYES = (33, 263)  # outer corners, whose distance is the eye distance
MEAN_COLOUR = (122.77, 116.75, 104.09)  # of CLIP's training pictures: zero after its normalisation
DILATION = 0.08  # of the eye distance


def template(spread: float, height: float) -> Floats:
    """Where the five points lie in a crop of side 1, eyes `spread` apart at `height`. -> [5, 2]."""
    mouth = height + MOUTH_DROP * spread
    half, corner = spread / 2, MOUTH_SPREAD * spread / 2
    nose = height + NOSE_DROP * spread
    return np.array(
        [[0.5 - half, height], [0.5 + half, height], [0.5, nose], [0.5 - corner, mouth], [0.5 + corner, mouth]]
    )


EXPRESSION_TEMPLATE = template(0.34, 0.36)
FACE_TEMPLATE = template(0.27, 0.45)  # with the hair and the chin


def similarity(source: Floats, target: Floats) -> Floats:
    """The turn, scale and shift that brings points nearest to others (least squares). [P, 2] twice -> [2, 3]."""
    centre, aim = source.mean(0), target.mean(0)
    moved, wanted = (source - centre) @ (1, 1j), (target - aim) @ (1, 1j)
    turn = (moved.conj() @ wanted) / max(float((np.abs(moved) ** 2).sum()), 1e-12)
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.concatenate([matrix, (aim - matrix @ centre)[:, None]], axis=1)


@dataclass(frozen=True)
class CropOptions:
    """colour: as it is, grey, or hue, saturation and light shifted at random. contour: keep the jaw's outline too.

    augment: mirrored at random, scaled by up to 5 % and shifted by up to 3 %.
    """

    colour: Colour = "keep"
    contour: bool = False
    augment: bool = False


PLAIN = CropOptions()


def expression_crop(
    picture: Picture,
    landmarks: NDArray[np.floating],
    size: int = 224,
    options: CropOptions = PLAIN,
    rng: np.random.Generator | None = None,
) -> Picture:
    """Brows, eyes, nose and lips, upright; all else is the encoder's mean colour. -> uint8 [size, size, 3].

    picture: [H, W, 3]; landmarks [478, >= 2] in 0..1 of it. Turned by the roll only: yaw and pitch stay in the pixels.
    rng: for what the options leave to chance; ValueError where it is missing.
    """
    by_chance = options.augment or options.colour == "jitter"
    if by_chance and rng is None:
        raise ValueError("rng must be given for a crop with jitter or augmentation, got None")
    height, width = picture.shape[:2]
    points = np.asarray(landmarks, np.float64)[:, :2] * (width, height)
    aim = EXPRESSION_TEMPLATE
    if options.augment and rng is not None:
        aim = (aim - 0.5) * rng.uniform(0.95, 1.05) + 0.5 + rng.uniform(-0.03, 0.03, 2)
    matrix = similarity(points[list(FIVE)], aim * size)
    crop = np.asarray(
        cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )
    inside = points @ matrix[:, :2].T + matrix[:, 2]
    crop = _recolour(crop, options.colour, rng)
    crop = (
        np.where(_kept(inside, size, options.contour)[..., None], crop, np.asarray(MEAN_COLOUR))
        .round()
        .astype(np.uint8)
    )
    if options.augment and rng is not None and rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    return crop


def points_in_crop(landmarks: NDArray[np.floating], aspect: float = 1.0) -> Floats:
    """Where landmarks [478, >= 2] in 0..1 lie in a plain expression crop of side 1. aspect: height over width."""
    points = np.asarray(landmarks, np.float64)[:, :2] * (1.0, aspect)
    matrix = similarity(points[list(FIVE)], EXPRESSION_TEMPLATE)
    return points @ matrix[:, :2].T + matrix[:, 2]


def face_crop(picture: Picture, landmarks: NDArray[np.floating], size: int = 112) -> Picture:
    """The face with its hair, upright: what tells who it is. -> uint8 [size, size, 3]."""
    height, width = picture.shape[:2]
    points = np.asarray(landmarks, np.float64)[list(FIVE), :2] * (width, height)
    matrix = similarity(points, FACE_TEMPLATE * size)
    return np.asarray(
        cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _kept(points: Floats, size: int, contour: bool) -> NDArray[np.bool_]:
    """The hull of brows, eyes, nose and outer lips, a little wider. points [478, 2] in pixels -> [size, size]."""
    chosen = points if contour else points[KEPT]
    mask = np.zeros((size, size), np.uint8)
    hull = cv2.convexHull(np.round(chosen).astype(np.int32))
    cv2.fillConvexPoly(mask, hull, 1)
    reach = max(round(DILATION * float(np.linalg.norm(points[EYES[0]] - points[EYES[1]]))), 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(cv2.dilate(mask, kernel), bool)


def _recolour(crop: Picture, colour: Colour, rng: np.random.Generator | None) -> Picture:
    if colour == "grey":
        return np.asarray(cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    if colour == "jitter" and rng is not None:
        hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(-90, 90)) % 180
        hsv[..., 1:] *= rng.uniform(0.5, 1.5, 2)
        return np.asarray(cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)
    return crop

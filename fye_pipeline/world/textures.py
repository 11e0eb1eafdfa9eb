"""Pictures with the statistics of photographs, drawn from a seed: dead leaves, noise of 1/f, strands, cloth, text.

Dead leaves (Lee, Mumford & Huang 2001): shapes of power-law sizes that cover each other, which gives the edges and the
spectrum of natural pictures. Every function takes a random generator and gives uint8 RGB or float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Field = NDArray[np.float32]

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789&%?!"


def palette(rng: np.random.Generator, count: int) -> Field:
    """Colours that go together: a few hues, any brightness, seldom saturated. -> [count, 3] in [0, 1]."""
    hue = (rng.random() + rng.normal(0, rng.choice((0.03, 0.12, 0.4)), count)) % 1
    saturation, value = rng.beta(1.3, 3.0, count), rng.beta(1.2, 1.2, count)
    hsv = np.stack([hue * 360, saturation, value], axis=1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def noise(size: int, rng: np.random.Generator, exponent: float = 1.0) -> Field:
    """A field of noise whose amplitude falls with frequency to the power of `exponent`. -> [size, size] in [0, 1]."""
    across, down = np.fft.rfftfreq(size), np.fft.fftfreq(size)
    frequency = np.hypot(down[:, None], across[None, :])
    frequency[0, 0] = 1
    spectrum = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) / frequency**exponent
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.clip(field / (field.std() + 1e-9) / 6 + 0.5, 0, 1).astype(np.float32)


def dead_leaves(size: int, rng: np.random.Generator, *, leaves: int | None = None) -> Picture:
    """Discs, ellipses, rectangles and polygons that cover each other, many with texture and shading. -> [S, S, 3]."""
    colours = palette(rng, 24)
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = colours[rng.integers(24)]
    count = int(rng.integers(40, 200)) if leaves is None else leaves
    least, most = rng.uniform(0.01, 0.04) * size, rng.uniform(0.25, 0.6) * size
    # Every octave of sizes has as many leaves; large ones tend to come first, or they would cover everything.
    radii = np.exp(rng.uniform(np.log(least), np.log(most), count))
    radii = radii[np.argsort(-radii * np.exp(rng.normal(0, 0.7, count)))]
    plain = rng.random() < 0.3
    for radius in radii:
        mask = np.zeros((size, size), np.uint8)
        centre = rng.uniform(-0.1, 1.1, 2) * size
        _draw_leaf(mask, centre, float(radius), rng)
        x, y, width, height = cv2.boundingRect(mask)
        if not width:
            continue
        window = slice(y, y + height), slice(x, x + width)
        colour = np.clip(colours[rng.integers(24)] + rng.normal(0, 0.06, 3), 0, 1).astype(np.float32)
        fill = np.broadcast_to(colour, (height, width, 3)).copy()
        if not plain and radius > 0.05 * size and rng.random() < 0.7:
            fill = _textured(fill, rng)
        if rng.random() < 0.5:  # light from one side
            slope = rng.normal(0, 0.25, 2)
            ramp = slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)[None, :]
            fill *= (1 + ramp[..., None]).astype(np.float32)
        alpha = mask[window][..., None].astype(np.float32) / 255
        picture[window] += alpha * (fill - picture[window])
    return to_bytes(picture)


def _draw_leaf(mask: Picture, centre: NDArray, radius: float, rng: np.random.Generator) -> None:
    kind = rng.integers(4)
    x, y = round(float(centre[0]) * 16), round(float(centre[1]) * 16)
    angle = float(rng.uniform(0, 360))
    if kind == 0:
        cv2.circle(mask, (x, y), round(radius * 16), (255.0,), -1, cv2.LINE_AA, 4)
        return
    stretch = float(rng.uniform(0.15, 1))
    if kind == 1:
        axes = round(radius * 16), round(radius * stretch * 16)
        cv2.ellipse(mask, (x, y), axes, angle, 0, 360, (255.0,), -1, cv2.LINE_AA, 4)
        return
    corners = 4 if kind == 2 else int(rng.integers(3, 8))
    around = np.sort(rng.uniform(0, 2 * np.pi, corners)) if kind == 3 else np.arange(4) * np.pi / 2 + np.pi / 4
    points = np.stack([np.cos(around), np.sin(around) * stretch], axis=1) * radius
    turn = np.deg2rad(angle)
    rotated = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + centre
    cv2.fillPoly(mask, [np.round(rotated * 16).astype(np.int32)], (255.0,), cv2.LINE_AA, 4)


def _textured(fill: Field, rng: np.random.Generator) -> Field:
    height, width = fill.shape[:2]
    side = max(height, width, 8)
    pattern = PATTERNS[rng.integers(len(PATTERNS))](side, rng)[:height, :width, None]
    other = np.clip(fill + rng.normal(0, 0.25, 3), 0, 1).astype(np.float32)
    return (fill + (pattern * rng.uniform(0.2, 1)).astype(np.float32) * (other - fill)).astype(np.float32)


def strands(size: int, rng: np.random.Generator) -> Field:
    """Fine lines that run alongside each other, as hair or fur does. -> [size, size] in [0, 1]."""
    fine = rng.random((size, size)).astype(np.float32)
    length, angle = float(rng.uniform(4, 16)), float(rng.uniform(0, np.pi))
    reach = int(2 * length) | 1
    along = np.zeros((reach, reach), np.float32)
    middle = reach // 2
    offset = np.array([np.cos(angle), np.sin(angle)]) * length
    cv2.line(
        along,
        (round(middle - offset[0]), round(middle - offset[1])),
        (round(middle + offset[0]), round(middle + offset[1])),
        (1.0,),
        1,
        cv2.LINE_AA,
    )
    drawn = cv2.filter2D(fine, -1, along / along.sum(), borderType=cv2.BORDER_REFLECT)
    return np.clip((drawn - drawn.mean()) / (drawn.std() + 1e-6) / 4 + 0.5, 0, 1).astype(np.float32)


def weave(size: int, rng: np.random.Generator) -> Field:
    """Stripes, checks, dots or a knit, turned and bent a little. -> [size, size] in [0, 1]."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 24)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    bend = noise(size, rng, 2.0) * rng.uniform(0, 1.5) * period
    u = (x * np.cos(angle) + y * np.sin(angle) + bend) * 2 * np.pi / period
    v = (y * np.cos(angle) - x * np.sin(angle) + bend) * 2 * np.pi / (period * rng.uniform(0.6, 1.6))
    kind = rng.integers(4)
    if kind == 0:
        value = np.sin(u)
    elif kind == 1:
        value = np.sin(u) * np.sin(v)
    elif kind == 2:
        value = np.maximum(np.sin(u), np.sin(v))
    else:
        value = np.sin(u + 1.5 * np.abs(np.sin(v / 2)))
    sharp = rng.choice((1.0, 6.0))
    return (1 / (1 + np.exp(-sharp * 2 * value))).astype(np.float32)


def _blotches(size: int, rng: np.random.Generator) -> Field:
    return noise(size, rng, rng.uniform(0.7, 1.8))


def _grain(size: int, rng: np.random.Generator) -> Field:
    return np.clip(rng.normal(0.5, 0.25, (size, size)), 0, 1).astype(np.float32)


PATTERNS: tuple[Callable[[int, np.random.Generator], Field], ...] = (_blotches, _blotches, strands, weave, _grain)


def gradients(size: int, rng: np.random.Generator) -> Picture:
    """Soft changes of colour, with soft shadows. -> [S, S, 3]."""
    small = palette(rng, 9).reshape(3, 3, 3)
    picture = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    return to_bytes(picture * (0.7 + 0.6 * noise(size, rng, 2.2)[..., None]))


def text(size: int, rng: np.random.Generator, under: Picture | None = None) -> Picture:
    """A few lines of letters on a picture (default: a gradient). -> [S, S, 3]."""
    picture = gradients(size, rng) if under is None else under.copy()
    for _ in range(int(rng.integers(1, 6))):
        words = "".join(rng.choice(list(LETTERS), int(rng.integers(3, 14))))
        colour = tuple(float(value) for value in rng.integers(0, 256, 3))
        place = int(rng.integers(-10, size // 2)), int(rng.integers(8, size))
        scale, thick = float(rng.uniform(0.3, 1.4)), int(rng.integers(1, 4))
        cv2.putText(picture, words, place, int(rng.integers(8)), scale, colour, thick, cv2.LINE_AA)
    return picture


def camera(picture: Picture, rng: np.random.Generator) -> Picture:
    """What a camera adds: blur, noise, JPEG's blocks, each of them sometimes. uint8 [H, W, 3] -> the same."""
    if rng.random() < 0.25:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 1.2))), np.uint8)
    if rng.random() < 0.4:
        grain = rng.normal(0, rng.uniform(1, 8), picture.shape)
        picture = np.clip(picture + grain + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        _, packed = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 95))])
        picture = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return picture


def natural_picture(size: int, rng: np.random.Generator) -> Picture:
    """Any of the pictures above, most often dead leaves. -> uint8 [S, S, 3]."""
    kind = rng.random()
    if kind < 0.70:
        wide = int(rng.choice((size, 2 * size)))  # reduced ones have the softer edges of a lens
        picture = dead_leaves(wide, rng)
        if wide > size:
            picture = np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
        if rng.random() < 0.1:
            picture = text(size, rng, picture)
    elif kind < 0.82:
        field = PATTERNS[rng.integers(len(PATTERNS))](size, rng)[..., None]
        first, second = palette(rng, 2)
        picture = to_bytes(first + field * (second - first))
    elif kind < 0.92:
        picture = gradients(size, rng)
    else:
        picture = text(size, rng)
    return camera(picture, rng)


def to_bytes(picture: NDArray[np.floating]) -> Picture:
    """[0, 1] -> uint8."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)

"""How a head moves: smooth curves for expression, gaze and pose, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fye_pipeline.world.anatomy import EXPRESSIONS, Array

HOME = np.array([0.0, 0.3, -27.0])  # cm: where the canonical origin rests before the camera


@dataclass(frozen=True)
class Motion:
    """Per frame: expression [F, E] in [0, 1], gaze [F, 2] in [-1, 1], rotation [F, 3] (pitch, yaw, roll, degrees),
    translation [F, 3] in cm."""

    expression: Array
    gaze: Array
    rotation: Array
    translation: Array

    def __len__(self) -> int:
        return len(self.gaze)


def _wave(rng: np.random.Generator, seconds: Array, rate: float) -> Array:
    """A smooth curve with a spread of about 1. [F] -> [F]."""
    total = np.zeros_like(seconds)
    for k in range(3):
        frequency = rate * rng.uniform(0.5, 1.6) * (k + 1) / 1.7
        total += rng.normal() / (k + 1) * np.sin(2 * np.pi * (frequency * seconds + rng.random()))
    return total / 0.8


def _pulses(rng: np.random.Generator, seconds: Array, every: float, width: float) -> Array:
    """Short raised-cosine events such as blinks, in [0, 1]. [F] -> [F]."""
    curve = np.zeros_like(seconds)
    at = seconds[0] + rng.uniform(-0.2, every)
    while at < seconds[-1] + width:
        distance = np.abs(seconds - at) / width
        curve = np.maximum(curve, np.where(distance < 1, 0.5 + 0.5 * np.cos(np.pi * distance), 0))
        at += rng.uniform(0.5, 1.5) * every
    return np.clip(curve * 1.25, 0, 1)


def _saccades(rng: np.random.Generator, seconds: Array) -> Array:
    """Gaze that rests and jumps, in [-1, 1]. [F] -> [F, 2]."""
    gaze = np.zeros((len(seconds), 2))
    now, at = rng.normal(0, 0.45, 2), seconds[0]
    while at < seconds[-1] + 0.2:
        until = at + rng.uniform(0.3, 1.2)
        after = np.clip(rng.normal(0, 0.55, 2), -1, 1)
        share = np.clip((seconds - until) / 0.12 + 0.5, 0, 1)[:, None]
        inside = (seconds >= at)[:, None]
        gaze = np.where(inside, now + (after - now) * share, gaze)
        now, at = after, until
    return np.clip(gaze, -1, 1)


def _rise(curve: Array, threshold: float) -> Array:
    """The part of a curve above a threshold, bent into [0, 1]."""
    return np.clip(np.maximum(curve - threshold, 0) / 1.2, 0, 1)


def sample_motion(*seed: int, frames: int = 16, fps: float = 12.0, strength: float = 1.0) -> Motion:
    """A lively motion from a seed: talking, smiling, blinking, looking about, turning.

    `strength` scales expression and pose; above 1 the face exaggerates. Raises ValueError if frames < 1.
    """
    if frames < 1:
        raise ValueError(f"frames must be >= 1, got {frames}")
    rng = np.random.default_rng([2, *seed])
    t = np.arange(frames) / fps + rng.uniform(0, 60)
    e: dict[str, Array] = {name: np.zeros(frames) for name in EXPRESSIONS}
    asymmetry = 0.35 * _wave(rng, t, 0.5)
    blink = _pulses(rng, t, rng.uniform(0.7, 2.0), 0.17)
    wink = _pulses(rng, t, 4.0, 0.3) * (rng.random() < 0.15)
    e["eyeBlinkLeft"], e["eyeBlinkRight"] = np.maximum(blink, wink), blink
    squint = 0.3 * _rise(_wave(rng, t, 0.4), 0.6)
    for side in ("Left", "Right"):
        e["eyeBlink" + side] = np.maximum(e["eyeBlink" + side], squint)
    wide = _rise(_wave(rng, t, 0.4), 0.5) * (1 - blink)
    up, down = _rise(_wave(rng, t, 0.5), 0.3), _rise(_wave(rng, t, 0.5), 0.5)
    smile = _rise(_wave(rng, t, 0.4), 0.1)
    frown = _rise(_wave(rng, t, 0.4), 0.7) * (1 - smile)
    for side, sign in (("Left", 1), ("Right", -1)):
        lean = np.clip(1 + sign * asymmetry, 0.3, 1.5)
        e["eyeWide" + side] = wide
        e["browOuterUp" + side] = up * lean
        e["browDown" + side] = down * (1 - up)
        e["mouthSmile" + side] = smile * lean
        e["mouthFrown" + side] = frown * lean
        e["mouthUpperUp" + side] = 0.7 * _rise(_wave(rng, t, 0.7), 0.5)
    e["browInnerUp"] = np.maximum(up * 0.8, _rise(_wave(rng, t, 0.4), 0.7))
    e["jawOpen"] = _rise(_wave(rng, t, 1.0), -0.1) * np.clip(rng.uniform(0.3, 1.4), 0, 1)
    e["mouthPucker"] = _rise(_wave(rng, t, 0.6), 0.45) * (1 - 0.8 * smile)
    e["jawLeft"] = 0.6 * _wave(rng, t, 0.4) * (rng.random() < 0.3)
    e["cheekPuff"] = _rise(_wave(rng, t, 0.4), 0.9) * (1 - e["jawOpen"])
    e["noseSneerLeft"] = _rise(_wave(rng, t, 0.4), 0.9)
    expression = np.stack([np.clip(e[name] * strength, -1, 1.15) for name in EXPRESSIONS], 1)
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        index = EXPRESSIONS.index(name)
        expression[:, index] = np.clip(e[name], 0, 1)
    spread = np.array([7.0, 12.0, 6.0]) * strength
    centre = rng.normal(0, 0.5, 3) * spread
    rotation = np.stack([_wave(rng, t, 0.35) for _ in range(3)], 1) * spread * 0.75 + centre
    rotation = np.clip(rotation, (-20, -32, -20), (20, 32, 20))
    shift = np.array([1.2, 0.9, 1.5])
    translation = np.stack([_wave(rng, t, 0.25) for _ in range(3)], 1) * shift * 0.6
    translation = HOME + np.clip(translation + rng.normal(0, 0.5, 3) * shift, -2.2 * shift, 2.2 * shift)
    return Motion(expression, _saccades(rng, t), rotation, translation)


def sample_portrait_motion(*seed: int) -> Motion:
    """One frame such as people use for a portrait: eyes open, almost frontal, a mild expression."""
    rng = np.random.default_rng([3, *seed])
    e: dict[str, float] = dict.fromkeys(EXPRESSIONS, 0.0)
    smile = max(rng.normal(0.15, 0.25), 0)
    e["mouthSmileLeft"] = e["mouthSmileRight"] = min(smile, 0.8)
    e["jawOpen"] = min(max(rng.normal(-0.1, 0.2), 0), 0.5)
    e["browInnerUp"] = min(max(rng.normal(0, 0.15), 0), 0.5)
    expression = np.array([[e[name] for name in EXPRESSIONS]])
    return Motion(
        expression,
        np.clip(rng.normal(0, 0.15, (1, 2)), -0.5, 0.5),
        np.clip(rng.normal(0, (3, 6, 2.5), (1, 3)), -15, 15),
        HOME + np.clip(rng.normal(0, (0.5, 0.4, 0.7), (1, 3)), -1.5, 1.5),
    )


def demonstration_motion(frames: int = 48, fps: float = 24.0) -> Motion:
    """A short performance for demos: rest, look aside and turn, smile, blink, speak, raise the brows, come back."""
    t = np.arange(frames) / max(frames - 1, 1)

    def hold(start: float, end: float, ease: float = 0.07) -> Array:
        rise, fall = np.clip((t - start) / ease, 0, 1), np.clip((end - t) / ease, 0, 1)
        return (rise * rise * (3 - 2 * rise)) * (fall * fall * (3 - 2 * fall))

    seconds = t * frames / fps
    blink = np.clip(1.2 - np.abs(seconds[:, None] - np.array([0.32, 0.62]) * seconds[-1]) / 0.11, 0, 1).max(1)
    e: dict[str, Array] = {name: np.zeros(frames) for name in EXPRESSIONS}
    e["eyeBlinkLeft"] = e["eyeBlinkRight"] = blink
    e["mouthSmileLeft"] = e["mouthSmileRight"] = 0.95 * hold(0.30, 0.56)
    speech = 0.5 + 0.5 * np.sin(2 * np.pi * 2.6 * seconds)
    e["jawOpen"] = np.maximum(0.75 * speech * hold(0.52, 0.82), 0.35 * hold(0.34, 0.5))
    e["mouthPucker"] = 0.9 * hold(0.68, 0.78)
    e["browInnerUp"] = 0.9 * hold(0.64, 0.9)
    e["browOuterUpLeft"] = e["browOuterUpRight"] = e["browInnerUp"]
    e["eyeWideLeft"] = e["eyeWideRight"] = 0.8 * hold(0.7, 0.9)
    gaze = np.stack([0.9 * hold(0.06, 0.26) - 0.8 * hold(0.74, 0.92), 0.5 * hold(0.66, 0.8)], 1)
    yaw = 16 * hold(0.08, 0.34, 0.14) - 15 * hold(0.62, 0.95, 0.16)
    pitch, roll = -4 * hold(0.3, 0.6, 0.15), 6 * hold(0.36, 0.66, 0.15)
    translation = np.tile(HOME, (frames, 1)) + np.stack([0.04 * yaw, 0.05 * pitch, 0 * t], 1)
    expression = np.stack([e[name] for name in EXPRESSIONS], 1)
    return Motion(expression, gaze, np.stack([pitch, yaw, roll], 1), translation)

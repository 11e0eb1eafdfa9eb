"""Calls of the pipeline on rendered clips: what a cache is tuned on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.landmarks.drawing import draw_sequence, face_region
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World

CHECK_HEADS_FROM = 500  # held-out heads that no other figure of the project is measured on
TUNE_HEADS_FROM = 500_000  # heads of the training split beyond those that any recipe trains on


@dataclass(frozen=True)
class RenderedCall:
    """arguments: of `FollowYourEmojiPipeline.__call__`, its generator among them. face: [F, H, W] in {0, 1}."""

    arguments: dict[str, Any]
    face: NDArray[np.float32]


def rendered_calls(
    world: World, split: str, indices: Iterable[int], *, frames: int, steps: int, guidance: float
) -> list[RenderedCall]:
    """One call a head: its portrait, the drawn landmarks of a clip of it, and noise of its own. Decoded frames."""
    return [_call(world, split, index, frames, steps, guidance) for index in indices]


def tuning_calls(pipe: Any, seed: int, counts: tuple[int, int], **made: Any) -> list[RenderedCall]:
    """Calls of a model's size: so many to search on, then so many of held-out heads for the check. made: as above."""
    size = int(pipe.unet.config["sample_size"]) * pipe.vae_scale_factor
    world = World(CanonicalFace.load(), size=size)
    first, held = TUNE_HEADS_FROM + 1000 * seed, CHECK_HEADS_FROM + 1000 * seed
    return [
        *rendered_calls(world, "train", range(first, first + counts[0]), **made),
        *rendered_calls(world, "held", range(held, held + counts[1]), **made),
    ]


def _call(world: World, split: str, index: int, frames: int, steps: int, guidance: float) -> RenderedCall:
    landmarks = world.clip(split, index, take=1, frames=frames).sequence.landmarks
    portrait = world.portrait(split, index)
    picture, face = portrait.frames[0], portrait.sequence.landmarks[0]
    return RenderedCall(
        arguments={
            "image": picture,
            "landmarks": draw_sequence(landmarks, world.size),
            "bent": BentPortraits(picture, face, landmarks, world.size).stack(0, frames),
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "long": "tiles",
            "generator": torch.Generator().manual_seed(index),
            "output_type": "pt",
        },
        face=face_region(landmarks, world.size, world.size),
    )

"""Calls of the pipeline on rendered clips: what a cache is tuned on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.landmarks.masks import expression_mask, facial_mask
from fye_pipeline.world import World


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


def _call(world: World, split: str, index: int, frames: int, steps: int, guidance: float) -> RenderedCall:
    landmarks = world.clip(split, index, take=1, frames=frames).sequence.landmarks
    masks = (mask(landmarks, world.size, world.size) for mask in (expression_mask, facial_mask))
    return RenderedCall(
        arguments={
            "image": world.portrait(split, index).frames[0],
            "landmarks": draw_sequence(landmarks, world.size),
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "long": "tiles",
            "generator": torch.Generator().manual_seed(index),
            "output_type": "pt",
        },
        face=np.maximum(*masks),
    )

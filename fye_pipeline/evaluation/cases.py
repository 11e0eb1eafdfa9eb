"""What is measured on the rendered world: a plan, and the clips and portraits that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.evaluation.face_tracks import FindFace, see
from fye_pipeline.evaluation.world_identity import FITTED_PEOPLE
from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.world import RenderedClip, World

Video = NDArray[np.floating]


@dataclass(frozen=True)
class Plan:
    """What is measured: everything that decides the figures, beside the model.

    cache: options of `ticache.apply`, None to leave the cached rows out. cross: also the portrait of one head with the
    driving clip of another. identity_people: heads that the identity measure is fitted to.
    """

    split: str = "held"
    clips: int = 16
    seed: int = 0
    frames: int = 16
    steps: int = 30
    guidance: float = 3.5
    cache: dict[str, Any] | None = None
    cross: bool = True
    identity_people: int = FITTED_PEOPLE

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise ValueError(f"clips must be >= 2, so that references and landmarks can be exchanged, got {self.clips}")


@dataclass(frozen=True)
class Case:
    """One clip: its truth in [0, 1], the drawn landmarks, its portrait, and what the detector sees in both.

    portrait_face: the portrait's exact landmarks.
    """

    clip: RenderedClip
    truth: Video
    pictures: NDArray[np.uint8]
    seen: LandmarkSequence
    portrait: NDArray[np.uint8]
    portrait_face: LandmarkSequence
    portrait_seen: LandmarkSequence


def make_case(world: World, plan: Plan, k: int, find: FindFace) -> Case:
    """Clip number `k` of a plan."""
    index = head_of(plan, k)
    clip = world.clip(plan.split, index, take=1, frames=plan.frames)
    portrait = world.portrait(plan.split, index)
    return Case(
        clip=clip,
        truth=clip.frames / 255.0,
        pictures=draw_sequence(clip.sequence.landmarks, world.size),
        seen=see(clip.frames, find),
        portrait=portrait.frames[0],
        portrait_face=portrait.sequence,
        portrait_seen=see(portrait.frames, find),
    )


def head_of(plan: Plan, k: int) -> int:
    """Which head, and which noise."""
    return plan.seed * 1000 + k

"""Scenes of the rendered world: one to three people in one picture, each with a motion of their own.

They share background and light; who stands further right stands in front. Each person has a square of the picture, in
which they are what a single head of the world is in its whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.world.anatomy import Head, Identity, sample_identity
from fye_pipeline.world.dataset import SPLITS, World, rotations
from fye_pipeline.world.motion import Motion, sample_motion, sample_portrait_motion
from fye_pipeline.world.render import OVERSAMPLE, Painter, Picture
from fye_pipeline.world.shapes import background_gradient

HEIGHT = 128
NARROW, WIDE = 128, 256  # widths of scenes


@dataclass(frozen=True)
class Square:
    """A person's part of a scene, in pixels; it may reach beyond the picture."""

    left: int
    top: int
    side: int

    def into_scene(self, landmarks: NDArray[np.floating], width: int, height: int) -> NDArray[np.float64]:
        """Landmarks [..., 3] in 0..1 of the square -> in 0..1 of the scene; depth counts in widths of the scene."""
        points = np.array(landmarks, np.float64)
        points[..., 0] = (self.left + points[..., 0] * self.side) / width
        points[..., 1] = (self.top + points[..., 1] * self.side) / height
        points[..., 2] *= self.side / width
        return points


@dataclass(frozen=True)
class Person:
    """Somebody in a scene: who, where, and how they move. sequence: exact landmarks in their square."""

    identity: Identity
    square: Square
    motion: Motion
    sequence: LandmarkSequence


@dataclass(frozen=True)
class Scene:
    """frames [F, H, W, 3] uint8 RGB; everybody from the left; masks [P, F, H, W]: what is seen of each person."""

    frames: Picture
    people: tuple[Person, ...]
    masks: NDArray[np.bool_]

    def landmarks(self, person: int) -> NDArray[np.float64]:
        """A person's exact landmarks in 0..1 of the scene, [F, 478, 3]."""
        height, width = self.frames.shape[1:3]
        one = self.people[person]
        return one.square.into_scene(one.sequence.landmarks[:], width, height)


@dataclass(frozen=True)
class Cast:
    """Who is in a scene and where; from a seed."""

    identities: tuple[Identity, ...]
    squares: tuple[Square, ...]
    width: int
    keys: tuple[tuple[int, ...], ...]  # of everybody's motions

    @property
    def height(self) -> int:
        return HEIGHT

    def portrait_motions(self) -> list[Motion]:
        """A mild expression of everybody."""
        return [sample_portrait_motion(*key, 90) for key in self.keys]

    def motions(self, frames: int, *, take: int = 0, fps: float = 12.0) -> list[Motion]:
        """A lively motion of everybody; `take` chooses among many."""
        return [sample_motion(*key, 91 + take, frames=frames, fps=fps) for key in self.keys]


def sample_cast(world: World, split: str, index: int, people: int, width: int = WIDE) -> Cast:
    """Draw the people of scene number `index`. Raises ValueError for no people, or more than three."""
    if not 1 <= people <= 3:
        raise ValueError(f"people must be 1 to 3, got {people}")
    keys = tuple((world.version, world.seed, SPLITS[split], 700_000 + 3 * index + k) for k in range(people))
    identities = [sample_identity(*key) for key in keys]
    first = identities[0]
    shared = [replace(each, light=first.light, ambient=first.ambient) for each in identities]
    rng = np.random.default_rng([92, *keys[0]])
    slot = width / people
    squares = []
    for k in range(people):
        side = round(float(np.clip(slot * rng.uniform(0.94, 1.04), 72, HEIGHT)))
        middle = slot * (k + 0.5) + rng.uniform(-0.03, 0.03) * slot
        squares.append(Square(round(middle - side / 2), HEIGHT - side, side))
    return Cast(tuple(shared), tuple(squares), width, keys)


def render_scene(world: World, cast: Cast, motions: Sequence[Motion], fps: Fraction | None = None) -> Scene:
    """Paint everybody's motion, all of one length, into one picture each frame."""
    wide = cast.width * OVERSAMPLE, cast.height * OVERSAMPLE
    first = cast.identities[0]
    square = background_gradient(first.background, first.style, max(wide))
    behind = np.asarray(cv2.resize(square, wide, interpolation=cv2.INTER_LINEAR), np.uint8)
    heads = [Head(world.canonical.vertices, identity) for identity in cast.identities]
    painters = [
        Painter(head, world.canonical.triangles, square.side) for head, square in zip(heads, cast.squares, strict=True)
    ]
    turns = [rotations(motion) for motion in motions]
    frames = np.empty((len(motions[0]), cast.height, cast.width, 3), np.uint8)
    masks = np.zeros((len(heads), *frames.shape[:3]), bool)
    for k, frame in enumerate(frames):
        image = behind.copy()
        for person, (head, painter, motion) in enumerate(zip(heads, painters, motions, strict=True)):
            before = image.copy()
            corner = cast.squares[person].left * OVERSAMPLE, cast.squares[person].top * OVERSAMPLE
            points = head.pose(motion.expression[k], motion.gaze[k])
            painter.paint_on(image, points, turns[person][k], motion.translation[k], corner)
            seen = (image != before).any(-1)[::OVERSAMPLE, ::OVERSAMPLE]
            masks[:person, k] &= ~seen
            masks[person, k] = seen
        frame[:] = cv2.resize(image, (cast.width, cast.height), interpolation=cv2.INTER_AREA)
    tracks = [
        world.track(head, motion, square.side, fps=fps)
        for head, motion, square in zip(heads, motions, cast.squares, strict=True)
    ]
    people = zip(cast.identities, cast.squares, motions, tracks, strict=True)
    return Scene(frames, tuple(Person(*each) for each in people), masks)

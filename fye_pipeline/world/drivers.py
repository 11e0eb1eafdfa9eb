"""Drivers of a scene's people: single heads that make a motion, seen by the extractor of expressions."""

from __future__ import annotations

from fye_pipeline.multi_portrait.group_model import DrivenFace
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor
from fye_pipeline.world.anatomy import Head, Identity
from fye_pipeline.world.dataset import World
from fye_pipeline.world.motion import Motion
from fye_pipeline.world.scenes import Cast, Scene


def driven_face(
    world: World,
    cast: Cast,
    portrait: Scene,
    number: int,
    motion: Motion,
    extract: RenderedExtractor,
    *,
    twin: Identity | None = None,
) -> DrivenFace:
    """Person `number` of a cast, moved by a motion; its features are seen on their own head, or on a twin's."""
    own = Head(world.canonical.vertices, cast.identities[number])
    seen = own if twin is None else Head(world.canonical.vertices, twin)
    clip = world.render(seen, motion, fps=None)
    square = cast.squares[number]
    return DrivenFace(
        (square.left, square.top, square.side),
        portrait.people[number].sequence,
        world.track(own, motion, square.side, fps=None),
        extract(clip.frames, clip.sequence).features,
    )

"""Scenes of several people: deterministic, landmarks where the picture shows them, nobody moves anybody else."""

from __future__ import annotations

import numpy as np
import pytest

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World
from fye_pipeline.world.scenes import WIDE, render_scene, sample_cast


@pytest.fixture(scope="module")
def world() -> World:
    return World(CanonicalFace.load())


@pytest.mark.parametrize("people", [1, 2, 3])
def test_a_scene_has_so_many_people_with_landmarks_inside_their_masks(world: World, people: int) -> None:
    cast = sample_cast(world, "train", 4, people, 128 if people == 1 else WIDE)
    scene = render_scene(world, cast, cast.motions(2))
    again = render_scene(world, cast, cast.motions(2))
    assert np.array_equal(scene.frames, again.frames)
    assert scene.masks.sum(0).max() == 1
    for person in range(people):
        nose = scene.landmarks(person)[:, 4, :2] * (cast.width, cast.height)
        for frame, (x, y) in enumerate(nose.astype(int)):
            assert scene.masks[person, frame, y, x]


def test_the_motion_of_one_leaves_the_other_faces_as_they_are(world: World) -> None:
    cast = sample_cast(world, "train", 5, 2)
    first, other = cast.motions(1), cast.motions(1, take=1)
    before = render_scene(world, cast, first)
    after = render_scene(world, cast, [first[0], other[1]])
    only_first = before.masks[0] & after.masks[0]
    only_first[:, :, cast.width // 2 - 8 :] = False
    assert np.array_equal(before.frames[only_first], after.frames[only_first])
    assert not np.array_equal(before.frames, after.frames)

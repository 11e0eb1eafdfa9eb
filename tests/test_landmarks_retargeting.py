"""Landmarks worked out a few frames at a time are those of the whole driver, in memory and from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from landmark_faces import face, sequence

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.landmarks.geometry import align
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks, neutral_of, retarget
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.spool import DiskSpool

FRAMES = 9


@pytest.fixture(scope="module")
def driving() -> LandmarkSequence:
    random = np.random.default_rng(0)
    faces = [face(0.3 * number, turn=4 * number, score=abs(number - 3) / 10) for number in range(FRAMES)]
    still = sequence(faces)
    return replace(
        still,
        mesh=still.mesh + random.normal(0, 0.2, still.mesh.shape).astype(np.float32),
        landmarks=still.landmarks + random.normal(0, 0.002, still.landmarks.shape).astype(np.float32),
    )


def on_disk(driving: LandmarkSequence, folder: Path) -> LandmarkSequence:
    """The same sequence, its arrays in files."""
    names = ("landmarks", "mesh", "transforms", "blendshapes")
    with DiskSpool(folder) as spool:
        for number in range(len(driving)):
            spool.append({name: getattr(driving, name)[number] for name in names})
    return LandmarkSequence(**spool.arrays(), width=driving.width, height=driving.height, fps=driving.fps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regions": ("lips", "pose"), "intensity": 1.5},
        {"pose": "relative"},
        {"pose": "relative", "neutral_frame": 4},
        {"regions": ("eyes",), "neutral_frame": 7},
    ],
)
def test_any_frames_are_those_of_the_whole(driving: LandmarkSequence, tmp_path: Path, options: dict[str, Any]) -> None:
    own = sequence([face(1.0, turn=-7)])
    neutral = options.get("neutral_frame", neutral_of(driving, own))
    chosen = {"base_frame": 0, "neutral_frame": neutral} | options
    if "neutral_frame" in options:
        del chosen["base_frame"]
    whole = align(own, retarget(own, driving, **chosen), DRAW_SIZE, DRAW_SIZE, neutral_frame=neutral)
    for source in (driving, on_disk(driving, tmp_path)):
        motion = RetargetedLandmarks(source, own, **options)
        assert len(motion) == FRAMES
        for part in (slice(0, 3), slice(3, 4), slice(4, FRAMES), slice(0, FRAMES)):
            np.testing.assert_allclose(motion[part], whole[part], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(motion[5:6][0], motion[3:7][2])


def test_expressions_are_counted_from_the_frame_that_looks_like_the_portrait(driving: LandmarkSequence) -> None:
    """A video driven by itself gives its own landmarks, also where its first frame is not the calmest."""
    scores = np.random.default_rng(0).random(driving.blendshapes.shape).astype(np.float32)
    driving = replace(driving, blendshapes=scores)
    for number in (0, FRAMES // 2):
        own = driving[number : number + 1]
        assert neutral_of(driving, own) == number
        moved = RetargetedLandmarks(driving, own)[number : number + 1]
        assert np.abs(moved[0, :468, :2] - align(own, own)[0, :468, :2]).mean() < 0.05
    unknown = replace(driving[:1], blendshapes=np.zeros_like(driving.blendshapes[:1]))
    assert neutral_of(driving, unknown) == int(np.argmin(driving.blendshapes[:, 1:].sum(axis=1)))


def test_without_a_face_the_driver_is_drawn_as_it_is(driving: LandmarkSequence, tmp_path: Path) -> None:
    motion = RetargetedLandmarks(on_disk(driving, tmp_path), None)
    np.testing.assert_array_equal(motion[2:6], driving.landmarks[2:6].astype(np.float32))


def test_a_neutral_frame_that_is_not_there_is_named(driving: LandmarkSequence) -> None:
    with pytest.raises(UserError, match=r"below the driver's 9 frames, got 9"):
        RetargetedLandmarks(driving, None, neutral_frame=9)

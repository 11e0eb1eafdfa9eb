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
from fye_pipeline.landmarks.faces import make_face
from fye_pipeline.landmarks.geometry import CanonicalFace, align
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks, matching_square, neutral_of, retarget, seen_in
from fye_pipeline.landmarks.sequence import LandmarkSequence, join
from fye_pipeline.landmarks.spool import DiskSpool
from fye_pipeline.world import World

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
    framed = seen_in(driving, *matching_square(driving, own))
    whole = align(own, retarget(own, framed, **chosen), DRAW_SIZE, DRAW_SIZE, neutral_frame=neutral)
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
        seen = make_face(driving.landmarks[number], scores[number], 64, 64, CanonicalFace.load())
        own = seen.as_sequence()
        assert neutral_of(driving, own) == number
        moved = RetargetedLandmarks(driving, own)[number : number + 1]
        # The same face; its place is counted from the first frame.
        shapes = [points[0, :468, :2] - points[0, :468, :2].mean(0) for points in (moved, own.landmarks)]
        assert np.abs(shapes[0] - shapes[1]).mean() < 0.02 * np.ptp(shapes[1][:, 0])
    unknown = replace(driving[:1], blendshapes=np.zeros_like(driving.blendshapes[:1]))
    assert neutral_of(driving, unknown) == int(np.argmin(driving.blendshapes[:, 1:].sum(axis=1)))


def in_a_wide_frame(clip: LandmarkSequence, column: int) -> LandmarkSequence:
    """The same faces in one of the five squares of a wide frame, as a detector sees them there."""
    landmarks = (clip.landmarks + np.array([column, 0, 0])) / (5, 1, 5)
    canonical = CanonicalFace.load()
    width = 5 * clip.width
    return join(*(make_face(f, b, width, clip.height, canonical).as_sequence()
                  for f, b in zip(landmarks, clip.blendshapes, strict=True)))  # fmt: skip


@pytest.mark.parametrize("column", [0, 2, 4])
def test_a_portrait_follows_its_own_video_wherever_it_stands_in_the_frame(column: int) -> None:
    """What is asked of the portrait are the landmarks that its square of the video shows."""
    clip = World(CanonicalFace.load(), size=128).clip("held", 2, frames=8, fps=4).sequence
    canonical = CanonicalFace.load()
    own = make_face(clip.landmarks[0], clip.blendshapes[0], 128, 128, canonical).as_sequence()
    asked = RetargetedLandmarks(in_a_wide_frame(clip, column), own)[0:8]
    error = np.linalg.norm(asked[:, :468, :2] - clip.landmarks[:, :468, :2], axis=-1)
    assert error.mean() < 0.001
    assert error.max() < 0.01


def test_a_face_of_another_size_is_seen_as_large_as_the_portrait(driving: LandmarkSequence) -> None:
    """Half the size and elsewhere in the picture: the same motion comes out, for the same square is cut."""
    own = sequence([face(1.0, turn=-7)])
    smaller = replace(driving, landmarks=driving.landmarks * (0.5, 0.5, 0.5) + (0.4, 0.1, 0.0))
    whole, small = (RetargetedLandmarks(each, own)[0:FRAMES] for each in (driving, smaller))
    assert np.abs(whole - small).max() < 1e-4


def test_without_a_face_the_driver_is_drawn_as_it_is(driving: LandmarkSequence, tmp_path: Path) -> None:
    motion = RetargetedLandmarks(on_disk(driving, tmp_path), None)
    np.testing.assert_array_equal(motion[2:6], driving.landmarks[2:6].astype(np.float32))


def test_a_neutral_frame_that_is_not_there_is_named(driving: LandmarkSequence) -> None:
    with pytest.raises(UserError, match=r"below the driver's 9 frames, got 9"):
        RetargetedLandmarks(driving, None, neutral_frame=9)

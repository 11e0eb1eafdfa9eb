"""The rendered world: deterministic, split by identity, its landmarks where the picture shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.geometry import CanonicalFace, metric_mesh
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.world import World, contact_sheet, sample_motion
from fye_pipeline.world.anatomy import EXPRESSIONS
from fye_pipeline.world.dataset import write_demo


@pytest.fixture(scope="module")
def canonical() -> CanonicalFace:
    return CanonicalFace.load()


def test_the_same_seed_gives_the_same_clip(canonical: CanonicalFace) -> None:
    first = World(canonical).clip("train", 3, frames=3)
    again = World(canonical).clip("train", 3, frames=3)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.sequence.landmarks, again.sequence.landmarks)
    other = World(canonical, seed=1).clip("train", 3, frames=3)
    assert not np.array_equal(first.frames, other.frames)


def test_splits_share_no_identity(canonical: CanonicalFace) -> None:
    world = World(canonical)
    people = {split: [world.head(split, k).identity for k in range(30)] for split in ("train", "held", "demo")}
    assert not {p.seed for p in people["train"]} & {p.seed for p in people["held"]}
    shapes = [p.shape for split in people.values() for p in split]
    assert len(set(shapes)) == 90


def test_a_head_keeps_its_face_over_takes_and_clips(canonical: CanonicalFace) -> None:
    world = World(canonical)
    assert world.portrait("held", 2).identity == world.clip("held", 2, frames=1).identity
    assert not np.array_equal(world.portrait("held", 2).frames, world.portrait("held", 2, take=1).frames)


def test_landmarks_give_the_metric_mesh_and_pose_that_are_stored(canonical: CanonicalFace) -> None:
    sequence = World(canonical).clip("train", 1, frames=4, fps=3).sequence
    for frame in range(4):
        mesh, pose = metric_mesh(sequence.landmarks[frame], sequence.width, sequence.height, canonical)
        assert np.abs(mesh - sequence.mesh[frame]).max() < 5e-3  # cm
        assert np.abs(pose - sequence.transforms[frame]).max() < 1e-2


def test_pupils_are_drawn_at_their_landmarks(canonical: CanonicalFace) -> None:
    world = World(canonical, size=256)
    for index in range(6):
        clip = world.portrait("train", index, style="photo")
        for pupil, inner, outer in ((468, 133, 33), (473, 362, 263)):
            x, y = np.round(clip.sequence.landmarks[0, pupil, :2] * 256 - 0.5).astype(int)
            dark = clip.frames[0, y - 1 : y + 2, x - 1 : x + 2].astype(int).sum(-1).min()
            white = max(
                clip.frames[0, int(p[1] * 256), int(p[0] * 256)].astype(int).sum()
                for p in [
                    clip.sequence.landmarks[0, pupil] * 0.55 + clip.sequence.landmarks[0, corner] * 0.45
                    for corner in (inner, outer)
                ]
            )
            assert dark < 0.5 * white


def test_blendshapes_tell_the_expression(canonical: CanonicalFace) -> None:
    sequence = World(canonical).clip("train", 4, frames=40, fps=6).sequence
    assert sequence.blendshapes.shape == (40, 52)
    lids = np.linalg.norm(sequence.landmarks[:, 386, :2] - sequence.landmarks[:, 374, :2], axis=1)
    assert np.corrcoef(sequence.blendshapes[:, 9], lids)[0, 1] < -0.5  # eyeBlinkLeft
    mouth = np.linalg.norm(sequence.landmarks[:, 13, :2] - sequence.landmarks[:, 14, :2], axis=1)
    assert np.corrcoef(sequence.blendshapes[:, 25], mouth)[0, 1] > 0.5  # jawOpen


def test_the_detector_finds_the_heads_where_they_are(canonical: CanonicalFace, face_landmarker_path: Path) -> None:
    world = World(canonical)
    errors, missed = [], 0
    with FaceLandmarkDetector(face_landmarker_path, max_faces=1) as detector:
        for index in range(10):
            clip = world.clip("held", index, frames=2, fps=2)
            for frame, truth in zip(clip.frames, clip.sequence.landmarks, strict=True):
                face = detector.detect(frame)
                missed += face is None
                if face is not None:
                    errors.append(np.linalg.norm(face.landmarks[:, :2] - truth[:, :2], axis=1).mean())
    assert missed <= 1  # 95 %
    assert np.mean(errors) < 0.015  # picture widths


def test_motion_is_smooth_and_stays_in_range() -> None:
    motion = sample_motion(9, frames=48, fps=24)
    assert motion.expression.shape == (48, len(EXPRESSIONS))
    assert np.abs(motion.gaze).max() <= 1
    assert np.abs(motion.rotation[:, 1]).max() <= 32
    assert np.abs(np.diff(motion.rotation, axis=0)).max() < 6  # degrees a frame
    with pytest.raises(ValueError, match="frames must be >= 1, got 0"):
        sample_motion(9, frames=0)


def test_bad_arguments_are_refused(canonical: CanonicalFace) -> None:
    with pytest.raises(ValueError, match="split must be one of train, held, demo, got 'test'"):
        World(canonical).clip("test", 0)
    with pytest.raises(ValueError, match="size must be >= 16 pixels, got 8"):
        World(canonical, size=8)


def test_the_contact_sheet_has_a_row_a_head(canonical: CanonicalFace) -> None:
    sheet = contact_sheet(World(canonical, size=32), rows=2, columns=3)
    assert sheet.shape == (64, 96, 3)
    assert sheet.dtype == np.uint8
    assert sheet.std() > 10


def test_the_demo_files_can_be_read_back(canonical: CanonicalFace, tmp_path: Path) -> None:
    write_demo(canonical, tmp_path, size=64)
    driving = LandmarkSequence.load(tmp_path / "driving.npz")
    assert (len(driving), driving.fps) == (48, 24)
    assert np.ptp(driving.landmarks[:, 14, 1] - driving.landmarks[:, 13, 1]) > 0.02  # it speaks

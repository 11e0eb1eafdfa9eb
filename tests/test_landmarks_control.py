"""Scaling the driver's motion by groups of landmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from landmark_faces import face, sequence
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import REGIONS, point_groups, retarget
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import INNER_LIP_TOP_LEFT, LEFT_BROW, LEFT_EYE_POINTS, LEFT_IRIS, RIGHT_EYE_POINTS


def portrait(turn: float = 10) -> LandmarkSequence:
    return sequence([face(turn=turn)])


def driver() -> LandmarkSequence:
    """Four frames: the head turns by 20 degrees a frame and moves by 1 cm; every point moves its own way."""
    moving = sequence([face(float(frame), turn=20.0 * frame, score=frame / 10) for frame in range(4)])
    drift = np.random.default_rng(0).normal(size=(468, 3)) * 0.5
    mesh = moving.mesh + np.arange(4)[:, None, None] * drift
    return replace(moving, mesh=mesh)


def turns(result: LandmarkSequence) -> np.ndarray:
    """Degrees about the vertical of every frame."""
    return Rotation.from_matrix(result.transforms[:, :3, :3]).as_euler("yxz", degrees=True)[:, 0]


def test_the_defaults_change_nothing() -> None:
    driving = driver()
    assert retarget(portrait(), driving) is driving


def test_only_the_chosen_regions_move() -> None:
    driving = driver()
    moved = retarget(portrait(), driving, regions=["lips"])
    lips, brow, eye = list(INNER_LIP_TOP_LEFT), list(LEFT_BROW[0]), list(LEFT_EYE_POINTS)
    assert np.allclose(moved.mesh[:, lips], driving.mesh[:, lips], atol=1e-5)
    assert np.allclose(moved.mesh[:, brow], driving.mesh[0, brow])
    assert np.allclose(moved.mesh[:, eye], driving.mesh[0, eye])
    assert np.allclose(turns(moved), 10), "without the pose the head keeps the portrait's"
    assert np.allclose(moved.transforms[:, :3, 3], driving.transforms[0, :3, 3])


@pytest.mark.parametrize("intensity", [0.0, 0.5, 2.0])
def test_the_motion_is_scaled_about_rest(intensity: float) -> None:
    driving = driver()
    moved = retarget(portrait(), driving, intensity=intensity)
    assert np.allclose(moved.mesh - moved.mesh[0], intensity * (driving.mesh - driving.mesh[0]), atol=1e-5)
    assert np.allclose(turns(moved), 10 + intensity * (np.arange(4) * 20.0 - 10))
    assert np.allclose(moved.transforms[:, 0, 3], intensity * np.arange(4))


def test_a_relative_pose_starts_from_the_portraits_own() -> None:
    moved = retarget(portrait(10), driver(), pose="relative")
    assert np.allclose(turns(moved), 10 + np.arange(4) * 20.0)
    later = retarget(portrait(10), driver(), pose="relative", neutral_frame=1)
    assert np.allclose(turns(later), 10 + (np.arange(4) - 1) * 20.0)


def test_the_gaze_is_held_without_the_eyes() -> None:
    driving = driver()
    landmarks = driving.landmarks.copy()
    landmarks[:, list(LEFT_IRIS), 0] += np.linspace(0, 0.02, 4)[:, None]
    looking = replace(driving, landmarks=landmarks)

    def share(result: LandmarkSequence) -> np.ndarray:
        eye = result.landmarks[:, list(LEFT_EYE_POINTS), 0]
        iris = result.landmarks[:, list(LEFT_IRIS), 0]
        return (iris - eye.min(1, keepdims=True)) / np.ptp(eye, axis=1)[:, None]

    held = share(retarget(portrait(), looking, regions=["lips", "pose", "brows"]))
    assert np.allclose(held, held[0], atol=1e-4)
    assert not np.allclose(share(looking), share(looking)[0], atol=1e-2)
    free = share(retarget(portrait(), looking, regions=["eyes"]))
    assert np.allclose(free, share(looking), atol=1e-3)


def test_every_point_belongs_to_a_region() -> None:
    groups = point_groups(driver().mesh[0])
    assert len(groups) == 468
    assert set(groups) == set(REGIONS) - {"pose"}
    assert {groups[point] for point in (*LEFT_EYE_POINTS, *RIGHT_EYE_POINTS)} == {"eyes"}


def test_what_is_not_known_or_too_much_is_refused() -> None:
    with pytest.raises(UserError, match="'nose'"):
        retarget(portrait(), driver(), regions=["nose"])
    with pytest.raises(UserError, match="got none"):
        retarget(portrait(), driver(), regions=[])
    with pytest.raises(UserError, match="intensity must be from 0 to 2, got 3"):
        retarget(portrait(), driver(), intensity=3)

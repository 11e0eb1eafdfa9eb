"""Motion alignment on hand-made faces, and pixel by pixel against the released code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from landmark_faces import face, fixture_sequence, sequence

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.landmarks.geometry import align, project, transform
from fye_pipeline.landmarks.topology import RIGHT_EYE_POINTS


def test_a_face_driven_by_itself_stays_where_it_is() -> None:
    one = face(2.0, turn=10)
    aligned = align(one.as_sequence(), one.as_sequence())
    assert aligned.shape == (1, 478, 3)
    np.testing.assert_allclose(aligned[0, :, :2], one.landmarks[:, :2], atol=2e-6)
    np.testing.assert_allclose(aligned[0, :468], one.landmarks[:468], atol=2e-6)


def test_expression_is_the_offset_from_the_frame_of_least_expression() -> None:
    frames = [face(score=score) for score in (0.5, 0.1, 0.9)]
    meshes = [one.mesh + number for number, one in enumerate(frames)]
    driving = sequence([replace(one, mesh=mesh) for one, mesh in zip(frames, meshes, strict=True)])
    reference = face(1.0)
    aligned = align(reference.as_sequence(), driving)
    for number, offset in enumerate((-1.0, 0.0, 1.0)):
        wanted = project(transform(reference.mesh + offset, reference.transform), 64, 64)
        np.testing.assert_allclose(aligned[number, :468], wanted, atol=1e-6)
    chosen = align(reference.as_sequence(), driving, neutral_frame=0)
    np.testing.assert_allclose(chosen[0, :468], aligned[1, :468], atol=1e-6)


def test_the_head_moves_from_the_references_place_and_turns_as_the_driver() -> None:
    reference = face(3.0, distance=60, turn=40)
    driving = sequence([face(0.0, turn=5), face(2.0, turn=15)])
    aligned = align(reference.as_sequence(), driving)
    pose = driving.transforms[1].copy()
    pose[:3, 3] = reference.transform[:3, 3] + (2, 0, 0)
    np.testing.assert_allclose(aligned[1, :468], project(transform(reference.mesh, pose), 64, 64), atol=1e-6)


def test_a_scale_in_the_drivers_pose_does_not_swell_the_face() -> None:
    reference, driving = face().as_sequence(), face().as_sequence()
    plain = align(reference, driving)
    driving.transforms[:, :3, :3] *= 1.3
    np.testing.assert_allclose(align(reference, driving), plain, atol=1e-12)


def test_irises_keep_their_place_within_the_eye() -> None:
    reference, driving = face(1.0, distance=60), face(0.0)
    eye = list(RIGHT_EYE_POINTS)
    low, high = driving.landmarks[eye, :2].min(0), driving.landmarks[eye, :2].max(0)
    driving.landmarks[468, :2] = low + (0.25, 0.75) * (high - low)
    aligned = align(reference.as_sequence(), driving.as_sequence())[0]
    low, high = aligned[eye, :2].min(0), aligned[eye, :2].max(0)
    np.testing.assert_allclose((aligned[468, :2] - low) / (high - low), (0.25, 0.75), atol=1e-5)
    assert np.isfinite(aligned).all()


def test_an_eye_seen_edge_on_gives_finite_numbers() -> None:
    driving = face()
    driving.landmarks[list(RIGHT_EYE_POINTS), 0] = 0.5
    assert np.isfinite(align(face().as_sequence(), driving.as_sequence())).all()


def test_what_cannot_be_aligned_is_said() -> None:
    driving = sequence([face(), face()])
    with pytest.raises(UserError, match="one picture with a face, got 2 frames"):
        align(driving, driving)
    faceless = replace(face().as_sequence(), found=np.zeros(1, bool))
    with pytest.raises(UserError, match="got no face; without it use --unaligned"):
        align(faceless, driving)
    with pytest.raises(UserError, match="no frames"):
        align(face().as_sequence(), driving[:0])
    with pytest.raises(UserError, match="neutral frame must be 0 to 1, got 2"):
        align(face().as_sequence(), driving, neutral_frame=2)


def test_alignment_is_pixel_identical_to_the_released_code(parity_dir: Path) -> None:
    path = parity_dir / "landmark_ref.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    fixture = dict(np.load(path))
    aligned = align(fixture_sequence(fixture, "s9.c512"), fixture_sequence(fixture, "tmpl"))
    drawn = draw_sequence(aligned[1:], fixture["align.images"].shape[1])  # the released code drops the first frame
    np.testing.assert_array_equal(drawn, fixture["align.images"])

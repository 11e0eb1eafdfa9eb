"""The canonical face, the weighted fit, the metric mesh and the projection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from landmark_faces import canonical_face, pose

from fye_pipeline.landmarks.geometry import CanonicalFace, metric_mesh, project, transform, weighted_similarity

PICTURES = ("s9.full", "s9.c512", "s2.full", "s2.c512", "s5.full", "s5.c512")


def test_the_canonical_face_is_whole_and_a_face() -> None:
    canonical = CanonicalFace.load()
    assert canonical.vertices.shape == (468, 3)
    assert canonical.uv.shape == (468, 2)
    assert sorted(set(canonical.triangles.ravel())) == list(range(468))
    assert canonical.triangles.shape == (898, 3)
    assert canonical.basis_ids.shape == canonical.basis_weights.shape == (33,)
    assert canonical.basis_weights.min() > 0
    width, height, depth = np.ptp(canonical.vertices, axis=0)
    assert 14 < width < 17  # cm
    assert 16 < height < 19
    assert 8 < depth < 13
    right, left = canonical.vertices[33], canonical.vertices[263]  # the outer corners of the eyes
    np.testing.assert_allclose(right, left * (-1, 1, 1), atol=1e-4)


def test_the_fit_finds_a_similarity_and_never_mirrors() -> None:
    random = np.random.default_rng(1)
    source, weights = random.normal(size=(20, 3)), random.uniform(0.1, 1, 20)
    matrix = pose(30, (1, -2, 3))
    matrix[:3, :3] *= 2.5
    np.testing.assert_allclose(weighted_similarity(source, transform(source, matrix), weights), matrix, atol=1e-12)
    mirrored = weighted_similarity(source, source * (-1, 1, 1), weights)
    assert np.linalg.det(mirrored[:3, :3]) > 0


def test_the_fit_heeds_the_weights() -> None:
    source = np.random.default_rng(2).normal(size=(20, 3))
    target = source + 1.0
    target[0] += 5
    weights = np.ones(20)
    weights[0] = 1e-9
    np.testing.assert_allclose(weighted_similarity(source, target, weights)[:3, 3], 1.0, atol=1e-6)


def test_projection_puts_known_points_where_they_belong() -> None:
    edge = np.tan(np.radians(31.5)) * 50
    points = np.array([[0, 0, -50], [0, edge, -50], [2 * edge, 0, -50]])
    landmarks = project(points, 200, 100)
    np.testing.assert_allclose(landmarks[:, :2], [[0.5, 0.5], [0.5, 0], [1, 0.5]], atol=1e-4)
    np.testing.assert_allclose(landmarks[:, 2], 0, atol=1e-12)
    nearer = project(np.array([[0, 0, -49.0], [0, 0, -51.0]]), 100, 100)
    assert nearer[0, 2] < 0 < nearer[1, 2]


@pytest.mark.parametrize(("width", "height"), [(100, 100), (90, 160), (160, 90)])
def test_a_projected_face_is_measured_again(width: int, height: int) -> None:
    canonical = canonical_face()
    wanted = pose(20, (3, -2, -50))
    landmarks = project(transform(canonical.vertices, wanted), width, height)
    mesh, matrix = metric_mesh(landmarks, width, height, canonical)
    # The distance is estimated through a first, flat fit: right to a few percent, as in MediaPipe itself.
    np.testing.assert_allclose(matrix[:3, :3], wanted[:3, :3], atol=0.02)
    np.testing.assert_allclose(matrix[:3, 3], wanted[:3, 3], atol=2.0)
    np.testing.assert_allclose(mesh, canonical.vertices, atol=0.4)
    # What it measures, it also shows where it was seen.
    again = project(transform(mesh, matrix), width, height)
    np.testing.assert_allclose(again[:, :2], landmarks[:, :2], atol=1e-4)


@pytest.mark.parametrize("picture", PICTURES)
def test_mesh_and_pose_are_mediapipes(parity_dir: Path, picture: str) -> None:
    path = parity_dir / "landmark_ref.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    fixture = np.load(path)
    canonical = CanonicalFace.load()
    np.testing.assert_array_equal(canonical.triangles + 1, fixture["faces"])
    width, height = fixture[f"{picture}.wh"]
    mesh, matrix = metric_mesh(fixture[f"{picture}.lmks"], width, height, canonical)
    assert np.abs(mesh - fixture[f"{picture}.lmks3d"]).max() < 5e-5  # cm
    assert np.abs(matrix - fixture[f"{picture}.trans_mat"]).max() < 2e-4

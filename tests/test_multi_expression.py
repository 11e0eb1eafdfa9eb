"""Expression features: the file they are kept in, MediaPipe's blendshapes as features, and aligned crops."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from landmark_faces import face, sequence

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.multi_portrait.expression import (
    FIVE_POINTS,
    TEMPLATE,
    BlendshapeExtractor,
    ExpressionExtractor,
    ExpressionSequence,
    aligned_face,
    similarity,
)
from fye_pipeline.world import World


def features(frames: int = 3) -> ExpressionSequence:
    random = np.random.default_rng(0)
    dims = {"head": 6, "eye": 6, "emotion": 30, "lip": 512}
    arrays = {name: random.normal(size=(frames, width)).astype(np.float32) for name, width in dims.items()}
    return ExpressionSequence(
        arrays, np.tile(np.array([0, 0, 1, 1], np.float32), (frames, 1)), "pdfgc", 1, Fraction(25, 2)
    )


def test_features_come_back_from_their_file(tmp_path: Path) -> None:
    made = features()
    made.save(tmp_path / "a.npz")
    read = ExpressionSequence.load(tmp_path / "a.npz")
    assert (read.extractor, read.version, read.fps, read.dims) == ("pdfgc", 1, Fraction(25, 2), made.dims)
    for name, array in made.features.items():
        np.testing.assert_array_equal(read.features[name], array)
    np.testing.assert_array_equal(read.boxes, made.boxes)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    """An object array would be unpickled, which can run anything."""
    np.savez(tmp_path / "a.npz", header=np.array({"schema": "fye.expression"}, dtype=object))
    with pytest.raises(UserError, match="no expression sequence"):
        ExpressionSequence.load(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK but no zip")
    with pytest.raises(UserError, match="no expression sequence"):
        ExpressionSequence.load(tmp_path / "b.npz")


def test_shapes_that_do_not_fit_are_refused() -> None:
    made = features()
    with pytest.raises(UserError, match="lip has shape"):
        ExpressionSequence({**made.features, "lip": made.features["lip"][:2]}, made.boxes, "x", 1)
    with pytest.raises(UserError, match="there must be head"):
        ExpressionSequence({"head": made.features["head"]}, made.boxes, "x", 1)
    with pytest.raises(UserError, match="eye has values that are not finite"):
        ExpressionSequence({**made.features, "eye": made.features["eye"] * np.nan}, made.boxes, "x", 1)


def test_blendshapes_are_dealt_out_over_the_factors() -> None:
    faces = sequence([face(turn=0), face(turn=30), face(2.0)])
    scores = faces.blendshapes.copy()
    scores[1, 25] = 0.7  # jawOpen
    scores[2, [9, 1]] = 0.5  # eyeBlinkLeft, browDownLeft
    extract: ExpressionExtractor = BlendshapeExtractor()
    made = extract([], replace(faces, blendshapes=scores))
    assert made.dims == dict(extract.dims)
    assert (made.extractor, made.fps) == ("blendshapes", faces.fps)
    np.testing.assert_allclose(made.features["lip"].sum(axis=1), [0, 0.7, 0], atol=1e-6)
    np.testing.assert_allclose(made.features["eye"].sum(axis=1), [0, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(made.features["emotion"].sum(axis=1), [0, 0, 0.5], atol=1e-6)
    assert made.features["head"][1, 1] == pytest.approx(np.radians(30))
    assert made.features["head"][2, 3] == pytest.approx(0.2)
    assert made.boxes.shape == (3, 4)


def test_a_similarity_is_found_and_never_a_mirror() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(5, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    matrix = similarity(points, 3 * points @ turn.T + (4, 5))
    np.testing.assert_allclose(matrix, np.column_stack([3 * turn, [4, 5]]), atol=1e-9)
    assert np.linalg.det(similarity(points, points * (-1, 1))[:, :2]) > 0


def test_an_aligned_face_has_its_five_points_near_the_template() -> None:
    clip = World(CanonicalFace.load(), size=128).portrait("held", 0)
    picture, landmarks = clip.frames[0], clip.sequence.landmarks[0]
    five = landmarks[list(FIVE_POINTS), :2] * 128
    assert five[0, 0] < five[1, 0], "left and right in the picture are exchanged"
    matrix = similarity(five, np.array(TEMPLATE) * 112)
    placed = five @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(placed - np.array(TEMPLATE) * 112).max() < 112 * 0.12
    assert aligned_face(picture, landmarks, 112).shape == (112, 112, 3)

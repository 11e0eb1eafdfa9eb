"""Heads: expressions do what their names say, identities are functions of their seeds."""

from __future__ import annotations

import numpy as np
import pytest

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world.anatomy import EXPRESSIONS, SHAPES, STYLES, Array, Head, sample_identity


@pytest.fixture(scope="module")
def head() -> Head:
    return Head(CanonicalFace.load().vertices, sample_identity(5, 6))


def posed(head: Head, *, gaze: tuple[float, float] = (0, 0), strengths: dict[str, float] | None = None) -> Array:
    expression = np.zeros(len(EXPRESSIONS))
    for name, value in (strengths or {}).items():
        expression[EXPRESSIONS.index(name)] = value
    return head.pose(expression, np.asarray(gaze, float))


def distance(points: Array, a: int, b: int) -> float:
    return float(np.linalg.norm(points[a] - points[b]))


def test_neutral_face_has_open_eyes_and_a_closed_mouth(head: Head) -> None:
    points = posed(head)
    assert distance(points, 159, 145) > 0.5
    assert distance(points, 386, 374) > 0.5
    assert distance(points, 13, 14) < 0.1


@pytest.mark.parametrize(
    ("name", "closing", "open_eye"), [("Right", (159, 145), (386, 374)), ("Left", (386, 374), (159, 145))]
)
def test_a_blink_closes_one_eye_only(
    head: Head, name: str, closing: tuple[int, int], open_eye: tuple[int, int]
) -> None:
    rest, blink = posed(head), posed(head, strengths={"eyeBlink" + name: 1.0})
    assert distance(blink, *closing) < 0.2 * distance(rest, *closing)
    assert distance(blink, *open_eye) == pytest.approx(distance(rest, *open_eye))


def test_the_jaw_opens_the_mouth_and_leaves_the_upper_lip(head: Head) -> None:
    rest, opened = posed(head), posed(head, strengths={"jawOpen": 1.0})
    assert distance(opened, 13, 14) > 1.5
    assert np.abs(opened[13] - rest[13]).max() < 0.15
    assert opened[152, 1] < rest[152, 1] - 1.0


def test_a_smile_widens_and_a_pucker_narrows_the_mouth(head: Head) -> None:
    rest = distance(posed(head), 61, 291)
    assert distance(posed(head, strengths={"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0}), 61, 291) > 1.15 * rest
    assert distance(posed(head, strengths={"mouthPucker": 1.0}), 61, 291) < 0.92 * rest


def test_gaze_moves_the_irises_and_nothing_else(head: Head) -> None:
    rest, looking = posed(head), posed(head, gaze=(1.0, 1.0))
    moved = looking - rest
    assert np.all(moved[468:, :2] > 0.2)
    assert np.array_equal(looking[:468], rest[:468])


def test_brows_rise(head: Head) -> None:
    rest, raised = (
        posed(head),
        posed(head, strengths={"browInnerUp": 1.0, "browOuterUpLeft": 1.0, "browOuterUpRight": 1.0}),
    )
    assert np.all(raised[[107, 336, 105, 334], 1] > rest[[107, 336, 105, 334], 1] + 0.4)


def test_identities_are_functions_of_their_seeds() -> None:
    assert sample_identity(1, 2) == sample_identity(1, 2)
    people = [sample_identity(1, k) for k in range(40)]
    assert len({person.shape for person in people}) == 40
    assert {person.style for person in people} == set(STYLES)
    assert all(len(person.shape) == len(SHAPES) for person in people)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style must be one of photo, cartoon, statue, got 'oil'"):
        sample_identity(1, style="oil")

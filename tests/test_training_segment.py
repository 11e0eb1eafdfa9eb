"""Where videos are cut: every frame in exactly one piece, every reason by a hand-made case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fye_pipeline.animate.portrait import Crop
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.training import segment as cutting
from fye_pipeline.training.segment import CutRules, Sighting, cut, in_square, scene_cuts

RULES = CutRules(min_face=50, min_frames=4, max_frames=10)
WIDTH, HEIGHT = 640, 480


def face(x: float = 320, y: float = 260, size: float = 100) -> Face:
    """A square face around a pixel."""
    grid = np.linspace(-0.5, 0.5, 478)
    points = np.stack([(x + size * grid) / WIDTH, (y + size * grid) / HEIGHT, 0 * grid], axis=1)
    points[468:] = points[234]
    # The box is that of the 468 mesh points.
    points[:468, 0] = (x + size * np.linspace(-0.5, 0.5, 468)) / WIDTH
    points[:468, 1] = (y + size * np.linspace(-0.5, 0.5, 468)) / HEIGHT
    rest = np.zeros((468, 3), np.float32), np.eye(4), np.zeros(52, np.float32)
    return Face(points.astype(np.float32), *rest, WIDTH, HEIGHT)


def seen(*faces: Face | None) -> list[Sighting]:
    return [Sighting(each) for each in faces]


def spans(sightings: list[Sighting], rules: CutRules = RULES) -> list[tuple[int, int, str]]:
    pieces = cut(sightings, rules)
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, len(sightings))
    assert all((piece.crop is None) == bool(piece.reason) for piece in pieces)
    return [(piece.start, piece.stop, piece.reason) for piece in pieces]


def test_a_still_face_is_one_clip_in_a_square_twice_its_size() -> None:
    (piece,) = cut(seen(*[face()] * 8), RULES)
    assert piece.crop == Crop(220, 144, 200, WIDTH, HEIGHT)  # 8 % above the middle, where the hair is


def test_frames_without_a_face_end_a_clip() -> None:
    assert spans(seen(*[face()] * 5, None, *[face()] * 6)) == [(0, 5, ""), (5, 6, "no face"), (6, 12, "")]


def test_what_is_too_small_or_too_short_is_named() -> None:
    sightings = seen(*[face()] * 3, *[face(size=40)] * 5)
    assert spans(sightings) == [(0, 3, "too short"), (3, 8, "face too small")]


def test_a_jump_of_the_face_begins_a_new_clip_and_a_walk_does_not() -> None:
    assert spans(seen(*[face()] * 5, *[face(x=355)] * 5)) == [(0, 5, ""), (5, 10, "")]
    assert spans(seen(*[face(x=320 + 5 * step) for step in range(8)])) == [(0, 8, "")]


def test_a_change_of_the_shot_begins_a_new_clip_where_the_face_stays() -> None:
    sightings = seen(*[face()] * 10)
    sightings[5] = replace(sightings[5], change=0.3)
    assert spans(sightings) == [(0, 5, ""), (5, 10, "")]


def test_a_shot_in_steady_motion_is_not_cut() -> None:
    moving = np.full(20, 0.1)
    assert not scene_cuts(moving).any()
    moving[7] = 0.5
    assert np.flatnonzero(scene_cuts(moving)).tolist() == [7]
    assert np.flatnonzero(scene_cuts(np.array([0.0, 0.3, 0.0]))).tolist() == [1]
    assert not scene_cuts(np.array([0.0, 0.05, 0.0])).any()


def test_a_face_that_leaves_its_square_goes_on_in_another() -> None:
    walk = seen(*[face(x=150 + 15 * step) for step in range(20)])
    clips = [piece for piece in cut(walk, replace(RULES, max_frames=100)) if piece.crop is not None]
    assert len(clips) > 1
    for piece in clips:
        assert piece.crop is not None
        for sighting in walk[piece.start : piece.stop]:
            assert sighting.face is not None
            inside = in_square(sighting.face.landmarks, piece.crop)[:, 0]
            assert inside.min() > 0
            assert inside.max() < 1


def test_long_clips_are_divided_evenly() -> None:
    assert spans(seen(*[face()] * 21)) == [(0, 7, ""), (7, 14, ""), (14, 21, "")]


def test_a_face_at_the_border_is_refused() -> None:
    assert spans(seen(*[face(x=40)] * 6)) == [(0, 6, "face at the picture's border")]


def test_the_square_stays_inside_the_picture_as_long_as_the_face_has_room() -> None:
    (piece,) = cut(seen(*[face(x=60)] * 6), RULES)
    assert piece.crop == Crop(0, 144, 200, WIDTH, HEIGHT)
    (tight,) = cut(seen(*[face(y=250, size=300)] * 6), RULES)
    assert tight.crop == Crop(80, 0, 480, WIDTH, HEIGHT)
    assert tight.crop is not None
    assert cutting.beyond(tight.crop) == 0


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (face(x=390, size=80), "another face in the square"),
        (face(x=500, size=80), ""),  # beside it
        (face(x=390, size=20), ""),  # a picture on the wall
    ],
)
def test_a_second_person_in_the_square_is_refused(other: Face, reason: str) -> None:
    assert spans([Sighting(face(), (other,))] * 6) == [(0, 6, reason)]


def test_landmarks_move_with_the_square() -> None:
    crop = Crop(100, 50, 200, WIDTH, HEIGHT)
    points = np.array([[100 / WIDTH, 50 / HEIGHT, 0.0], [300 / WIDTH, 150 / HEIGHT, 20 / WIDTH]])
    assert in_square(points, crop) == pytest.approx(np.array([[0, 0, 0], [1, 0.5, 0.1]]))
    assert cutting.beyond(replace(crop, left=-100)) == pytest.approx(0.5)


def test_rules_without_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"max-frames must be >= min-frames \(24\), got 5"):
        CutRules(max_frames=5)
    with pytest.raises(UserError, match="min-frames >= 2, got 128 and 1"):
        CutRules(min_frames=1)

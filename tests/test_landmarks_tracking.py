"""One face through a video: choice among several, gaps, and any detector behind the protocol; nothing but fakes."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from landmark_faces import canonical_face, face
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Face, check_picture, choose, faces_by
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.spool import DiskSpool
from fye_pipeline.landmarks.tracking import NoFace, track
from fye_pipeline.storage.files import DiskArray

FPS = Fraction(10)


def frames(count: int) -> Iterator[np.ndarray]:
    """Frames that carry their own number."""
    return (np.full((64, 64, 3), number, np.uint8) for number in range(count))


def follow(script: list[Face | None], **options: object) -> LandmarkSequence:
    """Track through a video in which frame i shows script[i]."""
    return track(
        lambda image: [one for one in [script[image[0, 0, 0]]] if one],
        frames(len(script)),
        FPS,
        **options,  # pyright: ignore[reportArgumentType]
    )


def test_a_video_with_a_face_in_every_frame_is_kept_as_it_is() -> None:
    script = [face(shift, turn=shift) for shift in range(4)]
    made = follow([*script])
    np.testing.assert_array_equal(made.landmarks, [one.landmarks for one in script])
    np.testing.assert_array_equal(made.transforms, [one.transform for one in script])
    assert made.landmarks.dtype == made.mesh.dtype == np.float32
    assert made.found.all()
    assert (made.width, made.height, made.fps) == (64, 64, FPS)


def test_a_gap_is_interpolated() -> None:
    start, end = face(0.0, turn=0, score=0.2), face(4.0, turn=40, score=0.6)
    made = follow([start, None, None, None, end])
    assert made.gaps() == [(1, 4)]
    for number in range(5):
        share = number / 4
        wanted = (1 - share) * start.landmarks + share * end.landmarks
        np.testing.assert_allclose(made.landmarks[number], wanted, atol=1e-6)
        assert made.blendshapes[number] == pytest.approx(0.2 + 0.4 * share)
        assert made.transforms[number, 0, 3] == pytest.approx(4 * share)
        angle = Rotation.from_matrix(made.transforms[number, :3, :3]).as_euler("yxz", degrees=True)
        np.testing.assert_allclose(angle, (40 * share, 0, 0), atol=1e-6)


def test_a_gap_is_held() -> None:
    start, end = face(0.0), face(4.0, turn=40)
    made = follow([None, start, None, None, end, None], no_face="hold")
    for number, shown in enumerate((start, start, start, start, end, end)):
        np.testing.assert_array_equal(made.landmarks[number], shown.landmarks)
        np.testing.assert_array_equal(made.transforms[number], shown.transform)


@pytest.mark.parametrize("no_face", ["interpolate", "hold"])
def test_the_ends_take_the_nearest_frame(no_face: NoFace) -> None:
    first, last = face(1.0), face(2.0)
    made = follow([None, None, first, last, None], no_face=no_face)
    np.testing.assert_array_equal(made.mesh[:2], [first.mesh] * 2)
    np.testing.assert_array_equal(made.landmarks[:2], [first.landmarks] * 2)
    np.testing.assert_array_equal(made.landmarks[4], last.landmarks)
    assert made.found.tolist() == [False, False, True, True, False]


def test_half_a_second_is_bridged_and_a_frame_more_is_not() -> None:
    assert follow([face(), *[None] * 5, face()]).gaps() == [(1, 6)]
    with pytest.raises(UserError, match=r"longer than 0\.5 s in frames 1-6 \(0\.10-0\.70 s\) of the video's 8 frames"):
        follow([face(), *[None] * 6, face()])
    assert len(follow([face(), *[None] * 6, face()], max_gap=0.6)) == 8


def test_only_the_long_gaps_are_named_and_all_of_them() -> None:
    script = [face(), None, face(), *[None] * 6, face(), *[None] * 7]
    with pytest.raises(UserError) as caught:
        follow(script)
    assert "in frames 3-8 (0.30-0.90 s), frames 10-16 (1.00-1.70 s) of" in str(caught.value)
    assert "frame 1 " not in str(caught.value)


def test_error_names_every_frame_without_a_face() -> None:
    with pytest.raises(UserError, match=r"in frame 1 \(0\.10-0\.20 s\), frame 3 \(0\.30-0\.40 s\) of"):
        follow([face(), None, face(), None], no_face="error")
    many = [face() if number % 2 else None for number in range(40)]
    with pytest.raises(UserError, match="and 12 more ranges"):
        follow(many, no_face="error")
    assert follow([face(), face()], no_face="error").found.all()


def test_a_video_without_any_face_or_frame_is_refused() -> None:
    with pytest.raises(UserError, match=r"in any of the video's 3 frames \(0\.30 s\)"):
        follow([None] * 3)
    with pytest.raises(UserError, match="no frames"):
        follow([])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match="no_face must be one of interpolate, hold, error, got 'skip'"):
        follow([face()], no_face="skip")
    for max_gap in (-1, math.inf, math.nan):
        with pytest.raises(UserError, match=f"max_gap >= 0 seconds, both finite, got 10 and {max_gap}"):
            follow([face()], max_gap=max_gap)
    with pytest.raises(UserError, match="fps must be > 0"):
        track(lambda image: [], frames(1), 0)
    with pytest.raises(UserError, match=r"Frame 1 of the video is \(32, 64\)"):
        track(lambda image: [face()], [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)], FPS)
    with pytest.raises(ValueError, match=r"uint8 RGB \[H, W, 3\], got float64 \[8, 8\]"):
        check_picture(np.zeros((8, 8)))


def test_progress_is_told_and_frames_are_not_kept() -> None:
    told: list[int] = []
    alive: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[np.ndarray]:
        for image in frames(6):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 2
            alive.append(weakref.ref(image))
            yield image

    track(lambda image: [face()], stream(), FPS, on_progress=told.append)
    assert told == [1, 2, 3, 4, 5, 6]


def test_the_largest_face_or_the_one_asked_for_is_chosen() -> None:
    small, large, middle = face(-9.0, distance=60), face(0.0, distance=35), face(9.0, distance=45)
    group = [middle, small, large]
    assert choose(group) is large
    assert [choose(group, face_index=number) for number in range(4)] == [small, large, middle, None]
    assert choose([]) is None
    with pytest.raises(UserError, match="must be 0 or more"):
        choose(group, face_index=-1)


def test_a_chosen_face_is_followed_when_another_grows_larger() -> None:
    group = [[face(-9.0, distance=40), face(9.0, distance=60 - 5 * number)] for number in range(8)]
    made = track(lambda image: group[image[0, 0, 0]], frames(8), FPS)
    assert made.transforms[:, 0, 3].tolist() == [-9.0] * 8
    second = track(lambda image: group[image[0, 0, 0]], frames(8), FPS, face_index=1)
    assert second.transforms[:, 0, 3].tolist() == [9.0] * 8


def test_a_face_that_jumps_is_found_again() -> None:
    made = follow([face(-12.0), face(12.0)])
    assert made.found.all()


def test_any_landmark_model_plugs_in() -> None:
    shown = face(2.0, turn=10)

    def model(image: np.ndarray) -> list[np.ndarray]:
        return [shown.landmarks] if image[0, 0, 0] else []

    made = track(faces_by(model, canonical_face()), frames(3), FPS)
    assert made.found.tolist() == [False, True, True]
    np.testing.assert_array_equal(made.landmarks[1], shown.landmarks)
    np.testing.assert_allclose(made.mesh[1], shown.mesh, atol=0.4)
    np.testing.assert_allclose(made.transforms[1, :3, :3], shown.transform[:3, :3], atol=0.02)
    assert not made.blendshapes.any()
    with pytest.raises(ValueError, match=r"\[478, 3\] landmarks, got \[68, 2\]"):
        faces_by(lambda image: [np.zeros((68, 2))], canonical_face())(np.zeros((8, 8, 3), np.uint8))


def test_row_31_a_killed_detection_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Frames that are in the files are not looked at again; what a kill has cut off of one is."""
    script = [face(0.5 * number, turn=5 * number) if number not in (0, 4, 5, 9) else None for number in range(10)]
    whole = follow(script)
    seen: list[int] = []

    def find(image: np.ndarray) -> list[Face]:
        seen.append(int(image[0, 0, 0]))
        if len(seen) == 7:
            raise KeyboardInterrupt
        return [one for one in [script[image[0, 0, 0]]] if one]

    with pytest.raises(KeyboardInterrupt):
        track(find, frames(10), FPS, spool=DiskSpool(tmp_path))
    with open(tmp_path / "mesh.raw", "ab") as file:
        file.write(b"half a frame")
    made = track(find, frames(10), FPS, spool=DiskSpool(tmp_path))
    assert seen == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    assert type(made.landmarks) is DiskArray
    for again in (made, track(find, frames(10), FPS, spool=DiskSpool(tmp_path))):
        for name in ("landmarks", "mesh", "transforms", "blendshapes", "found"):
            np.testing.assert_array_equal(np.asarray(getattr(again, name)), getattr(whole, name))
        np.testing.assert_array_equal(again[3:7].mesh, whole.mesh[3:7])
        np.testing.assert_array_equal(again.landmarks[[8, 2]], whole.landmarks[[8, 2]])
        assert again.gaps() == whole.gaps()
    assert len(seen) == 11

"""Several faces in a picture and through a video: all found, each followed as its own, left to right."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from block_faces import CANONICAL, find_blocks, scene

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.people import match, track_people
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.spool import DiskSpool
from fye_pipeline.landmarks.windows import distinct, find_in_windows, window_around, windows_of
from fye_pipeline.media.image import read_picture

FPS = Fraction(10)
Places = list[tuple[int, int] | None]


def people(picture: np.ndarray) -> list[int]:
    """The numbers of the people found in a scene, in the order in which they come."""
    faces = find_in_windows(find_blocks, picture, CANONICAL)
    return [round((float(face.blendshapes[0]) * 255 - 60) / 40) for face in faces]


def follow(script: list[Places], **options: object) -> list[LandmarkSequence]:
    frames = (scene(places) for places in script)
    return track_people(find_blocks, frames, FPS, CANONICAL, **options)  # pyright: ignore[reportArgumentType]


def who(track: LandmarkSequence) -> list[int]:
    """Who a track follows, frame by frame."""
    return [round((float(scores[0]) * 255 - 60) / 40) for scores in track.blendshapes]


def test_windows_cover_the_picture_and_share_half() -> None:
    windows = windows_of(512, 128)
    assert (windows[0].width, windows[0].height) == (512, 128)
    squares = windows[1:]
    assert {(each.width, each.height) for each in squares} == {(128, 128)}
    assert [each.left for each in squares] == list(range(0, 385, 64))
    assert min(each.width for each in windows_of(1600, 1200)) == 300
    assert min(each.width for each in windows_of(1600, 1200, least=500)) == 600


def test_a_picture_smaller_than_any_window_is_looked_at_as_it_is() -> None:
    assert [(each.left, each.width, each.height) for each in windows_of(40, 40)] == [(0, 40, 40)]


def test_a_window_around_a_face_stays_in_the_picture() -> None:
    window = window_around((0.0, 0.25, 0.25, 0.75), 128, 64)
    assert (window.left, window.top) == (0, 0)
    assert (window.width, window.height) == (48, 64)


def test_small_faces_in_a_row_are_all_found_from_left_to_right() -> None:
    picture = scene([(200, 40), (10, 40), (70, 40), (140, 40)])
    assert len(find_blocks(picture)) < 4
    assert people(picture) == [1, 2, 3, 0]


def test_a_face_that_two_windows_show_counts_once_and_stands_where_it_is() -> None:
    (face,) = find_in_windows(find_blocks, scene([(100, 48)], width=512), CANONICAL)
    left, top, right, bottom = face.box
    assert (left * 512, top * 128, right * 512, bottom * 128) == pytest.approx((100, 48, 132, 80), abs=0.01)
    assert (face.width, face.height) == (512, 128)


def test_touching_faces_are_two_and_a_part_of_a_face_is_none() -> None:
    cheek_to_cheek = find_blocks(scene([(40, 40), (72, 40)], width=128))
    assert len(distinct(cheek_to_cheek)) == 2
    (whole,) = find_blocks(scene([(8, 8)], side=48, width=64, height=64))
    (part,) = find_blocks(scene([(12, 20)], side=20, width=64, height=64))
    assert distinct([whole, part]) == [whole]
    assert distinct([whole, whole]) == [whole]


def test_every_track_keeps_its_person_when_the_detector_keeps_no_order() -> None:
    made = follow([[(20 + 4 * step, 40), (150 - 4 * step, 40)] for step in range(8)])
    assert [who(track) for track in made] == [[0] * 8, [1] * 8]
    assert all(track.found.all() for track in made)
    assert made[0].fps == FPS


def test_a_gap_is_filled_in_the_track_of_who_is_missing_only() -> None:
    script: list[Places] = [[(20, 40), (150, 40)] for _ in range(8)]
    script[3] = script[4] = [None, (150, 40)]
    first, second = follow(script)
    assert first.gaps() == [(3, 5)]
    assert second.gaps() == []
    assert who(first) == [0] * 8


def test_a_longer_gap_names_the_person_and_the_frames() -> None:
    script: list[Places] = [[(20, 40), (150, 40) if step < 6 else None] for step in range(12)]
    with pytest.raises(UserError, match=r"Face 2 of 2 \(left to right\) was not found .* in frames 6-11 \(0\.60-1\.20"):
        follow(script)
    assert len(follow(script, max_gap=0.6)) == 2


def test_a_passer_by_is_left_out() -> None:
    script: list[Places] = [[(20, 40), (150, 40) if 5 <= step < 8 else None] for step in range(20)]
    (only,) = follow(script)
    assert who(only) == [0] * 20


def test_nothing_is_kept_of_who_comes_late(tmp_path: Path) -> None:
    """An hour of a busy street would fill the disk with frames in which a passer-by is not there."""
    script: list[Places] = [[(20, 40), (150, 40) if 8 <= step < 11 else None] for step in range(20)]
    spools: list[Path] = []

    def new_spool(number: int) -> DiskSpool:
        spools.append(tmp_path / str(number))
        return DiskSpool(spools[-1])

    (only,) = follow(script, new_spool=new_spool)
    assert who(only) == [0] * 20
    assert len(spools) == 1


def test_who_comes_late_and_stays_is_told() -> None:
    script: list[Places] = [[(20, 40), (150, 40) if step >= 8 else None] for step in range(20)]
    with pytest.raises(UserError, match=r"Face 2 of 2 .* in frames 0-9"):
        follow(script)
    assert [who(track) for track in follow(script, max_gap=0.8)] == [[0] * 20, [1] * 20]


def test_a_face_far_from_every_track_is_somebody_else() -> None:
    script: list[Places] = [[(20, 40), None] if step < 6 else [None, (180, 40)] for step in range(12)]
    with pytest.raises(UserError, match="Face 1 of 2"):
        follow(script)


def test_nobody_and_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="No face was found in any of the video's 2 frames"):
        follow([[None], [None]])
    with pytest.raises(UserError, match="no frames"):
        follow([])


def test_the_smallest_jumps_in_all_decide_who_is_who() -> None:
    """The missing one of two neighbours must not take the other's face."""
    before = find_in_windows(find_blocks, scene([(40, 40), (74, 40)], width=128), CANONICAL)
    (after,) = find_in_windows(find_blocks, scene([None, (70, 40)], width=128), CANONICAL)
    assert match(before, [after]) == [1]
    assert match([], [after]) == [None]


@pytest.fixture(scope="module")
def detector(face_landmarker_path: Path) -> Iterator[FaceLandmarkDetector]:
    with FaceLandmarkDetector(face_landmarker_path) as opened:
        yield opened


def real_row(portraits_dir: Path, side: int) -> np.ndarray:
    """Five portraits side by side."""
    squares = []
    for name in ("s0", "s30", "s6", "s7", "s9"):
        picture = read_picture(portraits_dir / f"{name}.jpg")
        height, width = picture.shape[:2]
        length, left = min(height, width), (width - min(height, width)) // 2
        square = picture[:length, left : left + length]
        squares.append(np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.uint8))
    return np.concatenate(squares, axis=1)


@pytest.mark.parametrize("side", [128, 256])
def test_five_real_faces_in_a_row_are_found(detector: FaceLandmarkDetector, portraits_dir: Path, side: int) -> None:
    row = real_row(portraits_dir, side)
    faces = find_in_windows(detector.detect_all, row, detector.canonical)
    assert len(detector.detect_all(row)) < 5
    assert [int((face.box[0] + face.box[2]) / 2 * 5) for face in faces] == [0, 1, 2, 3, 4]

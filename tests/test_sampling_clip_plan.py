"""The plan of a progressive video: which clips, in which order, given what."""

from __future__ import annotations

from typing import Any

import pytest

from fye_pipeline.errors import UserError
from fye_pipeline.sampling.clip_plan import PlannedClip, ReadyFrames, keyframes, plan_clips


@pytest.mark.parametrize("length", [3, 4, 5, 16, 24, 32])
def test_every_frame_is_made_once_from_frames_made_before(length: int) -> None:
    for frames in range(1, 1001):
        made: set[int] = set()
        for number, clip in enumerate(plan_clips(frames, length=length)):
            assert clip.number == number
            assert 1 <= len(clip.frames) <= length
            assert list(clip.frames) == sorted(set(clip.frames))
            assert clip.given == ((clip.frames[0], clip.frames[-1]) if number else ())
            assert made.issuperset(clip.given)
            assert clip.made
            assert made.isdisjoint(clip.made)
            made.update(clip.made)
        assert made == set(range(frames))


@pytest.mark.parametrize(("frames", "levels"), [(1, 1), (16, 1), (17, 2), (226, 2), (227, 3), (1000, 3)])
def test_levels_are_as_few_as_can_be(frames: int, levels: int) -> None:
    plan = plan_clips(frames, length=16)
    assert [clip.level for clip in plan] == sorted(clip.level for clip in plan)
    assert plan[-1].level == levels - 1


def test_gaps_are_even_and_whole_at_the_lowest_level() -> None:
    for frames in range(17, 1001):
        plan = plan_clips(frames, length=16)
        lowest = [clip for clip in plan if clip.level == plan[-1].level]
        assert len(lowest) == -(-(frames - 1) // 15)
        assert max(len(clip.frames) for clip in lowest) - min(len(clip.frames) for clip in lowest) <= 1
        for clip in lowest:
            assert clip.frames == tuple(range(clip.frames[0], clip.frames[-1] + 1))


def test_plans_by_hand() -> None:
    assert plan_clips(3, length=4) == [PlannedClip(0, 0, (0, 1, 2), ())]
    assert plan_clips(7, length=4) == [
        PlannedClip(0, 0, (0, 3, 6), ()),
        PlannedClip(1, 1, (0, 1, 2, 3), (0, 3)),
        PlannedClip(2, 1, (3, 4, 5, 6), (3, 6)),
    ]
    assert plan_clips(7, length=3) == [  # frames 0, 2, 4, 6 are keyframes, too many for one clip: 0, 2, 6 come first
        PlannedClip(0, 0, (0, 2, 6), ()),
        PlannedClip(1, 1, (2, 4, 6), (2, 6)),
        PlannedClip(2, 2, (0, 1, 2), (0, 2)),
        PlannedClip(3, 2, (2, 3, 4), (2, 4)),
        PlannedClip(4, 2, (4, 5, 6), (4, 6)),
    ]
    assert plan_clips(17, length=16)[1].made == tuple(range(1, 8))


@pytest.mark.parametrize("length", [4, 5, 6, 16])
def test_seams_remake_frames_around_keyframes_from_frames_made_once(length: int) -> None:
    for frames in (*range(1, 60), 250, 1000):
        plan = plan_clips(frames, length=length, seams=True)
        assert [clip.number for clip in plan] == list(range(len(plan)))
        gaps = [clip for clip in plan if not clip.seam]
        bare = plan_clips(frames, length=length)
        assert [(clip.frames, clip.given) for clip in gaps] == [(clip.frames, clip.given) for clip in bare]
        again: set[int] = set()
        made: set[int] = set()
        for clip in plan:
            assert made.issuperset(clip.given)
            assert again.isdisjoint(clip.given) or not clip.seam
            if clip.seam:
                assert made.issuperset(clip.frames)
                assert again.isdisjoint(clip.made)
                again.update(clip.made)
            made.update(clip.made)
        middles = {clip.frames[len(clip.frames) // 2] for clip in plan if clip.seam}
        assert middles <= set(keyframes(plan))
        if length == 16 and len(bare) > 1:
            assert middles == set(keyframes(plan))


def test_frames_are_shown_when_their_last_clip_is_done() -> None:
    plan = plan_clips(11, length=6, seams=True)
    assert keyframes(plan) == [5]
    order = ReadyFrames(plan)
    shown = [(clip.number, list(order.after(clip))) for clip in plan]
    assert shown == [(0, [0]), (1, [1, 2, 3]), (2, []), (3, [4, 5, 6, 7, 8, 9, 10])]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "at least 1 frame, got 0"),
        ({"length": 2}, "3 to 32 frames, got 2"),
        ({"length": 33}, "3 to 32 frames, got 33"),
        ({"length": 2, "limit": None}, "3 to any number of frames, got 2"),
    ],
)
def test_impossible_plans_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_clips(**{"frames": 10, "length": 6, "limit": 32, **options})

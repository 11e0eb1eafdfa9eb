"""`fye prepare --people`: videos of several people, chosen by percentiles of their folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fye_command import Fye, make_video
from landmark_faces import face

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.training import prepare_people as module
from fye_pipeline.training.prepare_people import (
    BLURRED,
    PEOPLE,
    STILL,
    UNSTEADY,
    Measures,
    PeopleOptions,
    judge,
    measure,
    motion_scores,
    parse_people,
    sharpness,
)
from fye_pipeline.world import World

MOTION = {"lids": 0.2, "gaze": 0.1, "mouth": 0.3, "brows": 0.1, "head": 10.0}


def entry(people: int = 2, **changes: Any) -> dict[str, Any]:
    values = {"steady": 1.0, "frames": 10, "blur": 100.0, "motion": MOTION, **changes}
    return {"measures": asdict(Measures(people=people, **values))}


def scaled(by: float) -> dict[str, float]:
    return {kind: value * by for kind, value in MOTION.items()}


@pytest.mark.parametrize(("text", "wanted"), [("2", (2, 2)), ("2+", (2, None)), ("2-3", (2, 3)), (" 1+", (1, None))])
def test_numbers_of_people(text: str, wanted: tuple[int, int | None]) -> None:
    assert parse_people(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "3-2", "two", "2-", "-2", "2++"])
def test_other_words_are_no_numbers_of_people(text: str) -> None:
    with pytest.raises(UserError, match="--people must be a number"):
        parse_people(text)


def test_thresholds_are_percentiles_of_the_videos_with_so_many_people() -> None:
    measured = {f"v{number}": entry(blur=100.0 + number, motion=scaled(2 - number / 20)) for number in range(10)}
    measured |= {"one": entry(1, blur=1.0), "four": entry(4), "restless": entry(steady=0.5)}
    measured |= {"broken": {"error": "It is broken."}}
    report = judge(measured, PeopleOptions(2, 3, drop=10))
    reasons = {row["video"]: row["reason"] for row in report["videos"]}
    assert reasons["v0"] == BLURRED
    assert reasons["v9"] == STILL
    assert (reasons["one"], reasons["four"], reasons["restless"]) == (PEOPLE, PEOPLE, UNSTEADY)
    assert reasons["broken"] == "cannot be read"
    assert report["totals"] == {"videos": 14, "kept": 8}
    assert report["dropped"] == {PEOPLE: 2, BLURRED: 1, "cannot be read": 1, STILL: 1, UNSTEADY: 1}
    assert report["thresholds"][BLURRED] == pytest.approx(100.9)
    assert report["aesthetics"] == "n/a: needs a model"
    assert judge(measured, PeopleOptions(2, None, drop=0))["totals"]["kept"] == 11


def test_a_filter_without_videos_takes_nothing() -> None:
    report = judge({"one": entry(1)}, PeopleOptions())
    assert report["thresholds"][BLURRED] is None
    assert report["totals"] == {"videos": 1, "kept": 0}


def test_motion_is_counted_in_the_folders_own_measure() -> None:
    scores = motion_scores({"a": scaled(1), "b": scaled(2), "c": {**scaled(1), "head": 30.0}})
    assert scores["b"] == pytest.approx((4 * 2 + 20 / 20) / 5)
    assert scores["c"] == pytest.approx((4 * 1 + 30 / 20) / 5)


def test_sharpness_falls_with_blur_and_not_with_the_rest_of_the_picture() -> None:
    random = np.random.default_rng(0)
    sharp = random.integers(0, 256, (120, 160, 3), np.uint8)
    seen = face()
    picture = np.asarray(cv2.resize(sharp, (seen.width, seen.height), interpolation=cv2.INTER_NEAREST), np.uint8)
    soft = np.asarray(cv2.GaussianBlur(picture, (0, 0), 6), np.uint8)
    assert sharpness(soft, seen) < sharpness(picture, seen) / 4
    outside = picture.copy()
    outside[:10] = 0
    assert sharpness(outside, seen) == sharpness(picture, seen)


def test_who_is_seen_only_now_and_then_does_not_count() -> None:
    picture = np.zeros((96, 96, 3), np.uint8)
    seen = [(picture, [face()]) for _ in range(9)] + [(picture, [])]
    made = measure(iter(seen), lambda frame: 5.0)
    assert (made.people, made.steady, made.frames, made.aesthetics) == (1, 0.9, 10, 5.0)
    assert made.motion == dict.fromkeys(MOTION, 0.0)
    with pytest.raises(UserError, match="no frames"):
        measure(iter(()), None)


def bright(frame: np.ndarray) -> float:
    """A scorer that the tests name."""
    return float(frame.mean())


def test_a_folder_of_videos_is_chosen_from_and_goes_on_where_it_broke_off(
    fye: Fye, tmp_path: Path, face_landmarker_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del face_landmarker_path
    world = World(CanonicalFace.load(), size=128)
    clips = [world.clip("held", index, frames=4).frames for index in (0, 1)]
    videos = tmp_path / "videos"
    videos.mkdir()
    pair = [np.concatenate(both, axis=1) for both in zip(*clips, strict=True)]
    make_video(videos / "pair.mp4", pair, fps=module.Fraction(4))
    soft = [np.asarray(cv2.GaussianBlur(pair[k], (0, 0), 3), np.uint8) for k in (0, 0, 0, 1)]  # and calmer
    make_video(videos / "soft.mp4", soft, fps=module.Fraction(4))
    make_video(videos / "alone.mp4", list(clips[0]), fps=module.Fraction(4))
    command = ("prepare", videos, "--output", tmp_path / "out", "--people", "2+", "--drop", 40)
    real, calls = module.measure, []

    def broken(*given: Any) -> Measures:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "measure", broken)
    assert fye(*command)[0] == 130
    code, out, err = fye(*command, "--resume", "--json", "--quiet")
    assert code == 0, err
    assert len(calls) == 4, "a finished video was looked at again"
    report = json.loads(out)
    reasons = {row["video"]: row["reason"] for row in report["videos"]}
    assert (reasons["pair.mp4"], reasons["soft.mp4"], reasons["alone.mp4"]) == (None, BLURRED, PEOPLE)
    (kept,) = (tmp_path / "out" / "people.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(kept)
    assert (row["video"], row["people"], len(row["boxes"])) == (str(videos / "pair.mp4"), 2, 2)
    assert row["motion"]["head"] > 0
    code, out, _ = fye(*command, "--resume")
    assert "1 of 3 videos kept" in out
    assert "aesthetics: n/a: needs a model" in out
    assert "--resume" in fye.refused(*command)
    scorer = ("--aesthetics", f"{__name__}:bright", "--overwrite")
    code, out, err = fye(*command, *scorer, "--json", "--quiet")
    assert code == 0, err
    assert all("aesthetics" in row["measures"] for row in json.loads(out)["videos"])
    assert "--aesthetics nowhere:x cannot be loaded" in fye.refused(
        *command, "--overwrite", "--aesthetics", "nowhere:x"
    )

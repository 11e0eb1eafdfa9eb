"""Reenactment on the rendered world: baselines are what they claim, the result has the agreed keys, a run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_parts import small_parts

from fye_pipeline.errors import UserError
from fye_pipeline.evaluation import rendered as reenactment
from fye_pipeline.evaluation.run import Run
from fye_pipeline.evaluation.summary import check_thresholds, describe, mean_of
from fye_pipeline.evaluation.world_identity import fit_identity, separation
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.world import World

SMALL: dict[str, Any] = {"clips": 2, "frames": 3, "steps": 2, "identity_people": 4}


@pytest.fixture(scope="module")
def model() -> FollowYourEmojiPipeline:
    return FollowYourEmojiPipeline(**small_parts())


def test_every_row_has_every_figure_and_a_killed_run_goes_on(
    model: FollowYourEmojiPipeline, face_landmarker_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "figures.json"
    plan = reenactment.Plan(**SMALL, cache={"N": 2, "order": 1})
    options: dict[str, Any] = {"face_landmarker": face_landmarker_path}
    run, again = Run(target), Run(target, resume=True)
    measured: list[int] = []
    real = reenactment.ClipEvaluator._self

    def once(self: Any, model: Any, own: Any, other: Any, k: int, find: Any) -> Any:
        if measured and len(measured) < 2:
            measured.append(-1)
            raise KeyboardInterrupt
        measured.append(k)
        return real(self, model, own, other, k, find)

    monkeypatch.setattr(reenactment.ClipEvaluator, "_self", once)
    with pytest.raises(KeyboardInterrupt):
        reenactment.evaluate_rendered(lambda: model, plan, run, **options)
    assert not target.exists()
    with pytest.raises(UserError, match="pass --resume to go on"):
        reenactment.evaluate_rendered(lambda: model, plan, run, **options)
    with pytest.raises(UserError, match="belongs to a run with other settings"):
        reenactment.evaluate_rendered(lambda: model, reenactment.Plan(**SMALL), again, **options)
    result = reenactment.evaluate_rendered(lambda: model, plan, again, **options)
    assert measured == [0, -1, 1]  # the first clip came from the journal

    assert list(tmp_path.iterdir()) == [target]
    assert json.loads(target.read_text()) == result
    rows = ("ours", "repeat_reference", "wrong_reference", "shuffled_landmarks", "cached")
    assert set(result) == {*rows, "cross", "thresholds", "conditions"}
    for name in rows:
        assert {"l1", "psnr", "ssim", "landmark_error", "frames_without_face", "identity", "exp", "lms"} <= set(
            result[name]
        )
    assert set(result["cross"]) == {"ours", "repeat_reference", "repeat_driver", "cached"}
    assert result["repeat_reference"]["frames_without_face"] == 0
    assert result["repeat_reference"]["landmark_error"] > 0
    assert result["repeat_reference"]["identity"] == pytest.approx(0, abs=1e-9)
    assert result["cross"]["repeat_driver"]["lms"] == pytest.approx(0, abs=1e-9)
    assert result["cross"]["repeat_driver"]["identity"] > 0.3
    assert result["conditions"]["clips"] == 2
    assert result["conditions"]["cache"] == {"N": 2, "order": 1}
    assert result["cached"]["psnr_uncached"] > 20
    assert "missed" in describe(result)

    monkeypatch.setattr(reenactment, "measure_all", None)  # nothing is measured again
    assert reenactment.evaluate_rendered(lambda: model, plan, again, **options) == result


def test_a_perfect_model_beats_every_baseline(
    model: FollowYourEmojiPipeline, face_landmarker_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that redraws the truth from portrait and landmarks: only the swapped inputs can be wrong."""
    truths: dict[tuple[bytes, bytes], Any] = {}
    make_case = reenactment.make_case

    def remember(*arguments: Any) -> reenactment.Case:
        case = make_case(*arguments)
        truths[case.portrait.tobytes(), case.clip.sequence.landmarks.tobytes()] = case.truth
        return case

    def redraw(model: Any, portrait: Any, face: Any, landmarks: Any, **_: Any) -> Any:
        key = portrait.tobytes(), landmarks.tobytes()
        right_landmarks = [truth for known, truth in truths.items() if known[0] == key[0]]
        return truths.get(key, right_landmarks[0] * 0.5)

    monkeypatch.setattr(reenactment, "make_case", remember)
    monkeypatch.setattr(reenactment, "generate", redraw)
    smaller: dict[str, Any] = SMALL | {"frames": 2, "cross": False}
    plan = reenactment.Plan(**smaller)
    result = reenactment.evaluate_rendered(lambda: model, plan, face_landmarker=face_landmarker_path)
    assert result["ours"]["l1"] == 0
    for name in ("landmark_error", "exp", "lms", "lmd", "gaze", "aed", "apd_rotation", "apd_translation"):
        assert result["ours"][name] == pytest.approx(0, abs=1e-5), name
    assert result["ours"]["landmark_error_exact"] > 0  # the detector's own error
    for name in ("repeat_reference", "wrong_reference", "shuffled_landmarks"):
        assert result[name]["l1"] > 0.01


def test_identity_tells_people_apart_that_it_was_not_fitted_to(face_landmarker_path: Path) -> None:
    with FaceLandmarkDetector(face_landmarker_path, max_faces=1) as detector:
        world = World(detector.canonical)
        identity = fit_identity(world, detector.detect, people=12)
        told = separation(identity, world, detector.detect, split="held", people=[0, 1, 2, 3, 4])
    assert told["told_apart"] == 1
    assert told["same"] < 0.4 * told["other"]


def test_thresholds_are_judged_by_their_own_limits() -> None:
    row = {"l1": 0.1, "psnr": 20.0, "ssim": 0.8, "landmark_error": 0.03}
    result = {
        "ours": row | {"l1": 0.04, "ssim": 0.9, "landmark_error": 0.0046},
        "repeat_reference": row,
        "wrong_reference": row | {"l1": 0.05},
        "shuffled_landmarks": row | {"landmark_error": None},
        "cached": row | {"l1": 0.0409, "ssim": 0.896},
    }
    verdicts = [check["met"] for check in check_thresholds(result)]
    assert verdicts == [True, True, False, None, False, True, False]


def test_means_leave_out_what_was_not_measured() -> None:
    rows = [{"l1": 1.0, "lms": None, "frames_without_face": 1}, {"l1": 3.0, "lms": np.nan, "frames_without_face": 2}]
    assert mean_of(rows) == {"l1": 2.0, "lms": None, "frames_without_face": 3}


def test_one_clip_is_too_few() -> None:
    with pytest.raises(ValueError, match="clips must be >= 2"):
        reenactment.Plan(clips=1)

"""Reenactment on the rendered world: the baselines are what they claim, the result has the agreed keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fye_pipeline.evaluation import reenactment
from fye_pipeline.models.tiny import build_tiny
from fye_pipeline.pipeline import FollowYourEmojiPipeline


@pytest.fixture(scope="module")
def model() -> FollowYourEmojiPipeline:
    return FollowYourEmojiPipeline(**build_tiny(0, in_channels=9, reference_hint=True))


def test_every_row_has_every_figure(model: FollowYourEmojiPipeline, face_landmarker_path: Path) -> None:
    result = reenactment.evaluate_rendered(
        model, clips=2, frames=3, steps=3, cache={"N": 3, "order": 1}, face_landmarker=face_landmarker_path
    )
    assert set(result) == {
        "ours", "repeat_reference", "wrong_reference", "shuffled_landmarks", "cached", "conditions",
    }  # fmt: skip
    for name, row in result.items():
        if name != "conditions":
            assert {"l1", "psnr", "ssim", "landmark_error", "frames_without_face"} <= set(row)
    assert result["repeat_reference"]["frames_without_face"] == 0
    assert result["repeat_reference"]["landmark_error"] > 0
    assert result["conditions"]["clips"] == 2
    assert result["conditions"]["cache"] == {"N": 3, "order": 1}


def test_a_perfect_model_beats_every_baseline(
    model: FollowYourEmojiPipeline, face_landmarker_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that redraws the truth from portrait and landmarks: only the swapped inputs can be wrong."""
    truths: dict[tuple[bytes, bytes], Any] = {}
    make_case = reenactment._case

    def remember(*arguments: Any) -> reenactment.Case:
        case = make_case(*arguments)
        truths[case.portrait.tobytes(), case.pictures.tobytes()] = case.truth
        return case

    def redraw(model: Any, portrait: Any, pictures: Any, **_: Any) -> Any:
        key = portrait.tobytes(), pictures.tobytes()
        right_landmarks = [truth for known, truth in truths.items() if known[0] == key[0]]
        return truths.get(key, right_landmarks[0] * 0.5)

    monkeypatch.setattr(reenactment, "_case", remember)
    monkeypatch.setattr(reenactment, "generate", redraw)
    result = reenactment.evaluate_rendered(model, clips=2, frames=2, face_landmarker=face_landmarker_path)
    assert result["ours"]["l1"] == 0
    assert result["ours"]["landmark_error"] == pytest.approx(0, abs=1e-6)
    assert result["ours"]["landmark_error_exact"] > 0  # the detector's own error
    for name in ("repeat_reference", "wrong_reference", "shuffled_landmarks"):
        assert result[name]["l1"] > 0.01


def test_one_clip_is_too_few(model: FollowYourEmojiPipeline) -> None:
    with pytest.raises(ValueError, match="clips must be >= 2"):
        reenactment.evaluate_rendered(model, clips=1)

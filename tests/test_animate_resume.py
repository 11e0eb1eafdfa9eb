"""An output is finished, and work is gone on with, only where it was made from what is there now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fye_command import Fye

from fye_pipeline import presets
from fye_pipeline.animate.config import DEMO_DRIVING, DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS, AnimationSettings
from fye_pipeline.animate.renderer import RenderContext
from fye_pipeline.animate.session import AnimationSession
from ticache import CacheConfig

SMALL = ("--steps", 2, "--size", 64)


@pytest.fixture
def files(tmp_path: Path, random_model: Path) -> dict[str, Path]:
    """What an animation is made from, to be changed."""
    inputs = {"reference": DEMO_PORTRAIT, "reference-landmarks": DEMO_PORTRAIT_LANDMARKS, "driving": DEMO_DRIVING}
    mine = {name: Path(shutil.copy(file, tmp_path / f"{name}{file.suffix}")) for name, file in inputs.items()}
    return mine | {"model": Path(shutil.copytree(random_model, tmp_path / "model"))}


def flags_of(files: dict[str, Path], *more: Any) -> tuple[Any, ...]:
    return (*(part for name, file in files.items() for part in (f"--{name}", file)), *SMALL, *more, "--quiet")


def test_a_result_of_replaced_files_is_not_finished(fye: Fye, tmp_path: Path, files: dict[str, Path]) -> None:
    output = tmp_path / "a.mp4"
    command = ("animate", "--output", output, *flags_of(files, "--frames", 1))
    code, _, err = fye(*command)
    assert code == 0, err
    made = output.read_bytes()
    assert fye(*command, "--resume")[0] == 0
    names = {"reference": "reference file", "reference-landmarks": "reference landmarks file"}
    names |= {"driving": "driving file", "model": "model version"}
    for name, told in names.items():
        file = files["model"] / "unet" / "config.json" if name == "model" else files[name]
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        sentence = fye.refused(*command, "--resume")
        assert sentence.endswith(f"a.mp4 was made from another {told}; pass --overwrite to replace it.")
        file.write_bytes(before)
    assert fye(*command, "--resume")[0] == 0
    assert output.read_bytes() == made


def tune(model: Path, *steps: int) -> None:
    """Give the preset `fast` these full steps."""
    presets.write(model, {"fast": json.loads(CacheConfig(steps=steps).to_json())}, {})


def test_a_result_of_another_schedule_is_not_finished(fye: Fye, tmp_path: Path, files: dict[str, Path]) -> None:
    tune(files["model"], 0, 1)
    command = ("animate", "--output", tmp_path / "a.mp4", *flags_of(files, "--frames", 1, "--preset", "fast"))
    assert fye(*command)[0] == 0
    assert fye(*command, "--resume")[0] == 0
    tune(files["model"], 0)
    assert "was made from another preset schedule;" in fye.refused(*command, "--resume")


def test_what_was_killed_is_not_mixed_with_a_schedule_tuned_since(
    fye: Fye, tmp_path: Path, files: dict[str, Path], stop_at: Callable[[int], list[int]]
) -> None:
    runs = stop_at(2)
    tune(files["model"], 0, 1)
    flags = flags_of(files, "--frames", 36, "--long", "tiles", "--chunk", 24, "--preset", "fast")
    command = ("animate", "--output", tmp_path / "a.mp4", *flags)
    assert fye(*command)[0] == 130
    tune(files["model"], 0)
    assert "holds unfinished work with other settings or files (" in fye.refused(*command, "--resume")
    assert len(runs) == 2
    tune(files["model"], 0, 1)
    assert fye(*command, "--resume")[0] == 0
    assert len(runs) == 3, "the clip that was finished is not made again"


def test_clips_are_known_by_the_schedule_and_not_by_the_presets_name(files: dict[str, Path]) -> None:
    settings = AnimationSettings(model=files["model"], cache={"preset": "fast"})
    with AnimationSession(device="cpu") as session:
        parts: Any = {"square": None, "landmarks": None, "on_progress": None}
        context = RenderContext(session.model(settings), settings, size=64, dtype=torch.float32, **parts)
        tune(files["model"], 0, 1)
        before = context.cache_identity
        tune(files["model"], 0)
        assert context.cache_identity != before


def test_a_session_loads_a_replaced_model_anew(files: dict[str, Path]) -> None:
    settings = AnimationSettings(model=files["model"])
    with AnimationSession(device="cpu") as session:
        first = session.model(settings)
        tune(files["model"], 0, 1)
        assert session.model(settings) is first
        index = files["model"] / "model_index.json"
        index.write_text(index.read_text() + " ")
        assert session.model(settings) is not first

"""Settings as JSON, and out of a result."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import Fye

from fye_pipeline.animate.config import AnimationSettings, read_settings, row_settings
from fye_pipeline.batch.manifest import read_manifest
from fye_pipeline.errors import UserError
from fye_pipeline.media.writer import write_video


def test_settings_come_back_from_json() -> None:
    settings = AnimationSettings(
        reference=Path("my photo.jpg"),
        fps=Fraction(30000, 1001),
        crop_shift=(0.1, -0.2),
        regions=("pose", "lips"),
        cache=None,
        framing="crop",
    )
    values = json.loads(settings.to_json())
    assert AnimationSettings.from_dict(values) == settings
    assert values["fps"] == "30000/1001"
    assert values["regions"] == ["lips", "pose"]


def test_the_packages_own_files_are_named_without_the_machine() -> None:
    text = AnimationSettings().to_json()
    assert "shipped:demo/portrait.png" in text
    assert str(Path.home()) not in text
    assert AnimationSettings.from_dict(json.loads(text)) == AnimationSettings()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"step": 3}, "no setting 'step'"),
        ({"steps": "many"}, "steps cannot be 'many'"),
        ({"steps": 2.5}, "steps cannot be 2.5"),
        ({"steps": True}, "steps cannot be True"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"guidance": float("nan")}, "guidance"),
        ({"framing": "half"}, "framing cannot be 'half'"),
        ({"regions": ["nose"]}, "'nose'"),
        ({"intensity": 2.1}, "intensity"),
        ({"background": "colourless"}, "background"),
        ({"face": "the left one"}, "face must be"),
        ({"crop_shift": [1]}, "crop_shift cannot be"),
        ({"unaligned": True, "regions": ["lips"]}, "--unaligned"),
        ({"unaligned": True, "framing": "crop"}, "--unaligned"),
    ],
)
def test_what_is_no_setting_is_one_sentence(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        AnimationSettings.from_dict(values)


def test_text_as_in_a_table_is_understood() -> None:
    values = {"steps": "7", "compare": "true", "crop_shift": "0, -0.2", "regions": "eyes, lips", "fps": "25"}
    settings = AnimationSettings.from_dict(values)
    assert settings.steps == 7
    assert settings.compare is True
    assert settings.crop_shift == (0, -0.2)
    assert settings.regions == ("eyes", "lips")


def test_settings_are_read_from_a_file_and_from_a_video(tmp_path: Path) -> None:
    saved = tmp_path / "settings.json"
    saved.write_text('\ufeff{"steps": 3}', encoding="utf-8")
    assert read_settings(saved) == {"steps": 3}
    frames = [np.zeros((64, 64, 3), np.uint8)] * 2
    write_video(tmp_path / "made.mp4", frames, Fraction(25), comment=json.dumps({"settings": {"steps": 4}}))
    assert read_settings(tmp_path / "made.mp4") == {"steps": 4}
    write_video(tmp_path / "other.mp4", frames, Fraction(25), comment="holiday")
    (tmp_path / "list.json").write_text("[1, 2]")
    for name in ("other.mp4", "list.json"):
        with pytest.raises(UserError, match="holds no settings"):
            read_settings(tmp_path / name)


SEED = 2**63 - 1  # not a float: those have 53 bits


def test_the_largest_seed_comes_out_of_flags_settings_and_a_video_to_the_last_digit(
    fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    saved, first, second = tmp_path / "a.json", tmp_path / "a.mp4", tmp_path / "b.mp4"
    flags = ("--model", random_model, "--steps", 1, "--frames", 1, "--size", 64, "--no-cache", "--json")
    code, out, err = fye("animate", "--seed", SEED, "--save-config", saved, "--output", first, *flags)
    assert code == 0, err
    assert json.loads(out)["settings"]["seed"] == SEED
    for source in (saved, first):
        assert read_settings(source)["seed"] == SEED
        code, out, err = fye("animate", "--config", source, "--output", second, "--overwrite", "--json")
        assert code == 0, err
        assert json.loads(out)["settings"]["seed"] == SEED
    assert "seed must be < 9223372036854775808" in fye.refused("animate", "--seed", SEED + 1, "--output", second)


@pytest.mark.parametrize(
    ("name", "text"),
    [("rows.csv", f"output,seed\na.mp4,{SEED}\n"), ("rows.jsonl", f'{{"output": "a.mp4", "seed": {SEED}}}\n')],
)
def test_the_largest_seed_comes_out_of_a_manifest_to_the_last_digit(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (row,) = read_manifest(tmp_path / name)
    values = {key: value for key, value in row.values.items() if key != "output"}
    assert row_settings({}, values, "row", lambda options: None).seed == SEED

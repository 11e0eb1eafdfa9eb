"""The page's table of settings, without Gradio: what its values mean, here and on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from fye_command import Fye
from PIL import Image

from fye_pipeline.animate import run
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.app import words
from fye_pipeline.app.controls import CONTROLS, Control, Files, command_line, settings_of
from fye_pipeline.app.jobs import Waiting, Working
from fye_pipeline.errors import UserError

DEFAULTS = [control.default for control in CONTROLS]
OTHER = {"regions": ["lips", "eyes"], "intensity": 0.5, "frames": 12.0, "seed": 7, "steps": 10, "compare": True}


def changes() -> list[tuple[str, Any]]:
    """Every option of every choice, and another value of everything else."""
    choices = [(control.name, name) for control in CONTROLS for name in control.options]
    return [*choices, *OTHER.items()]


def values_with(name: str, value: Any) -> list[Any]:
    return [value if control.name == name else control.default for control in CONTROLS]


class Asked(UserError):
    """What the command line was asked for."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AnimationSettings]:
    """The settings that `fye animate` came to; it ends there."""
    seen: list[AnimationSettings] = []

    def animate(settings: AnimationSettings, *_: Any, **__: Any) -> None:
        seen.append(settings)
        raise Asked("seen")

    monkeypatch.setattr(run, "animate", animate)
    return seen


def test_every_control_is_tried() -> None:
    assert {name for name, _ in changes()} == {control.name for control in CONTROLS}


@pytest.mark.parametrize(("name", "value"), changes())
def test_the_command_line_makes_what_the_page_makes(
    name: str, value: Any, fye: Fye, asked: list[AnimationSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("my photo.png")
    files = Files(Path("my photo.png"), Path("it's a video.mp4"))
    values = values_with(name, value)
    fye(*shlex.split(command_line(files, values))[1:])
    assert asked == [settings_of(files, values, {})]


def test_what_is_not_changed_is_not_said() -> None:
    assert command_line(Files(None, None), DEFAULTS) == "fye animate --output animated.mp4"
    line = command_line(Files(Path("a b.png"), None), values_with("regions", ["lips", "eyes"]), "follow-your-emoji")
    expected = "fye animate --reference 'a b.png' --model follow-your-emoji --regions eyes,lips --output animated.mp4"
    assert line == expected


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("intensity", 99, "intensity must be from 0 to 2"),
        ("frames", -3, "frames"),
        ("seed", 0.5, "seed"),
        ("regions", ["nose"], "nose"),
        ("preset", "no-such", "no-such"),
        ("framing", "no-such", "no-such"),
    ],
)
def test_a_value_that_the_page_does_not_offer_is_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings_of(Files(Path("a.png"), None), values_with(name, value), {})


def test_the_mark_cannot_be_left_out() -> None:
    assert "watermark" not in {control.name for control in CONTROLS}
    for name, value in changes():
        assert settings_of(Files(Path("a.png"), None), values_with(name, value), {}).watermark


def test_another_setting_is_one_line_of_the_table() -> None:
    more = (*CONTROLS, Control("crop_scale", "Crop", "range", 2.0, flag="--crop-scale", low=1, high=8))
    files = Files(Path("a.png"), None)
    assert settings_of(files, [*DEFAULTS, 3.0], {}, more).crop_scale == 3
    assert "--crop-scale 3.0" in command_line(files, [*DEFAULTS, 3.0], controls=more)


def test_the_page_shows_the_terms_of_the_project() -> None:
    written = (Path(__file__).parent.parent / "USAGE.md").read_text(encoding="utf-8")
    assert "2. where nobody" in words.TERMS
    for point in words.TERMS.split("\n\n")[1].split("\n2. "):
        assert " ".join(point.split()) in " ".join(written.split())


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Waiting(1), "Waiting: 1 job before yours"),
        (Waiting(2), "Waiting: 2 jobs before yours"),
        (Working("denoising", 12, 48, 61.0), "Making the frames: 12 of 48 frames, about 1 min left"),
        (Working("detecting", 3, None, None), "Finding the face in the driver"),
        (Working("decoding", 47, 48, 0.2), "Writing the video: 47 of 48 frames, about 1 s left"),
        (Working("denoising", 1, 9000, 7300.0), "Making the frames: 1 of 9000 frames, about 2 h 2 min left"),
    ],
)
def test_how_a_job_stands_is_one_line(event: Any, text: str) -> None:
    assert words.sentence(event) == text
    assert text in words.progress(event)


def test_what_people_write_stays_text_on_the_page() -> None:
    assert "<img" not in words.message("no face in <img src=x onerror=alert(1)>.png", "fault")

"""The page's table of settings, without Gradio: what its values mean, here and on the command line."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fye_command import Fye
from PIL import Image

from fye_pipeline.animate import run
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.app import pictures, words
from fye_pipeline.app.controls import (
    CONTROLS,
    GROUP_CONTROLS,
    Control,
    Files,
    command_line,
    group_settings_of,
    settings_of,
)
from fye_pipeline.app.jobs import Waiting, Working
from fye_pipeline.emoji import pipeline as emoji_pipeline
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait import run as of_several

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
    files = Files.of(reference="my photo.png", driving="it's a video.mp4")
    values = values_with(name, value)
    fye(*shlex.split(command_line(files, values))[1:])
    assert asked == [settings_of(files, values, {})]


@pytest.mark.parametrize(
    ("name", "value"), [("assign", "1,-"), ("until", "longest"), ("frames", 12.0), ("preset", "none")]
)
def test_several_people_on_the_page_are_those_of_the_command_line(
    name: str, value: Any, fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def animate(settings: Any, *_: Any, **__: Any) -> None:
        seen.append(settings)
        raise Asked("seen")

    monkeypatch.setattr(of_several, "animate", animate)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("group.png")
    files = Files.of(reference="group.png", driving=["a.npz", "b.npz"])
    values = [value if control.name == name else control.default for control in GROUP_CONTROLS]
    fye(*shlex.split(command_line(files, values, controls=GROUP_CONTROLS))[1:])
    assert seen == [group_settings_of(files, values, {})]
    assert seen[0].watermark


def test_a_single_driver_of_several_people_needs_to_know_whom() -> None:
    defaults = [control.default for control in GROUP_CONTROLS]
    files = Files.of(reference="group.png", driving="duet.mp4")
    with pytest.raises(UserError, match="who is moved"):
        group_settings_of(files, defaults, {})
    assert group_settings_of(files, ["0,1", *defaults[1:]], {}).splits


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 7.0), ("steps", 4.0), ("guidance", 5.0), ("identity_scale", 0.5), ("expression_scale", 0), ("number", 3),
     ("interval", "two")],
)  # fmt: skip
def test_pictures_on_the_page_are_those_of_the_command_line(
    name: str, value: Any, fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Pipeline:
        session = None

        @classmethod
        def from_pretrained(cls, folder: Path, **_: Any) -> Pipeline:
            seen.append(folder)
            return cls()

        def enable_cache(self, **options: Any) -> None:
            seen.append(options)

        def __call__(self, prompt: str, **options: Any) -> Any:
            options.pop("callback_on_step_end", None)
            seen.append((prompt, options))
            raise Asked("seen")

    monkeypatch.setattr(emoji_pipeline, "EmojiPipeline", Pipeline)
    monkeypatch.setattr(pictures, "EmojiPipeline", Pipeline)
    monkeypatch.setattr(emoji_pipeline, "open_finder", lambda _: nullcontext())
    monkeypatch.setattr("fye_pipeline.animate.session.obtain_face_landmarker", lambda _: None)
    monkeypatch.chdir(tmp_path)
    files = Files.of(identity="her.png", expression=["wink.png", "smile.png"])
    controls = pictures.picture_controls(EmojiSettings())
    values = [value if control.name == name else control.default for control in controls]
    command = (*pictures.COMMAND, "--prompt", "a photo")
    line = command_line(files, values, None, controls, command=command, output=pictures.PICTURE)
    fye(*shlex.split(line)[1:])
    asked, seen[:] = list(seen), []
    session: Any = SimpleNamespace(
        device="cpu", detector=SimpleNamespace(open=lambda: SimpleNamespace(detect_all=None))
    )
    settings = pictures.picture_settings_of(files, " a photo ", values, {}, controls)
    with pytest.raises(Asked):
        pictures.draw(settings, tmp_path / "picture.png", session=session)
    assert asked
    assert asked == seen


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"prompt": ""}, "what to draw"),
        ({"seed": -1}, "seed"),
        ({"steps": 0.5}, "steps"),
        ({"guidance": -1}, "guidance"),
        ({"identity_scale": float("nan")}, "identity_scale"),
        ({"number": 1000}, "number"),
    ],
)
def test_pictures_that_cannot_be_are_refused(changed: dict[str, Any], sentence: str) -> None:
    plain: dict[str, Any] = {"prompt": "a photo", "identity": Path("a.png"), "expressions": (Path("b.png"),)}
    with pytest.raises(UserError, match=sentence):
        pictures.PictureSettings(**{**plain, **changed})


def test_what_is_not_changed_is_not_said() -> None:
    assert command_line(Files(), DEFAULTS) == "fye animate --output animated.mp4"
    line = command_line(Files.of(reference="a b.png"), values_with("regions", ["lips", "eyes"]), "follow-your-emoji")
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
        settings_of(Files.of(reference="a.png"), values_with(name, value), {})


def test_the_mark_cannot_be_left_out() -> None:
    assert "watermark" not in {control.name for control in CONTROLS}
    for name, value in changes():
        assert settings_of(Files.of(reference="a.png"), values_with(name, value), {}).watermark


def test_another_setting_is_one_line_of_the_table() -> None:
    more = (*CONTROLS, Control("crop_scale", "Crop", "range", 2.0, flag="--crop-scale", low=1, high=8))
    files = Files.of(reference="a.png")
    assert settings_of(files, [*DEFAULTS, 3.0], {}, more).crop_scale == 3
    assert "--crop-scale 3 " in command_line(files, [*DEFAULTS, 3.0], controls=more)


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
        (Working("drawing", 3, 60, None), "Drawing: 3 of 60 steps"),
        (Working("denoising", 1, 9000, 7300.0), "Making the frames: 1 of 9000 frames, about 2 h 2 min left"),
    ],
)
def test_how_a_job_stands_is_one_line(event: Any, text: str) -> None:
    assert words.sentence(event) == text
    assert text in words.progress(event)


def test_what_people_write_stays_text_on_the_page() -> None:
    assert "<img" not in words.message("no face in <img src=x onerror=alert(1)>.png", "fault")

"""Long videos from the command line: killed at any time and gone on with, of any length, in flat memory."""

from __future__ import annotations

import json
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fye_command import Fye, assert_same_pictures
from warm_processes import Command

from fye_pipeline.animate.output import Run, portrait_frames
from fye_pipeline.animate.renderer import OVERLAP, RenderContext, plan_parts
from fye_pipeline.animate.run import AnimationSession, AnimationSettings, animate
from fye_pipeline.media.video import read_frames

SMALL = ("--steps", 2, "--size", 64, "--N", 2)


@pytest.fixture(scope="module")
def session() -> Iterator[AnimationSession]:
    with AnimationSession(device="cpu") as shared:
        yield shared


def demo(model: Path, **changes: Any) -> AnimationSettings:
    """The demo that ships, small, with random weights."""
    values = {"reference_landmarks": "shipped:demo/portrait_landmarks.npz", "model": str(model), "steps": 1, "size": 64}
    return AnimationSettings.from_dict(values | changes)


def test_row_31_a_killed_video_goes_on_and_ends_as_an_unbroken_one(
    fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    output, flags = tmp_path / "broken.mp4", ("--model", random_model, "--frames", 32, *SMALL)
    work = tmp_path / "broken.mp4.work"
    with Command(tmp_path / "log", "animate", "--output", output, *flags, "--quiet") as command:
        deadline = time.monotonic() + 240
        while len(list(work.glob("denoising/clip-*"))) < 2 and not command.ended and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(command.process.pid or 0, signal.SIGSTOP)
        assert "Another run is at work" in fye.refused("animate", "--output", output, *flags, "--overwrite")  # row 30
    finished = sorted(path.name for path in work.glob("denoising/clip-*.safetensors"))
    assert finished, "killed before anything was finished: " + (tmp_path / "log").read_text()
    (tmp_path / "log").unlink()
    assert not output.exists()
    assert "pass --resume to go on" in fye.refused("animate", "--output", output, *flags)
    code, out, err = fye("animate", "--output", output, *flags, "--resume", "--json")
    assert code == 0, err
    resumed = json.loads(out)
    assert list(tmp_path.iterdir()) == [output], "the work folder and half-written videos are gone"

    code, out, err = fye("animate", "--output", tmp_path / "whole.mp4", *flags, "--json")
    assert code == 0, err
    assert_same_pictures(tmp_path / "whole.mp4", output)
    whole = json.loads(out)
    for name in ("full_calls", "predicted_calls", "flops_run", "runs"):
        assert resumed["cache"][name] == whole["cache"][name], "the report covers the clips of the killed run too"
    assert whole["cache"]["runs"] == 6, "keyframes, three gaps, two seams"


@pytest.mark.parametrize("long", ["tiles", "progressive"])
def test_row_31_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(
    fye: Fye, tmp_path: Path, stop_at: Callable[[int], list[int]], random_model: Path, long: str
) -> None:
    flags = ("--model", random_model, "--frames", 25, "--long", long, "--chunk", 24, "--compare", *SMALL)
    runs = stop_at(4)
    code, _, err = fye("animate", "--output", tmp_path / "a.mp4", *flags)
    assert code == 130
    assert "with --resume goes on" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4.work"]
    before = len(runs)
    code, _, err = fye("animate", "--output", tmp_path / "a.mp4", *flags, "--resume", "--quiet")
    assert code == 0, err
    resumed = len(runs) - before
    code, _, err = fye("animate", "--output", tmp_path / "b.mp4", *flags, "--quiet")
    assert code == 0, err
    assert len(runs) - before - resumed == resumed + 3, "the three that were finished are not made again"
    for name in ("{}.mp4", "{}_compare.mp4"):
        assert_same_pictures(tmp_path / name.format("a"), tmp_path / name.format("b"))


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("long", ["progressive", "uniform", "tiles"])
def test_row_40_a_driver_shorter_than_a_clip_works(
    tmp_path: Path, random_model: Path, session: AnimationSession, long: str, frames: int
) -> None:
    result = animate(demo(random_model, frames=frames, long=long), tmp_path / "a.mp4", session=session)
    assert result.frames == frames == len(list(read_frames(tmp_path / "a.mp4")))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


def test_videos_of_several_clips_are_made_progressively_where_the_model_can(
    tmp_path: Path, random_model: Path, session: AnimationSession
) -> None:
    videos = {}
    for long in ("auto", "progressive", "tiles", "uniform"):
        animate(demo(random_model, frames=26, long=long), tmp_path / f"{long}.mp4", session=session)
        videos[long] = np.stack(list(read_frames(tmp_path / f"{long}.mp4")))
        assert len(videos[long]) == 26
    assert np.array_equal(videos["auto"], videos["progressive"])
    assert not np.array_equal(videos["auto"], videos["tiles"])
    assert not np.array_equal(videos["uniform"], videos["tiles"])
    without: Any = SimpleNamespace(unet=SimpleNamespace(takes_frames=False))
    context = RenderContext(without, demo(random_model), *[None] * 5)  # pyright: ignore[reportArgumentType]
    assert context.long == "tiles"


def test_row_41_frames_are_let_go_when_they_are_written(tmp_path: Path) -> None:
    """However long the video, a handful of its frames is alive: none is kept by the writer or beside it."""
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def frames() -> Iterator[np.ndarray]:
        nonlocal alive, most
        for number in range(60):
            frame = np.full((64, 64, 3), number / 60, np.float32)
            weakref.finalize(frame, gone)
            alive += 1
            most = max(most, alive)
            yield frame
            del frame

    settings = AnimationSettings()
    portrait: Any = SimpleNamespace(crop=None)
    renderer: Any = SimpleNamespace(frames=frames, context=SimpleNamespace(settings=settings))
    session: Any = None
    run = Run(settings, session, tmp_path / "a.mp4", None, None, {}, tmp_path, overwrite=False, notes=[])
    run.write(portrait_frames(portrait, renderer, None), Fraction(25), (64, 64), None)
    assert most <= 2
    assert len(list(read_frames(tmp_path / "a.mp4"))) == 60


def test_row_41_parts_are_planned_without_end() -> None:
    parts = plan_parts(90_000, 240, OVERLAP)
    assert max(stop - start for start, stop in parts) == 240

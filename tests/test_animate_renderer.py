"""A job carried out: where parts lie, how they join, what all clips took, and that no more than one is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fye_pipeline import progress
from fye_pipeline.animate import run as preflight
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import OpenDriver
from fye_pipeline.animate.renderer import OVERLAP, Renderer, RunStatistics, plan_parts
from fye_pipeline.errors import UserError


@pytest.mark.parametrize("frames", [1, 23, 24, 25, 31, 32, 100, 1000])
def test_parts_cover_every_frame_and_overlap(frames: int) -> None:
    parts = plan_parts(frames, 24, 8)
    assert parts[0][0] == 0
    assert parts[-1][1] == frames
    assert all(0 < stop - start <= 24 for start, stop in parts)
    assert all(before[1] - after[0] == 8 for before, after in pairwise(parts))
    assert (len(parts) == 1) == (frames <= 24)


class Parts:
    """Stands for a job: every part has the level of its number, and decoding counts what is held."""

    long, pipe, dtype = "tiles", SimpleNamespace(unet=SimpleNamespace(dtype=torch.float32)), torch.float32

    def __init__(self, frames: int, chunk: int) -> None:
        self.settings = SimpleNamespace(chunk=chunk, steps=1, seed=0, cache=None)
        self.runs: list[tuple[int, int]] = []
        self.progress: list[tuple[str, int, int | None]] = []
        self._frames = frames
        self._asked = (0, 0)

    bent = None

    def finish(self, frame: int, made: np.ndarray) -> np.ndarray:
        return made

    def __len__(self) -> int:
        return self._frames

    def on_progress(self, stage: str, done: int, total: int | None) -> None:
        self.progress.append((stage, done, total))

    def pictures(self, start: int, stop: int) -> np.ndarray:
        self._asked = start, stop
        return np.zeros((stop - start, 1, 1, 3), np.uint8)

    def run(self, attempt: Callable[[], Tensor], *, cached: bool) -> tuple[Tensor, dict[str, Any]]:
        start, stop = self._asked
        self.runs.append(self._asked)
        return torch.full((1, 4, stop - start, 1, 1), float(len(self.runs) - 1)), {"seconds": 2.0, "report": None}

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        for index in range(latents.shape[2]):
            yield np.full((2, 2, 3), float(latents[0, 0, index]), np.float32)


def test_parts_fade_into_each_other_and_no_frame_is_lost() -> None:
    job: Any = Parts(60, 24)
    renderer = Renderer(job, cached=False)
    levels = np.array([frame[0, 0, 0] for frame in renderer.frames()])
    assert job.runs == [(0, 24), (16, 40), (32, 56), (48, 60)]
    assert len(levels) == 60
    assert (levels[:16] == 0).all()
    assert (levels[24:32] == 1).all()
    assert np.allclose(np.diff(levels[15:25]), 1 / (OVERLAP + 1))
    assert levels[-1] == 3
    assert renderer.statistics.seconds == 8.0
    assert renderer.report is None
    assert job.progress[-1] == ("decoding", 60, 60)
    denoised = [done for stage, done, _ in job.progress if stage == "denoising"]
    assert denoised == sorted(denoised)
    assert denoised[-1] == 60


def test_frames_come_before_the_next_part_is_made() -> None:
    job: Any = Parts(10_000, 24)
    frames = Renderer(job, cached=False).frames()
    for _ in range(17):
        next(frames)
    assert len(job.runs) == 2


@dataclass(frozen=True)
class Report:
    """Stands for the cache's."""

    values: dict[str, Any]


def clip_report(full: int, predicted: int, **more: Any) -> dict[str, Any]:
    return {
        "full_calls": full,
        "predicted_calls": predicted,
        "flops_full": 10 * (full + predicted),
        "flops_run": 10 * full + predicted,
        "flops_saved": 9 * predicted,
        "macs_saved": 4 * predicted,
        "seconds_full": 2.0,
        "seconds_run": 2.0 * full + 0.5 * predicted,
        "peak_bytes": 100 * full,
        "fallbacks": {},
        "unattributed": {"why": 1},
        "notes": ["the same"],
        "streams": [full],
    } | more


def test_the_report_covers_every_clip() -> None:
    statistics = RunStatistics()
    statistics.add({"seconds": 3.0, "report": clip_report(2, 4)})
    statistics.add({"seconds": 1.0, "report": clip_report(1, 1, fallbacks={"shape": 2})})
    values = statistics.report(Report({})).values
    assert statistics.seconds == 4.0
    assert (values["full_calls"], values["predicted_calls"]) == (3, 5)
    assert (values["flops_full"], values["flops_run"]) == (80, 35)
    assert values["flops_ratio"] == pytest.approx(80 / 35)
    assert values["seconds_full"] == pytest.approx(2.0)
    assert values["seconds_predicted"] == pytest.approx(0.5)
    assert values["speedup"] == pytest.approx(16 / 8.5)
    assert values["peak_bytes"] == 200
    assert (values["fallbacks"], values["unattributed"]) == ({"shape": 2}, {"why": 2})
    assert values["notes"][0] == "the same"
    assert "2 clips together" in values["notes"][1]
    assert RunStatistics().report("nothing ran") == "nothing ran"


def test_row_41_a_disk_without_room_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000))
    preflight.check_room(tmp_path / "a.mp4", preflight.video_bytes(100, (512, 512)))
    with pytest.raises(UserError, match=r"may take 14\d\d\d MB and its disk has 10 MB"):
        preflight.check_room(tmp_path / "a.mp4", preflight.video_bytes(90_000, (1024, 1024)))
    with pytest.raises(UserError, match=r"may take 4 MB, 7 MB more on the way to it and its disk has 10 MB"):
        preflight.check_room(tmp_path / "a.mp4", preflight.video_bytes(100, (512, 512)), work=7_000_000)


def test_row_41_the_disk_has_room_for_the_side_by_side_video_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portrait: Any = SimpleNamespace(crop=None)
    driver = OpenDriver(tmp_path / "driver.mp4", Fraction(25), frames=100, wanted=None)
    plain, pairs = AnimationSettings(), AnimationSettings(compare=True)
    alone = preflight.video_bytes(100, (512, 512)) + preflight.work_bytes(100, 512, detected=True)
    beside = preflight.video_bytes(100, (2048, 512)) + preflight.work_bytes(100, 512, detected=False)
    for free, settings, fits in (
        (alone - 1, plain, False),
        (alone, plain, True),
        (alone + beside - 1, pairs, False),
        (alone + beside, pairs, True),
    ):
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with nullcontext() if fits else pytest.raises(UserError, match="free space"):
            preflight.check_disk(tmp_path / "a.mp4", settings, portrait, driver, 512, 512)


def test_row_41_a_run_that_is_gone_on_with_is_estimated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with progress.collected_notes() as notes:
        told = progress.FrameProgress("denoising", frames=48, work=60, steps=10, on_progress=progress.silent)
        told.end(20)  # by an earlier process
        now[0] = 1000.0  # loading and reading
        told.begin(20)
        for step in range(2):
            now[0] += 20.0
            told.step_done(step, None, None)
    assert notes == ["denoising 48 frames takes at most about 7 minutes"], "10 steps of 40 frames, a second each"


def test_row_41_long_work_is_estimated_and_short_work_is_not() -> None:
    assert progress.time_note("denoising", 90_000, 30_000) == "denoising 90000 frames takes at most about 8.3 hours"
    assert progress.time_note("denoising", 90_000, 600) == "denoising 90000 frames takes at most about 10 minutes"
    assert progress.time_note("denoising", 24, 100) is None
    work = preflight.work_bytes(90_000, 512, detected=True)
    note = preflight.size_note(Path("a.mp4"), 90_000, 25, (1920, 1080), 10**9, work)  # pyright: ignore[reportArgumentType]
    assert note is not None
    assert "90000 frames of 1920 x 1080 (1:00:00 at 25 fps), at most 1000 MB, and 6951 MB beside it" in note
    assert preflight.size_note(Path("a.mp4"), 48, 24, (64, 64), 1, 1) is None  # pyright: ignore[reportArgumentType]

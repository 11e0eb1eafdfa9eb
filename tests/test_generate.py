"""Long videos made in parts: where the parts lie, how they join, and that no more than one is held."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fye_pipeline import animation
from fye_pipeline.animation import AnimationSettings, animate
from fye_pipeline.errors import UserError
from fye_pipeline.generate import OVERLAP, Run, Take, plan_parts
from fye_pipeline.video import probe, read_frames


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

    def __init__(self, frames: int, chunk: int) -> None:
        self.settings = SimpleNamespace(chunk=chunk)
        self.runs: list[tuple[int, int]] = []
        self.progress: list[tuple[str, int, int | None]] = []
        self._frames = frames

    def __len__(self) -> int:
        return self._frames

    def on_progress(self, stage: str, done: int, total: int | None) -> None:
        self.progress.append((stage, done, total))

    def run(self, start: int, stop: int, *, cached: bool, stage: str) -> Run:
        self.runs.append((start, stop))
        return Run(torch.full((1, 4, stop - start, 1, 1), float(len(self.runs) - 1)), 2.0, f"report {len(self.runs)}")

    def decode(self, run: Run) -> Iterator[np.ndarray]:
        for index in range(run.latents.shape[2]):
            yield np.full((2, 2, 3), float(run.latents[0, 0, index]), np.float32)


def test_parts_fade_into_each_other_and_no_frame_is_lost() -> None:
    job: Any = Parts(60, 24)
    take = Take(job, cached=True)
    levels = np.array([frame[0, 0, 0] for frame in take.frames()])
    assert job.runs == [(0, 24), (16, 40), (32, 56), (48, 60)]
    assert len(levels) == 60
    assert (levels[:16] == 0).all()
    assert (levels[24:32] == 1).all()
    assert np.allclose(np.diff(levels[15:25]), 1 / (OVERLAP + 1))
    assert levels[-1] == 3
    assert take.seconds == 8.0
    assert take.report == "report 4"
    assert job.progress[-1] == ("decoding", 60, 60)


def test_frames_come_before_the_next_part_is_made() -> None:
    job: Any = Parts(10_000, 24)
    frames = Take(job, cached=False).frames()
    for _ in range(17):
        next(frames)
    assert len(job.runs) == 2


def test_a_long_video_is_made_in_parts(tmp_path: Path, random_model: Path) -> None:
    values: dict[str, Any] = {"model": str(random_model), "steps": 1, "size": 64, "frames": 36, "chunk": 24}
    values["reference_landmarks"] = "shipped:demo/portrait_landmarks.npz"
    result = animate(AnimationSettings.from_dict(values), tmp_path / "parts.mp4")
    assert result.frames == len(list(read_frames(tmp_path / "parts.mp4")))
    assert probe(tmp_path / "parts.mp4").fps == result.fps


def test_row_41_a_disk_without_room_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(animation.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000))
    animation.check_room(tmp_path / "a.mp4", 100, (512, 512))
    with pytest.raises(UserError, match=r"may take 14\d\d\d MB and its disk has 10 MB"):
        animation.check_room(tmp_path / "a.mp4", 90_000, (1024, 1024))

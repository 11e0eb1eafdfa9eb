"""How much of the code a reader has to follow for one call, and for one animation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fye_command import Fye
from house_measure import measure
from ticache_models import ddim, make_inputs, make_unet

import ticache


def test_one_predicted_call_runs_through_8_files_and_50_functions() -> None:
    unet, scheduler = make_unet(), ddim()
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(9)

    def call(timestep: torch.Tensor) -> Any:
        return unet(sample, timestep, **conditions)

    with ticache.apply(unet, N=3, order=2, scheduler=scheduler, schedule=[0, 3, 6]) as session, torch.no_grad():
        for timestep in scheduler.timesteps[:7]:
            call(timestep)
        measured = measure(lambda: call(scheduler.timesteps[7]), "ticache")
        assert session.report().to_dict()["streams"][0]["predicted"][-1] == 7
    assert len(measured.files) <= 8, sorted(measured.files)
    assert len(measured.functions) <= 50, sorted(measured.functions)
    assert not measured.mutual


def test_an_animation_runs_through_25_files_and_none_call_each_other_both_ways(
    fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    arguments = ("animate", "--model", random_model, "--output", tmp_path / "a.mp4", "--frames", 4, "--steps", 2)
    codes: list[int] = []
    measured = measure(lambda: codes.append(fye(*arguments, "--size", 64)[0]), "fye_pipeline", "ticache")
    assert codes == [0]
    ours = {file for file in measured.files if file.startswith("fye_pipeline/")}
    assert len(ours) <= 25, sorted(ours)
    assert not measured.mutual

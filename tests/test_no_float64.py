"""On a device without float64, as Apple GPUs: the whole animator and the cache, on a stand-in for such a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from no_float64 import DEVICE, apple_gpu
from test_pipeline import FRAMES, SIDE, build, run

import ticache
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.run import animate
from fye_pipeline.animate.session import AnimationSession


def test_the_stand_in_refuses_float64_and_mixed_places() -> None:
    with apple_gpu() as device:
        there = torch.ones(3).to(device)
        assert (there * 2).device == DEVICE
        assert (there * 2).tolist() == [2.0, 2.0, 2.0]
        for wrong in (there.double, lambda: torch.tensor([1.0], dtype=torch.float64, device=device)):
            with pytest.raises(TypeError, match=r"no torch\.float64 on this device"):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            torch.add(there, torch.ones(3))


def test_the_pipeline_and_its_cache_need_no_float64_on_the_device() -> None:
    """With a region as numpy gives it, in float64."""
    pipe = build()
    region = np.ones((FRAMES, SIDE, SIDE))
    with ticache.apply(pipe, N=2, order=1), torch.no_grad():
        expected = run(pipe, num_inference_steps=3, region=region)
    with apple_gpu() as device, torch.no_grad():
        pipe.to(device)
        with ticache.apply(pipe, N=2, order=1) as session:
            latents = run(pipe, num_inference_steps=3, region=region)
            report = session.report()
        assert latents.device == DEVICE
        torch.testing.assert_close(latents.cpu(), expected, atol=1e-4, rtol=1e-4)
    assert report.to_dict()["full_calls"] == 2


def test_a_portrait_is_animated_without_float64_on_the_device(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AnimationSettings(model=random_model, frames=2, steps=2)
    monkeypatch.setattr("fye_pipeline.animate.session.choose_device", torch.device)
    with apple_gpu() as device, AnimationSession(device=str(device)) as session:
        assert session.device == DEVICE
        result = animate(settings, tmp_path / "a.mp4", session=session)
    assert result.frames == 2

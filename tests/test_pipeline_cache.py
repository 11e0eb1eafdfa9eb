"""The pipeline under `ticache`: exact where it must be, fewer full calls, one region per window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from test_pipeline import FRAMES, build, run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ticache
from fye_pipeline import FollowYourEmojiPipeline, presets

STEPS = 6
LONG: list[dict[str, Any]] = [{}, {"long": "uniform", "window": 3}, {"long": "tiles", "window": 4, "overlap": 2}]


@pytest.fixture(scope="module")
def pipe() -> FollowYourEmojiPipeline:
    return build()


def region() -> np.ndarray:
    """A mask per frame whose first pixel tells the frame."""
    masks = np.zeros((FRAMES, 8, 8), np.float32)
    masks[:, 0, 0] = np.arange(FRAMES) / 8
    return masks


def first_frames(seen: list[Tensor]) -> list[list[int]]:
    return [[round(8 * value) for value in masks[..., 0, 0].flatten().tolist()] for masks in seen]


@pytest.mark.parametrize("options", LONG)
def test_every_step_full_is_exact(pipe: FollowYourEmojiPipeline, options: dict[str, Any]) -> None:
    plain = run(pipe, num_inference_steps=STEPS, **options)
    pipe.enable_cache(N=1, order=2)
    try:
        assert torch.equal(run(pipe, num_inference_steps=STEPS, **options), plain)
    finally:
        pipe.disable_cache()


@pytest.mark.parametrize(
    ("options", "cut"), [(LONG[0], "outer"), (LONG[0], "output"), (LONG[1], "outer"), (LONG[2], "output")]
)
def test_predicted_steps_are_close_and_leave_no_trace(
    pipe: FollowYourEmojiPipeline, options: dict[str, Any], cut: str
) -> None:
    plain = run(pipe, num_inference_steps=STEPS, **options)
    ran = []  # the deepest convolution runs at full steps only
    deepest = pipe.unet.get_submodule("mid_block.resnets.0.conv1")
    hook = deepest.register_forward_pre_hook(lambda module, args: ran.append(1))
    pipe.enable_cache(N=3, order=2, cut=cut)
    try:
        cached = run(pipe, num_inference_steps=STEPS, region=region(), **options)
    finally:
        pipe.disable_cache()
        hook.remove()
    assert len(ran) == STEPS // 3 * (2 if options else 1)  # the long ways have two windows here, each a stream
    assert 1e-5 < (cached - plain).square().mean().sqrt() < 0.1
    assert torch.equal(run(pipe, num_inference_steps=STEPS, **options), plain)


def test_apply_and_remove_work_on_the_pipeline_itself(pipe: FollowYourEmojiPipeline) -> None:
    plain = run(pipe, num_inference_steps=STEPS)
    with ticache.apply(pipe, N=3, order=2):
        assert not torch.equal(run(pipe, num_inference_steps=STEPS), plain)
    assert torch.equal(run(pipe, num_inference_steps=STEPS), plain)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(LONG[0], [[0, 1, 2, 3, 4]]), (LONG[1], [[0, 1, 2], [3, 4, 0]]), (LONG[2], [[0, 1, 2, 3], [1, 2, 3, 4]])],
)
def test_every_window_has_its_own_region(
    pipe: FollowYourEmojiPipeline, options: dict[str, Any], expected: list[list[int]]
) -> None:
    session = pipe.enable_cache(preset="paper", N=3, order=2)
    seen: list[Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(torch.as_tensor(session.region)))
    try:
        run(pipe, region=region(), **options)
    finally:
        hook.remove()
        pipe.disable_cache()
    assert first_frames(seen) == expected * (len(seen) // len(expected))


def test_a_run_without_region_neither_keeps_the_last_nor_takes_the_users(pipe: FollowYourEmojiPipeline) -> None:
    session = pipe.enable_cache(N=3, order=1)
    try:
        run(pipe, region=region())
        assert session.region is not None
        run(pipe)
        assert session.region is None
        session.region = torch.ones(8, 8)
        run(pipe)
        assert session.region is not None
    finally:
        pipe.disable_cache()


def test_disabling_what_is_not_enabled_does_nothing(pipe: FollowYourEmojiPipeline) -> None:
    pipe.disable_cache()
    pipe.disable_cache()


def test_an_uncached_run_costs_the_same_whatever_the_cut(pipe: FollowYourEmojiPipeline) -> None:
    """The one probing call that a class outside of diffusers gets counts for nothing."""
    counted = set()
    for cut in ("outer", "output", "branches"):
        session = pipe.enable_cache(N=3, order=2, cut=cut)
        try:
            run(pipe, num_inference_steps=STEPS)
            counted.add(session.report().to_dict()["flops_full"])
        finally:
            pipe.disable_cache()
    assert len(counted) == 1


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_operations_are_those_that_torch_counts_also_over_reference_keys(
    pipe: FollowYourEmojiPipeline, guidance: float
) -> None:
    counts: list[int] = []

    def count(unet: Any, args: Any, kwargs: Any, _output: Any) -> None:
        if not counts:
            counts.append(0)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no CPU kernel
                unet.forward(*args, **kwargs)
            counts[0] = counter.get_total_flops()

    hook = pipe.unet.register_forward_hook(count, with_kwargs=True)
    run(pipe, num_inference_steps=STEPS, guidance_scale=guidance)
    hook.remove()
    session = pipe.enable_cache(N=3, order=1)
    try:
        run(pipe, num_inference_steps=STEPS, guidance_scale=guidance)
        assert session.report().to_dict()["flops_full"] == pytest.approx(STEPS * counts[0], rel=1e-6)
    finally:
        pipe.disable_cache()


def test_a_pipeline_built_in_memory_reads_no_presets_of_the_working_directory(
    pipe: FollowYourEmojiPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    try:
        assert pipe.enable_cache(preset="fast").active
    finally:
        pipe.disable_cache()


@pytest.mark.parametrize("options", LONG)
def test_a_recorded_run_is_exact_and_windows_of_the_next_are_cached(
    pipe: FollowYourEmojiPipeline, options: dict[str, Any]
) -> None:
    plain = run(pipe, num_inference_steps=STEPS, **options)
    session = pipe.enable_cache(N=3, schedule="auto")
    try:
        assert torch.equal(run(pipe, num_inference_steps=STEPS, **options), plain)
        run(pipe, num_inference_steps=STEPS, **options)
        assert session.report().to_dict()["full_calls"] == STEPS // 3 * (2 if options else 1)
    finally:
        pipe.disable_cache()


def test_a_calibration_in_the_folder_caches_the_first_run_while_the_weights_are_those_recorded(
    pipe: FollowYourEmojiPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    loaded = FollowYourEmojiPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    with loaded.enable_cache(N=3, schedule="auto") as session:
        run(loaded, num_inference_steps=STEPS)
        assert session.calibration is not None
        presets.write_calibration(folder, session.calibration.to_dict(), {"clips": 1})
    every: tuple[dict[str, Any], ...] = (
        {},
        {"N": 3, "order": 2, "cut": "outer"},
        {"preset": "balanced"},
        {"schedule": "auto"},
    )
    for options in every:
        with loaded.enable_cache(**options) as session:
            run(loaded, num_inference_steps=STEPS)
            assert session.report().to_dict()["full_calls"] == STEPS // 3
            assert "are from a recording" in repr(session), options
    others: tuple[dict[str, Any], ...] = (
        *({"schedule": "late"}, {"cut": "output"}, {"forecaster": "taylor"}, {"preset": "paper", "N": 3}),
    )
    for options in others:
        assert loaded.enable_cache(**options).config.schedule != "auto"
    rounded = FollowYourEmojiPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert rounded.enable_cache(N=3).config.calibration is not None  # the files are the same
    scheduler = loaded.scheduler
    loaded.scheduler = EulerDiscreteScheduler()
    assert loaded.enable_cache(N=3).config.schedule == "spread"
    loaded.scheduler = scheduler
    assert presets.own_schedule({"N": 3}, folder) is not None
    weights = next(file for file in (folder / "unet").iterdir() if file.suffix == ".safetensors")
    weights.write_bytes(weights.read_bytes() + b" ")
    presets._tell_once.cache_clear()
    with caplog.at_level("WARNING", logger="fye"):
        assert loaded.enable_cache(N=3).config.schedule == "spread"
    assert "was recorded on other weights and is not used" in caplog.text
    assert presets.own_schedule({"N": 3}, folder) is None
    loaded.disable_cache()

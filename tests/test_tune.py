"""`ticache.tune` on tiny UNets: what it returns, keeps, resumes, and where its configs apply."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from ticache_models import Recorder, ddim, denoise, make_inputs, make_unet
from torch import Tensor, nn

import ticache
from ticache.best_steps import Choice
from ticache.calibration import Recording
from ticache.provenance import TuningCheck, model_identity
from ticache.tuning.metrics import as_tensor, psnr
from ticache.tuning.trials import digest_of

STEPS = 8


class Subject:
    """A UNet in a loop of its own; `run` counts its calls and can break at one of them."""

    def __init__(self) -> None:
        self.unet: nn.Module = make_unet(block_out_channels=(8, 16))
        with torch.no_grad():  # random weights alone make a run that grows without bound
            for parameter in self.unet.get_submodule("conv_out").parameters():
                parameter.mul_(0.2)
        self.scheduler = ddim()
        self.runs = 0
        self.break_at: tuple[int, type[BaseException]] | None = None

    def run(self, sample: Tensor, tokens: Tensor, steps: int = STEPS) -> Tensor:
        self.runs += 1
        if self.break_at is not None and self.runs == self.break_at[0]:
            raise self.break_at[1]
        return denoise(self.unet, self.scheduler, sample, {"encoder_hidden_states": tokens}, steps=steps)

    def tune(self, **options: Any) -> ticache.CacheConfig:
        given: dict[str, Any] = {
            "run": self.run,
            "calls": [call(seed) for seed in range(4)],
            "scheduler": self.scheduler,
            "orders": (2,),
            "cuts": ("outer",),
            "trials": 6,
            "progress": False,
        }
        return ticache.tune(self.unet, **given | options)


def call(seed: int, **more: Any) -> dict[str, Any]:
    sample, conditions = make_inputs(batch=1, size=8, seed=seed + 1)
    return {"sample": sample, "tokens": conditions["encoder_hidden_states"], **more}


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.fixture(scope="module")
def tuned() -> ticache.CacheConfig:
    return Subject().tune(full_steps=3)


def test_the_config_says_where_it_comes_from(tuned: ticache.CacheConfig) -> None:
    assert tuned.steps is not None
    assert (len(tuned.steps), tuned.schedule, tuned.N) == (3, "steps", 3)
    found = tuned.provenance
    assert found is not None
    assert found.model == model_identity(Subject().unet)
    assert found.scheduler is not None
    assert (found.scheduler["class"], found.scheduler["settings"]["steps_offset"]) == ("DDIMScheduler", 1)
    assert (found.num_steps, found.size, found.metric, found.goal) == (STEPS, [1, 4, 8, 8], "psnr", {"full_steps": 3})
    figures = found.figures
    assert (figures["calibration_calls"], figures["check_calls"]) == (2, 2)
    assert figures["tuned"]["calibration"] >= figures["late"]["calibration"]
    assert figures["flops_ratio"] > 1
    assert "unseen calls" in str(found)
    assert found.versions["torch"] == torch.__version__


def test_figures_are_those_of_a_plain_comparison(tuned: ticache.CacheConfig) -> None:
    """Search and split left out: the mean over all calls, of both halves, is what anyone measures."""
    subject = Subject()
    values = []
    for each in (call(seed) for seed in range(4)):
        plain = subject.run(**each)
        with ticache.apply(subject.unet, tuned, scheduler=subject.scheduler):
            error = (subject.run(**each) - plain).double().square().mean()
        values.append(float(-10 * error.log10()))
    assert tuned.provenance is not None
    figures = tuned.provenance.figures["tuned"]
    assert sum(values) / 4 == pytest.approx((figures["calibration"] + figures["check"]) / 2, abs=2e-3)


def test_json_there_and_back(tuned: ticache.CacheConfig) -> None:
    again = ticache.CacheConfig.from_json(tuned.to_json())
    assert again == tuned
    assert hash(again) == hash(tuned)
    assert tuned.replaced(dtype=torch.float16).provenance == tuned.provenance
    assert tuned.replaced(steps=(0, 1, 2)).provenance is None
    broken = json.loads(tuned.to_json())
    del broken["provenance"]["figures"]
    with pytest.raises(ValueError, match="provenance must be an object with"):
        ticache.CacheConfig.from_json(json.dumps(broken))


def test_one_seed_one_result_and_nothing_is_left_applied(subject: Subject, tuned: ticache.CacheConfig) -> None:
    plain = subject.run(**call(0))
    assert subject.tune(full_steps=3).to_json() == tuned.to_json()
    ran = Recorder(subject.unet.get_submodule("mid_block.resnets.0.conv1"))
    assert torch.equal(subject.run(**call(0)), plain)
    assert len(ran.outputs) == STEPS


@pytest.mark.parametrize("break_at", [2, 9])
def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path, tuned: ticache.CacheConfig, break_at: int) -> None:
    journal = tmp_path / "journal.jsonl"
    killed = Subject()
    killed.break_at = (break_at, MemoryError)
    with pytest.raises(MemoryError):
        killed.tune(full_steps=3, journal=journal)
    with open(journal, "a", encoding="utf-8") as file:
        file.write('{"key": "cut o')  # as a kill leaves it
    again = Subject()
    assert again.tune(full_steps=3, journal=journal).to_json() == tuned.to_json()
    done = Subject()
    assert done.tune(full_steps=3, journal=journal).to_json() == tuned.to_json()
    assert done.runs == 2  # the calibration calls, to record them; everything else is in the journal
    assert again.runs >= done.runs


def test_a_journal_serves_its_own_search_only(tmp_path: Path, subject: Subject) -> None:
    journal = tmp_path / "journal.jsonl"
    subject.tune(full_steps=3, journal=journal, trials=1)
    with pytest.raises(ValueError, match="belongs to other calls, another model or metric"):
        subject.tune(full_steps=3, journal=journal, trials=1, calls=[call(7), call(8)])
    journal.write_text("a letter\n")
    with pytest.raises(ValueError, match="or is no journal"):
        subject.tune(full_steps=3, journal=journal)


def test_uncached_runs_are_made_once(subject: Subject) -> None:
    uncached: list[int] = []
    config = subject.tune(
        full_steps=3, trials=3, progress=lambda at: uncached.append(at.done) if at.stage == "uncached" else 0
    )
    assert uncached == [0, 1, 2, 3]
    assert config.provenance is not None
    trials = config.provenance.trials
    assert trials == 3
    # trials on two calls each, two checks of two, and the late schedule beside the best
    assert subject.runs <= 4 + 2 * trials + 2 * 2 + 2


def recording_of(subject: Subject, *seeds: int) -> Recording:
    """The mean recording of uncached runs."""
    found: list[Recording] = []
    for seed in seeds:
        with ticache.apply(subject.unet, schedule="auto", scheduler=subject.scheduler) as session:
            subject.run(**call(seed))
            assert session.calibration is not None
            found += session.calibration.recordings.values()
    return reduce(Recording.merged, found)


def chosen(recording: Recording, count: int) -> Choice:
    settings: dict[str, Any] = {"coordinates": range(STEPS), "timesteps": recording.timesteps}
    return recording.choose(count, guidance=None, orders=(2,), forecasters=("newton",), **settings)


def test_without_a_trial_the_recording_chooses(subject: Subject) -> None:
    config = subject.tune(full_steps=3, trials=0, calls=[call(0), call(1)], check=[call(2)])
    assert subject.runs == 2  # the calibration calls, uncached
    assert config.provenance is None
    best = chosen(recording_of(subject, 0, 1), 3)
    assert (config.steps, config.order, config.forecaster) == (best.steps, best.order, best.forecaster)


@pytest.mark.parametrize("wanted", [3, 6, 7])
def test_the_recording_tells_where_to_look_for_a_target(tmp_path: Path, subject: Subject, wanted: int) -> None:
    """After one trial at two full steps the next is at as many as the recorded error says reach the target."""
    calls: dict[str, Any] = {"calls": [call(0), call(1)], "check": [call(2)]}
    recording = recording_of(subject, 0, 1)
    error = {count: chosen(recording, count).error for count in (2, wanted - 1, wanted)}
    first = subject.tune(full_steps=2, trials=1, **calls)
    assert first.provenance is not None
    between = (error[wanted - 1] * error[wanted]) ** 0.5
    target = first.provenance.figures["tuned"]["calibration"] + 10 * math.log10(error[2] / between)
    subject.tune(target_psnr=target, trials=2, journal=tmp_path / "journal", **calls)
    tried = [json.loads(json.loads(line)["key"]) for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    counts = [len(steps) for kind, steps, *_ in tried if kind == "calibration"]
    assert counts[:2] == [2, wanted]


def test_the_search_tries_what_was_recorded_before_others(subject: Subject) -> None:
    chosen = subject.tune(full_steps=3, trials=0)
    tried: list[Any] = []
    subject.tune(full_steps=3, trials=2, progress=lambda at: tried.append(at) if at.stage == "trial" else None)
    best = subject.tune(full_steps=3, trials=2)
    assert tried[0].candidate.steps == chosen.steps
    assert len(tried) == 2
    assert best.provenance is not None
    assert best.provenance.trials <= 2


def test_ctrl_c_returns_the_best_so_far(subject: Subject) -> None:
    shown: list[Any] = []
    subject.break_at = (9, KeyboardInterrupt)
    config = subject.tune(full_steps=3, progress=shown.append)
    assert config.provenance is not None
    assert config.provenance.figures["tuned"]["check"] is None
    assert config.provenance.notes[0] == "interrupted: this is the best so far"
    assert config.steps == [at.candidate.steps for at in shown if at.stage == "trial"][-1]
    subject.runs, subject.break_at = 0, (2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):  # nothing was tried yet
        subject.tune(full_steps=3)
    assert subject.run(**call(0)).isfinite().all()


def test_a_target_is_reached_with_the_fewest_full_steps(subject: Subject, tuned: ticache.CacheConfig) -> None:
    assert tuned.provenance is not None
    target = tuned.provenance.figures["late"]["calibration"] - 0.01
    config = subject.tune(target_psnr=target, trials=12)
    assert config.steps is not None
    assert config.provenance is not None
    figures = config.provenance.figures
    assert len(config.steps) <= 3
    assert figures["tuned"]["calibration"] >= target
    if len(config.steps) > 1:
        assert figures["fewer"]["calibration"] < target


def test_a_target_beyond_every_prediction_is_every_step(subject: Subject) -> None:
    config = subject.tune(target_psnr=101, trials=8, calls=[call(0), call(1)])
    assert config.steps == tuple(range(STEPS))
    assert config.provenance is not None
    assert config.provenance.figures["tuned"] == {"calibration": 100.0, "check": 100.0}
    assert "the check falls 1.00 short of the target 101" in config.provenance.notes


def test_every_choice_and_metric_is_open(subject: Subject) -> None:
    region = torch.zeros(8, 8)
    region[2:5, 2:5] = 1
    seen: list[tuple[int, ...]] = []

    def nearness(result: Tensor, uncached: Tensor, mask: Tensor) -> float:
        seen.append(tuple(mask.shape))
        return -float((result - uncached).abs().max())

    config = subject.tune(
        full_steps=4,
        metric=nearness,
        region=region,
        orders=(1, 0),
        cuts=("output", "branches"),
        forecasters=("newton", "reuse"),
        trials=12,
        calls=[call(0)],
        check=[call(9)],
    )
    assert config.provenance is not None
    assert config.provenance.metric.endswith("nearness")
    assert config.provenance.region
    assert config.provenance.figures["calibration_calls"] == 1
    assert set(seen) == {(8, 8)}
    assert config.cut == "branches"  # the dearest is the nearest


def test_noise_that_the_caller_gives_is_wound_back(subject: Subject) -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()

    def noisy(generator: torch.Generator, tokens: Tensor) -> Tensor:
        sample = torch.randn(1, 4, 8, 8, generator=generator) + 0.1 * torch.randn(1, 4, 8, 8)
        return subject.run(sample, tokens)

    tokens = call(0)["tokens"]
    state = torch.get_rng_state()
    config = subject.tune(run=noisy, calls=[{"generator": generator, "tokens": tokens}], full_steps=STEPS)
    assert config.provenance is not None
    assert config.provenance.figures["tuned"]["calibration"] == 100  # every step full, the same noise: equal
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass one of target_psnr and full_steps"),
        ({"full_steps": 3, "target_psnr": 40}, "pass one of target_psnr and full_steps"),
        ({"full_steps": 0}, "full_steps must be an int >= 1, got 0"),
        ({"full_steps": STEPS + 1}, "full_steps must be at most the run's 8 steps, got 9"),
        ({"full_steps": 3, "trials": -1}, "trials must be an int >= 0, got -1"),
        ({"target_psnr": 40, "trials": 0}, "trials=0 goes with full_steps"),
        ({"full_steps": 3, "minutes": 0}, "minutes must be > 0, got 0"),
        ({"full_steps": 3, "calls": []}, "calls must be a list of mappings"),
        ({"full_steps": 3, "run": None}, "run= is needed for a bare UNet"),
        ({"full_steps": 3, "cuts": ("inner",)}, "cut must be one of"),
        ({"full_steps": 3, "orders": ()}, "orders must name at least one"),
        ({"full_steps": 3, "region": [None]}, "region must be one mask or one for each of 4 calls, got 1"),
        ({"full_steps": 3, "run": lambda **_: torch.zeros(1)}, "run made no call of the UNet"),
        ({"full_steps": 3, "calls": [call(0), call(1, steps=5)]}, "all calls must have the same number of steps"),
    ],
)
def test_what_cannot_be_is_refused(subject: Subject, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subject.tune(**options)
    assert ticache.apply(subject.unet, num_steps=3).active  # nothing half-applied is in the way


def applied(subject: Subject, config: ticache.CacheConfig, steps: int, **options: Any) -> list[int]:
    with ticache.apply(subject.unet, config, scheduler=subject.scheduler, **options) as session:
        subject.run(**call(0, steps=steps))
        (stream,) = session.report().to_dict()["streams"]
        return stream["full"]


def test_under_the_same_conditions_it_applies_without_a_word(subject: Subject, tuned: ticache.CacheConfig) -> None:
    assert tuned.steps is not None
    assert applied(subject, tuned, STEPS, on_mismatch="error") == list(tuned.steps)


def test_another_number_of_steps_is_mapped_or_refused(subject: Subject, tuned: ticache.CacheConfig) -> None:
    config = tuned.replaced(steps=(0, 3, 7), provenance=tuned.provenance)
    with pytest.warns(UserWarning, match="tuned for 8 steps, not 15: full steps are 0, 6, 14"):
        assert applied(subject, config, 15) == [0, 6, 14]
    with pytest.raises(ValueError, match="tuned for 8 steps"):
        applied(subject, config, 15, on_mismatch="error")
    assert applied(subject, config, STEPS) == [0, 3, 7]
    with pytest.raises(ValueError, match="on_mismatch must be one of 'map', 'error', got 'guess'"):
        applied(subject, config, STEPS, on_mismatch="guess")


def other_scheduler(subject: Subject) -> None:
    subject.scheduler = DDPMScheduler()


def other_settings(subject: Subject) -> None:
    subject.scheduler = type(subject.scheduler).from_config(subject.scheduler.config, timestep_spacing="trailing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_scheduler, "tuned with DDIMScheduler, not DDPMScheduler"),
        (other_settings, r"timestep_spacing='leading' \(here 'trailing'\)"),
    ],
)
def test_another_scheduler_is_told_or_refused(
    subject: Subject, tuned: ticache.CacheConfig, change: Callable[[Subject], None], message: str
) -> None:
    change(subject)
    with pytest.raises(ValueError, match=message):
        applied(subject, tuned, STEPS, on_mismatch="error")
    with pytest.warns(UserWarning, match=message):
        assert applied(subject, tuned, STEPS) == list(tuned.steps or ())


def test_results_of_every_kind_are_compared_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)
    wanted = torch.tensor(pixels).movedim(-1, 1) / 255
    pictures = [Image.fromarray(each) for each in pixels]
    for result in (pixels, pixels / 255, pictures, SimpleNamespace(frames=[pictures]), (wanted,)):
        assert torch.allclose(as_tensor(result).reshape(wanted.shape), wanted, atol=1e-6)
    with pytest.raises(TypeError, match="run must return pictures, latents or a pipeline's output, got dict"):
        as_tensor({})


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 3, 4, 4), (1, 4, 2, 4, 4)])
def test_a_region_weighs_the_error(shape: tuple[int, ...]) -> None:
    first = torch.zeros(shape)
    second = torch.zeros(shape)
    second[..., 0, 0] = 0.1
    second[..., 3, 3] = 0.5
    mask = torch.zeros(8, 8)
    mask[:2, :2] = 1
    assert psnr(second, first, mask) == pytest.approx(20, abs=1e-4)
    assert psnr(first, first, mask) == 100
    assert psnr(second, first) == pytest.approx(-10 * np.log10((0.01 + 0.25) / 16), abs=1e-4)
    with pytest.raises(ValueError, match="region has 5 masks"):
        psnr(second, first, mask.expand(5, 8, 8))


@pytest.mark.parametrize("frames_first", [True, False])
def test_a_mask_a_frame_weighs_the_frames_of_a_video(frames_first: bool) -> None:
    """Latents of four channels, as SVD has them [B, F, C, H, W], or AnimateDiff [B, C, F, H, W]."""
    error = torch.zeros(1, 2, 4, 8, 8)
    error[:, 1] = 0.5
    error[:, 0] = 0.1
    if not frames_first:
        error = error.transpose(1, 2)
    mask = torch.zeros(2, 8, 8)
    mask[1] = 1
    assert psnr(error, torch.zeros_like(error), mask) == pytest.approx(6.0206, abs=1e-3)


def test_frames_first_latents_of_as_many_frames_as_channels() -> None:
    error = torch.zeros(1, 4, 4, 8, 8)
    error[:, 0] = 0.5
    mask = torch.zeros(4, 8, 8)
    mask[0] = 1
    assert psnr(error, torch.zeros_like(error), mask) == pytest.approx(6.0206, abs=1e-3)


def test_a_config_is_held_to_the_architecture_without_reading_weights() -> None:
    unet: Any = Subject().unet
    provenance = SimpleNamespace(model=model_identity(unet))
    origin = TuningCheck(provenance, on_mismatch="error")  # pyright: ignore[reportArgumentType]
    with patch.object(type(unet), "state_dict", side_effect=AssertionError("weights were read")):
        origin.check_model(unet)
    unet.register_to_config(sample_size=99)
    with pytest.raises(ValueError, match="of another configuration"):
        origin.check_model(unet)


def test_arguments_are_told_apart_by_content() -> None:
    assert digest_of({"a": torch.ones(2), "b": "x"}) == digest_of({"b": "x", "a": torch.ones(2)})
    told = [
        {"a": torch.ones(2)},
        {"a": torch.zeros(2)},
        {"a": np.ones(2)},
        {"a": 1},
        {"a": [1, 1]},
        {"b": 1},
        {"a": "1"},
    ]
    told.append({"a": torch.Generator().manual_seed(3)})
    assert len({digest_of(each) for each in told}) == len(told)

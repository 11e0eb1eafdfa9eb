"""`schedule="auto"`: run 1 in full and recorded, later runs predicted as it says; kinds of runs do not mix."""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from test_pipelines import PROMPT, controlnet, stable_diffusion, vae
from test_pipelines import picture as drawing
from test_streams import guided
from ticache_models import ddim, denoise, make_inputs, make_unet
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ticache
from ticache.config import CacheConfig
from ticache.feature_cache import FeatureCache

pytestmark = pytest.mark.filterwarnings(  # of diffusers' samplers that work on sigmas
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
STEPS = 12
FOLDER = str(Path(ticache.__file__).parent)


def loop(unet: Any, scheduler: Any = None, *, steps: int = STEPS, size: int = 8, seed: int = 1) -> Tensor:
    sample, conditions = make_inputs(size=size, seed=seed)
    return denoise(unet, scheduler or ddim(), sample, conditions, steps=steps)


def recorded(unet: Any, scheduler: Any) -> Any:
    """What `schedule="auto"` learns from a run."""
    with ticache.apply(unet, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler)
        return session.calibration


def full_calls(session: ticache.Session) -> int:
    return session.report().to_dict()["full_calls"]


def steps_of(session: ticache.Session) -> list[int]:
    return session.report().to_dict()["streams"][0]["full"]


@pytest.mark.parametrize("N", [2, 3, 5])
def test_the_first_run_is_exact_and_the_next_has_as_many_full_calls_as_asked(N: int) -> None:
    unet, scheduler = make_unet(), ddim()
    plain = loop(unet, scheduler)
    with ticache.apply(unet, N=N, schedule="auto", scheduler=scheduler) as session:
        assert session.calibration is None
        assert torch.equal(loop(unet, scheduler), plain)
        assert full_calls(session) == STEPS
        assert "recorded in full; the next is cached" in repr(session)
        assert "recorded in full; the next is cached" in str(session.report())
        assert session.calibration is not None
        for _ in range(2):
            assert not torch.equal(loop(unet, scheduler, seed=2), plain)
            assert full_calls(session) == -(-STEPS // N)
            assert "are from a recording" in repr(session)
        assert session.report().to_dict()["streams"]


def test_a_calibration_starts_cached_in_another_process() -> None:
    unet, scheduler = make_unet(), ddim()
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler)
        cached, chosen = loop(unet, scheduler), steps_of(session)
        assert session.calibration is not None
        text = session.calibration.to_json()
    for calibration in (text, session.calibration):
        again = make_unet()
        with ticache.apply(again, N=3, calibration=calibration, scheduler=scheduler) as session:
            torch.testing.assert_close(loop(again, scheduler), cached)
            assert steps_of(session) == chosen
            assert CacheConfig.from_json(session.config.to_json()) == session.config


def test_a_calibration_of_another_model_is_told_and_not_used() -> None:
    unet, other, scheduler = make_unet(), make_unet(block_out_channels=(32, 64)), ddim()
    calibration = recorded(unet, scheduler)
    with pytest.warns(UserWarning, match="of another configuration and is not used"):
        session = ticache.apply(other, calibration=calibration, scheduler=scheduler)
    with session:
        loop(other, scheduler)
        assert full_calls(session) == STEPS


def test_a_calibration_of_other_weights_is_told_and_not_used() -> None:
    unet, scheduler = make_unet(), ddim()
    calibration = recorded(unet, scheduler)
    with torch.no_grad():
        unet.get_parameter("conv_out.weight").mul_(1.01)
    with pytest.warns(UserWarning, match="with other weights or in another precision and is not used"):
        session = ticache.apply(unet, calibration=calibration, scheduler=scheduler)
    with session:
        loop(unet, scheduler)
        assert full_calls(session) == STEPS


def test_weights_that_cannot_be_read_are_taken_at_their_word() -> None:
    unet, scheduler = make_unet(), ddim()
    calibration = recorded(unet, scheduler)
    with ticache.apply(unet.to("meta"), calibration=calibration, scheduler=scheduler) as session:
        assert session.config.calibration == calibration


def test_another_scheduler_is_recorded_and_another_number_of_steps_mapped() -> None:
    unet, scheduler = make_unet(), ddim()
    euler = diffusers.EulerDiscreteScheduler()
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler)
        loop(unet, scheduler, steps=20)
        assert full_calls(session) == 7
        assert "a recording of 12 steps, mapped to 20" in repr(session)
        text = session.calibration.to_json()  # pyright: ignore[reportOptionalMemberAccess]
    with ticache.apply(unet, N=3, calibration=text, scheduler=euler) as session:
        loop(unet, euler)
        assert full_calls(session) == STEPS
        loop(unet, euler)
        assert full_calls(session) == 4


def test_two_sizes_share_a_choice_and_never_features() -> None:
    unet, scheduler = make_unet(), ddim()
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler)
        first = loop(unet, scheduler)
        other = loop(unet, scheduler, size=16)
        assert full_calls(session) == 4
        assert torch.equal(loop(unet, scheduler), first)
        assert torch.equal(loop(unet, scheduler, size=16), other)


def test_two_models_record_apart() -> None:
    one, two, scheduler = make_unet(), make_unet(), ddim()
    with (
        ticache.apply(one, schedule="auto", scheduler=scheduler) as first,
        ticache.apply(two, schedule="auto", scheduler=scheduler) as second,
    ):
        loop(one, scheduler)
        assert second.calibration is None
        loop(two, scheduler)
        assert full_calls(second) == STEPS
        loop(one, scheduler)
        assert full_calls(first) == 4


def test_an_interrupted_run_leaves_no_recording() -> None:
    unet, scheduler = make_unet(), ddim()
    plain = loop(unet, scheduler)

    def stop(step: int, _output: Tensor) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        sample, conditions = make_inputs(seed=3)
        with pytest.raises(KeyboardInterrupt):
            denoise(unet, scheduler, sample, conditions, steps=STEPS, each=stop)
        assert session.calibration is None
        assert torch.equal(loop(unet, scheduler), plain)
        assert full_calls(session) == STEPS
        alone = session.calibration
        loop(unet, scheduler)
        assert full_calls(session) == 4
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler)
        assert session.calibration == alone


def test_a_copy_takes_the_recordings_along_and_goes_its_own_way() -> None:
    unet, scheduler = make_unet(), ddim()
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler)
        twin = copy.deepcopy(unet)
        before = session.calibration
        loop(twin, diffusers.EulerDiscreteScheduler(), steps=8)
        loop(twin, scheduler)
        assert session.calibration == before


def test_two_threads_record_one_calibration_and_are_cached_by_it() -> None:
    unet, scheduler = make_unet(), ddim()
    plain = [loop(unet, scheduler, seed=seed) for seed in (1, 2)]
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        results: dict[int, Tensor] = {}

        def work(index: int, own: Any) -> None:
            with session.stream(index):
                results[index] = loop(unet, own, seed=index + 1)

        threads = [threading.Thread(target=work, args=(index, copy.deepcopy(scheduler))) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(results[index], plain[index]) for index in range(2))
        loop(unet, scheduler)
        assert full_calls(session) == 4


@pytest.mark.parametrize("cut", ["output", "outer", "branches"])
def test_every_cut_can_be_recorded(cut: str) -> None:
    unet, scheduler = make_unet(), ddim()
    plain = loop(unet, scheduler)
    with ticache.apply(unet, N=3, cut=cut, schedule="auto", scheduler=scheduler) as session:
        assert torch.equal(loop(unet, scheduler), plain)
        loop(unet, scheduler)
        assert full_calls(session) == 4


@pytest.fixture(scope="module")
def pipe() -> Any:
    unet: Any = make_unet()
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet, vae=vae(), scheduler=ddim(), requires_safety_checker=False, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, guidance: float, steps: int = STEPS) -> Tensor:
    tokens = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(4))
    return pipe(
        prompt_embeds=tokens,
        negative_prompt_embeds=torch.zeros_like(tokens),
        guidance_scale=guidance,
        num_inference_steps=steps,
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)),
        output_type="latent",
    ).images


def test_a_recording_at_guidance_3_serves_7_5_and_1_and_not_the_other_way_round(pipe: Any) -> None:
    with ticache.apply(pipe, N=3, schedule="auto") as session:
        picture(pipe, 3.0)
        for guidance in (7.5, 1.0, 3.0):
            picture(pipe, guidance)
            assert full_calls(session) == 4
    with ticache.apply(pipe, N=3, schedule="auto") as session:
        picture(pipe, 1.0)
        picture(pipe, 7.5)
        assert full_calls(session) == STEPS


def test_a_pipeline_is_exact_at_first_and_cached_next(pipe: Any) -> None:
    plain = picture(pipe, 7.5)
    with ticache.apply(pipe, N=3, schedule="auto") as session:
        assert torch.equal(picture(pipe, 7.5), plain)
        assert not torch.equal(picture(pipe, 7.5), plain)
        (recording,) = session.calibration.recordings.values()  # pyright: ignore[reportOptionalMemberAccess]
        assert recording.kind.guided
        assert recording.timesteps is not None


@pytest.mark.parametrize(
    "scheduler", ["HeunDiscreteScheduler", "PNDMScheduler", "DDPMScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("axis", ["step", "timestep"])
def test_other_samplers_are_recorded_and_cached(pipe: Any, scheduler: str, axis: str) -> None:
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(before.config)
    try:
        plain = picture(pipe, 3.0)
        with ticache.apply(pipe, N=3, axis=axis, schedule="auto") as session:
            torch.manual_seed(0)
            first = picture(pipe, 3.0)
            if scheduler != "DDPMScheduler":
                assert torch.equal(first, plain)
            calls = full_calls(session)
            assert session.report().to_dict()["predicted_calls"] == 0
            picture(pipe, 3.0)
            assert full_calls(session) <= calls // 2
    finally:
        pipe.scheduler = before


def test_a_run_too_long_to_record_has_the_fixed_schedule() -> None:
    unet, scheduler = make_unet(), ddim()
    with ticache.apply(unet, N=60, schedule="auto", scheduler=scheduler) as session:
        loop(unet, scheduler, steps=300)
        assert full_calls(session) == 5
        assert "not recorded" in repr(session)


def test_a_calibration_goes_with_the_auto_schedule_only() -> None:
    unet, scheduler = make_unet(), ddim()
    calibration = recorded(unet, scheduler)
    with pytest.raises(ValueError, match="calibration goes with schedule='auto' only"):
        ticache.apply(unet, schedule="late", calibration=calibration, scheduler=scheduler)
    with pytest.raises(ValueError, match="a calibration is what"):
        ticache.apply(unet, calibration="{}", scheduler=scheduler)
    assert CacheConfig(schedule="auto", calibration=calibration).replaced(schedule="late").calibration is None


def test_guidance_in_two_passes_is_recorded_and_cached_as_two_streams() -> None:
    unet, scheduler = make_unet(), ddim()
    sample, conditions = make_inputs(batch=2)
    tokens: Any = conditions["encoder_hidden_states"].split(1)
    plain = guided(unet, scheduler, sample[:1], tokens)
    with ticache.apply(unet, N=4, schedule="auto", scheduler=scheduler) as session:
        assert torch.equal(guided(unet, scheduler, sample[:1], tokens), plain)
        assert session.calibration is not None
        assert [recording.runs for recording in session.calibration.recordings.values()] == [2]
        guided(unet, scheduler, sample[:1], tokens)
        streams = session.report().to_dict()["streams"]
        assert [len(stream["full"]) for stream in streams] == [2, 2]
        assert streams[0]["full"] == streams[1]["full"]


def test_windows_at_one_timestep_are_recorded_and_come_out_as_alone() -> None:
    unet, scheduler = make_unet(), ddim()
    samples = [make_inputs(batch=1, seed=seed)[0] for seed in (1, 2, 3)]
    conditions = make_inputs(batch=1)[1]

    def together() -> list[Tensor]:
        scheduler.set_timesteps(8)
        found = list(samples)
        with torch.no_grad():
            for t in scheduler.timesteps:
                outputs = [unet(sample, t, **conditions).sample for sample in found]
                found = [scheduler.step(o, t, x).prev_sample for o, x in zip(outputs, found, strict=True)]
        return found

    plain = together()
    with ticache.apply(unet, N=3, schedule="auto", scheduler=scheduler) as session:
        assert all(torch.equal(a, b) for a, b in zip(together(), plain, strict=True))
        assert session.calibration is not None
        assert [recording.runs for recording in session.calibration.recordings.values()] == [3]
        cached = together()
        assert full_calls(session) == 9
        alone = [denoise(unet, scheduler, sample, conditions, steps=8) for sample in samples]
        assert all(torch.equal(a, b) for a, b in zip(cached, alone, strict=True))


def test_controlnet_runs_in_every_call_of_the_recorded_run_and_at_full_steps_of_the_next() -> None:
    pipe = stable_diffusion("StableDiffusionControlNetPipeline", controlnet=controlnet())
    ran: list[int] = []
    hook = pipe.controlnet.register_forward_hook(lambda *_: ran.append(1))

    def generate() -> Tensor:
        ran.clear()
        given = {**PROMPT, "image": drawing(), "generator": torch.Generator().manual_seed(0)}
        return pipe(**given, num_inference_steps=9, guidance_scale=3.0, output_type="latent").images

    plain = generate()
    with ticache.apply(pipe, N=3, schedule="auto") as session:
        assert torch.equal(generate(), plain)
        generate()
        assert full_calls(session) == 3
        assert session.report().to_dict()["fallbacks"] == {}
    hook.remove()


def test_fitted_weights_serve_while_the_full_steps_are_those_they_are_for() -> None:
    config = CacheConfig(steps=(0, 3, 6), order=2)
    weights = {step: (0.5, 0.25, 0.25)[: 1 if step < 3 else 2 if step < 6 else 3] for step in (1, 2, 4, 5, 7, 8)}

    def coefficients(*full: int) -> dict[int, list[float]]:
        cache = FeatureCache(config, 9, weights=weights)
        for step in full:
            cache.begin_full(step, 2, [float(later) for later in range(step, 9)])
        return cache.coefficients

    plain = FeatureCache(config, 9)
    for step in (0, 3, 6):
        plain.begin_full(step, 2, [float(later) for later in range(step, 9)])
    # 0.5 F_0 + 0.25 F_1 + 0.25 F_2 in differences, c_0 being 1 for weights of sum 1
    assert coefficients(0, 3, 6)[7] == [1.0, -0.75, 0.25]
    assert coefficients(0, 3, 6).keys() == plain.coefficients.keys()
    assert coefficients(0, 3, 5, 6) != coefficients(0, 3, 6)
    assert coefficients(3, 6)[7] != [1.0, -0.75, 0.25]


def test_a_cached_run_costs_what_a_fixed_schedule_does() -> None:
    """The same tensor operations, and of the cache's own functions the same at every step: more only once a run."""
    unet, scheduler = make_unet(), ddim()

    def profiled(steps: int, **options: Any) -> tuple[Counter[str], int, list[int]]:
        with ticache.apply(unet, scheduler=scheduler, **options) as session:
            for _ in range(2):
                loop(unet, scheduler, steps=steps)
            with Operations() as operations, calls_of_the_cache() as calls:
                loop(unet, scheduler, steps=steps)
            return operations.found, sum(calls.values()), steps_of(session)

    more: dict[int, int] = {}
    for steps in (STEPS, 2 * STEPS):
        operations, calls, chosen = profiled(steps, N=3, schedule="auto")
        same, fixed, _ = profiled(steps, schedule=chosen)
        assert operations == same
        more[steps] = calls - fixed
    assert more[STEPS] < 100  # of 2300
    # Each step is listed once when a run begins, each full one checked: no function is called at a step.
    assert more[2 * STEPS] - more[STEPS] < 2 * STEPS


class Operations(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def calls_of_the_cache() -> Iterator[Counter[str]]:
    """Counts calls of functions in ticache's files."""
    found: Counter[str] = Counter()

    def count(frame: Any, event: str, _argument: Any) -> None:
        if event == "call" and FOLDER in frame.f_code.co_filename:
            found[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        yield found
    finally:
        sys.setprofile(None)

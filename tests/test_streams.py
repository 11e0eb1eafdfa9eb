"""Runs and streams are found by themselves: every scheduler, every habit of pipelines and loops, and no stale state."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import diffusers
import pytest
import torch
from ticache_models import Recorder, ddim, denoise, make_inputs, make_unet
from torch import Tensor, nn

import ticache
from ticache.schedule import steps_of

# diffusers' sigma schedulers call np.array on a tensor, which numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return make_unet()


def streams(session: ticache.Session) -> list[tuple[list[int], list[int]]]:
    """(full, predicted) steps of each stream of the last run."""
    return [(s["full"], s["predicted"]) for s in session.report().to_dict()["streams"]]


def late(steps: int, N: int = 3) -> tuple[list[int], list[int]]:
    full = list(steps_of("spread", steps, N))
    return full, [step for step in range(steps) if step not in full]


def clean(session: ticache.Session) -> bool:
    report = session.report().to_dict()
    return report["fallbacks"] == report["unattributed"] == {} and report["held_bytes"] == 0


ONE_STREAM = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True},
    "LCMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "LMSDiscreteScheduler": {},
}


@pytest.mark.parametrize("name", ONE_STREAM)
@pytest.mark.parametrize("as_number", [False, True])
def test_one_stream_of_as_many_calls_as_the_scheduler_lists(unet: nn.Module, name: str, as_number: bool) -> None:
    """PNDM lists one timestep twice; DDIM, DDPM and PNDM know no `begin_index`; some callers pass numbers."""
    scheduler = getattr(diffusers, name)(**ONE_STREAM[name])
    sample, conditions = make_inputs(batch=1)

    def model(x: Tensor, t: Tensor, **kwargs: Any) -> Any:
        return unet(x, t.item() if as_number else t, **kwargs)

    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        for _ in range(2):
            denoise(model, scheduler, sample, conditions, steps=10)
            assert streams(session) == [late(len(scheduler.timesteps))]
            assert clean(session)
        assert session.report().to_dict()["runs"] == 2


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
@pytest.mark.parametrize("as_number", [False, True])
def test_second_order_schedulers_have_two_streams(unet: nn.Module, name: str, as_number: bool) -> None:
    """KDPM2 ancestral goes up twice in ten steps, by its own order; each run is one run all the same."""
    scheduler = getattr(diffusers, name)()
    sample, conditions = make_inputs(batch=1)

    def model(x: Tensor, t: Tensor, **kwargs: Any) -> Any:
        return unet(x, t.item() if as_number else t, **kwargs)

    with ticache.apply(unet, N=2, scheduler=scheduler, noise_order=None) as session:
        denoise(model, scheduler, sample, conditions, steps=10)
        calls = len(scheduler.timesteps)
        assert streams(session) == [late((calls + 1) // 2, 2), late(calls // 2, 2)]
        assert clean(session)
        assert session.report().to_dict()["runs"] == 1


def test_heun_streams_predict_from_their_own_steps_only(unet: Any) -> None:
    scheduler = diffusers.HeunDiscreteScheduler()
    sample, conditions = make_inputs(batch=1)
    recorder = Recorder(unet.up_blocks[-1])
    with ticache.apply(unet, preset="paper", boundary=0, N=2, order=0, cut="output", scheduler=scheduler):
        denoise(unet, scheduler, sample, conditions, steps=6)
    recorder.remove()
    outputs = recorder.outputs  # calls 0, 2, 4, ... and 1, 3, 5, ...; of each every other is reused
    for first in (0, 1):
        for step in range(first + 2, len(outputs), 4):
            assert torch.equal(outputs[step], outputs[step - 2])
        for step in range(first + 4, len(outputs), 4):
            assert not torch.equal(outputs[step], outputs[step - 4])


@pytest.mark.parametrize("axis", ["step", "timestep", "logsnr"])
def test_features_are_extrapolated_along_the_axis(unet: Any, axis: str) -> None:
    """On Karras sigmas the three axes differ; a line through the last two full steps, by hand."""
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    sample, conditions = make_inputs(batch=1)
    recorder = Recorder(unet.up_blocks[-1])
    settings: dict[str, Any] = {"N": 3, "order": 1, "schedule": "uniform", "cut": "output"}
    with ticache.apply(unet, axis=axis, scheduler=scheduler, **settings):
        denoise(unet, scheduler, sample / 14, conditions, steps=9)
    recorder.remove()
    x = {
        "step": torch.arange(9.0),
        "timestep": -scheduler.timesteps.double(),
        "logsnr": -2 * scheduler.sigmas[:9].double().log(),
    }[axis]
    for step in (4, 5, 7, 8):
        newest = step // 3 * 3
        rate = (x[step] - x[newest]) / (x[newest] - x[newest - 3])
        a, b = recorder.outputs[newest].double(), recorder.outputs[newest - 3].double()
        assert torch.allclose(recorder.outputs[step].double(), a + rate * (a - b), atol=1e-3, rtol=1e-4)


def test_a_timestep_evaluated_twice_does_not_divide_by_zero(unet: nn.Module) -> None:
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    with ticache.apply(unet, N=2, axis="timestep", schedule=[0, 1, 2, 4, 6], scheduler=scheduler) as session:
        assert denoise(unet, scheduler, *make_inputs(batch=1), steps=8).isfinite().all()
        assert clean(session)


def guided(unet: Any, scheduler: Any, sample: Tensor, tokens: tuple[Tensor, Tensor], fresh: bool = False) -> Tensor:
    """Classifier-free guidance in two passes."""
    scheduler.set_timesteps(8)
    with torch.no_grad():
        for t in scheduler.timesteps:
            un, con = (unet(sample, t, encoder_hidden_states=x.clone() if fresh else x).sample for x in tokens)
            sample = scheduler.step(un + 1.5 * (con - un), t, sample).prev_sample
    return sample


@pytest.mark.parametrize("fresh", [False, True])
def test_guidance_in_two_passes_is_two_streams(unet: nn.Module, fresh: bool) -> None:
    """Also where the tokens are copied anew for every call."""
    sample, conditions = make_inputs(batch=2)
    tokens = conditions["encoder_hidden_states"]
    scheduler = ddim()
    recorder = Recorder(unet.up_blocks[-1])  # pyright: ignore[reportIndexIssue,reportArgumentType]
    with ticache.apply(unet, N=4, order=0, schedule="uniform", cut="output", scheduler=scheduler) as session:
        guided(unet, scheduler, sample[:1], (tokens[:1], tokens[1:]), fresh)
        assert streams(session) == [([0, 4], [1, 2, 3, 5, 6, 7])] * 2
        assert clean(session)
    recorder.remove()
    for call in range(16):
        assert torch.equal(recorder.outputs[call], recorder.outputs[call // 8 * 8 + call % 2])


def test_windows_at_one_timestep_are_streams_of_their_own(unet: nn.Module) -> None:
    """Three windows with the same tokens; each must come out as if it ran alone."""
    samples = [make_inputs(batch=1, seed=seed)[0] for seed in (1, 2, 3)]
    conditions = make_inputs(batch=1)[1]
    scheduler = ddim()
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        alone = [denoise(unet, scheduler, sample, conditions, steps=8) for sample in samples]
        together = list(samples)
        scheduler.set_timesteps(8)
        with torch.no_grad():
            for t in scheduler.timesteps:
                outputs = [unet(sample, t, **conditions).sample for sample in together]
                together = [scheduler.step(o, t, x).prev_sample for o, x in zip(outputs, together, strict=True)]
        assert streams(session) == [late(8)] * 3
        assert clean(session)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_windows_are_told_apart_by_their_slices_even_out_of_order() -> None:
    unet = make_unet("condition", class_embed_type="identity")
    frames = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    samples = [make_inputs(batch=1, seed=seed)[0] for seed in (1, 2, 3)]
    conditions = make_inputs(batch=1)[1]
    scheduler = ddim()

    def run(shuffled: bool) -> list[Tensor]:
        together = list(samples)
        scheduler.set_timesteps(8)
        with torch.no_grad():
            for step, t in enumerate(scheduler.timesteps):
                for index in ((0, 1, 2), (2, 0, 1))[shuffled and step % 2]:
                    output = unet(together[index], t, class_labels=frames[index : index + 1], **conditions).sample
                    together[index] = scheduler.step(output, t, together[index]).prev_sample
        return together

    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        ordered, shuffled = run(False), run(True)
        assert streams(session) == [late(8)] * 3
    assert all(torch.equal(a, b) for a, b in zip(ordered, shuffled, strict=True))


def test_a_window_nobody_knows_runs_in_full_and_is_counted() -> None:
    """Windows that move from step to step: no earlier call is theirs, so nothing may be predicted."""
    unet = make_unet("condition", class_embed_type="identity")
    frames = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    sample, conditions = make_inputs(batch=1)
    scheduler = ddim()
    scheduler.set_timesteps(6)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            unet(sample, t, class_labels=frames[step : step + 1], **conditions)
        report = session.report().to_dict()
    assert report["predicted_calls"] == 0
    assert report["unattributed"]


def taking_turns(
    unet: Any, scheduler: Any, requests: list[Any], lag: int, stream: Any = nullcontext
) -> Iterator[list[Tensor]]:
    """Two loops of eight steps, the second `lag` turns behind the first. Yields both samples after every turn."""
    scheduler.set_timesteps(8)
    samples = [sample for sample, _ in requests]
    for turn in range(8 + lag):
        for index, step in enumerate((turn, turn - lag)):
            if 0 <= step < 8:
                t = scheduler.timesteps[step]
                with stream(index):
                    output = unet(samples[index], t, **requests[index][1]).sample
                samples[index] = scheduler.step(output, t, samples[index]).prev_sample
        yield samples


@pytest.mark.parametrize("lag", [0, 3])
def test_two_requests_interleaved_come_out_as_alone(unet: nn.Module, lag: int) -> None:
    scheduler = ddim()
    requests = [make_inputs(batch=1, seed=seed) for seed in (1, 2)]
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        alone = [denoise(unet, scheduler, *request, steps=8) for request in requests]
        *_, samples = taking_turns(unet, scheduler, requests, lag)
        assert clean(session)
    assert all(torch.equal(a, b) for a, b in zip(alone, samples, strict=True))


def test_requests_that_cannot_be_told_apart_are_never_predicted(unet: nn.Module) -> None:
    """The same tokens object, out of step: each call falls before or ahead of the last, so none may be predicted."""
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    requests = [(sample, conditions), (make_inputs(batch=1, seed=5)[0], conditions)]
    predicted = []
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        for _ in taking_turns(unet, scheduler, requests, 3):
            predicted.append(session.report().to_dict()["total_predicted_calls"])
        assert session.report().to_dict()["total_unattributed"] > 0
    assert predicted[3] == predicted[7]  # once the second has begun the two take turns, up to turn 7


def test_named_streams_tell_apart_what_nothing_else_does(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    requests = [(sample, conditions), (make_inputs(batch=1, seed=5)[0], conditions)]
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        alone = [denoise(unet, scheduler, *request, steps=8) for request in requests]
        *_, samples = taking_turns(unet, scheduler, requests, 3, session.stream)
    assert all(torch.equal(a, b) for a, b in zip(alone, samples, strict=True))


def test_an_image_to_image_tail_has_its_own_length(unet: nn.Module) -> None:
    """Strength slices the timesteps; another strength is another run of another length."""
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        for start in (5, 2, 0):
            scheduler.set_timesteps(10)
            denoise(unet, scheduler, sample, conditions, steps=None, timesteps=scheduler.timesteps[start:])
            assert streams(session) == [late(10 - start)]
            assert clean(session)


def test_another_size_batch_or_dtype_begins_anew(unet: nn.Module) -> None:
    scheduler = ddim()
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        sizes: list[dict[str, Any]] = [{}, {"size": 16}, {"batch": 1}, {}]
        for changes in sizes:
            denoise(unet, scheduler, *make_inputs(**changes), steps=6)
            assert streams(session) == [late(6)]
            assert clean(session)


def test_guidance_switched_off_midway_goes_on_with_the_other_batch(unet: nn.Module) -> None:
    """The batch halves in the middle of a run: what follows is a stream of its own, from a full step."""
    scheduler = ddim()
    sample, conditions = make_inputs(batch=2)
    scheduler.set_timesteps(10)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            half = slice(0, 1 if step >= 4 else 2)
            unet(sample[half], t, encoder_hidden_states=conditions["encoder_hidden_states"][half])
        (first, second) = streams(session)
        assert first == tuple([step for step in kind if step < 4] for kind in late(10))
        assert second == late(6)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("within", [True, False])
def test_nothing_stale_after_an_interruption(unet: Any, error: type[BaseException], within: bool) -> None:
    """Within the UNet, or between two calls."""
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        alone = denoise(unet, scheduler, sample, conditions, steps=8)

        calls = itertools.count()

        def fail(*_: object) -> None:
            if next(calls) == 5:
                raise error

        def fail_at_five(step: int, _output: Tensor) -> None:
            if step == 5:
                raise error

        if within:
            handle = unet.conv_out.register_forward_pre_hook(fail)
            with pytest.raises(error):
                denoise(unet, scheduler, sample + 1, conditions, steps=8)
            handle.remove()
            if error is RuntimeError:  # what interrupts Python itself is cleared up at the next call
                assert session.report().to_dict()["held_bytes"] == 0
        else:
            with pytest.raises(error):
                denoise(unet, scheduler, sample + 1, conditions, steps=8, each=fail_at_five)
        assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=8), alone)
        assert session.report().to_dict()["held_bytes"] == 0


@pytest.mark.parametrize("lists", ["one", "each its own"])
def test_interrupted_runs_do_not_pile_up(unet: nn.Module, lists: str) -> None:
    """Another request may be under way beside the present one, so that two may be held, but no more."""
    scheduler = ddim()
    scheduler.set_timesteps(10)
    held = []
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        for seed in range(5):
            sample, conditions = make_inputs(batch=1, seed=seed)
            part = scheduler.timesteps[:5]
            denoise(unet, scheduler, sample, conditions, steps=None, timesteps=part)
            held.append(session.report().to_dict()["held_bytes"])
            if lists == "each its own":
                scheduler.set_timesteps(10)
    assert held[0] > 0
    assert held[1:] == [2 * held[0]] * 4


@pytest.mark.parametrize("passes", [1, 2])
def test_embeddings_rebuilt_at_every_step_are_told_and_do_not_pile_up(unet: nn.Module, passes: int) -> None:
    scheduler = ddim()
    scheduler.set_timesteps(12)
    sample, conditions = make_inputs(batch=1)
    tokens = conditions["encoder_hidden_states"]
    held = []
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            for call in range(passes):
                unet(sample, t, encoder_hidden_states=tokens + step + call / 2)
            held.append(session.report().to_dict()["held_bytes"])
        report = session.report().to_dict()
    assert report["unattributed"] == {"its embeddings are not those of the step before": 11 * passes}
    assert report["runs"] == 1
    assert max(held) <= 2 * held[0]


def test_embeddings_changed_once_are_told_and_cached_on(unet: nn.Module) -> None:
    scheduler = ddim()
    scheduler.set_timesteps(12)
    sample, conditions = make_inputs(batch=1)
    tokens = conditions["encoder_hidden_states"]
    later = tokens + 1
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            unet(sample, t, encoder_hidden_states=later if step >= 4 else tokens)
        report = session.report().to_dict()
        assert streams(session)[1] == late(8)
        assert report["unattributed"] == {"its embeddings are not those of the step before": 1}
        assert report["held_bytes"] == 0


def test_a_bare_loop_without_set_timesteps_starts_anew_when_the_timestep_rises(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(8)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        runs = [denoise(unet, scheduler, sample, conditions, steps=None) for _ in range(2)]
        part = scheduler.timesteps[:5]
        denoise(unet, scheduler, sample + 1, conditions, steps=None, timesteps=part)
        runs.append(denoise(unet, scheduler, sample, conditions, steps=None))
        assert streams(session) == [late(8)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", ["number", "tensor", "batch"])
def test_num_steps_serves_where_there_is_no_scheduler(unet: nn.Module, kind: str) -> None:
    sample, conditions = make_inputs()
    with ticache.apply(unet, N=3, num_steps=8) as session, torch.no_grad():
        for _ in range(2):
            for value in range(900, 100, -100):
                t = {"number": value, "tensor": torch.tensor(value), "batch": torch.tensor([value, value])}[kind]
                unet(sample, timestep=t, **conditions)  # by keyword
            assert streams(session) == [late(8)]
            assert clean(session)


def test_uniform_needs_no_number_of_steps(unet: nn.Module) -> None:
    sample, conditions = make_inputs()
    with ticache.apply(unet, N=2, schedule="uniform") as session, torch.no_grad():
        for value in range(900, 200, -100):
            unet(sample, value, **conditions)
        assert streams(session) == [([0, 2, 4, 6], [1, 3, 5])]


def test_a_batch_at_several_timesteps_runs_in_full_and_is_counted(unet: nn.Module) -> None:
    sample, conditions = make_inputs()
    with ticache.apply(unet, N=2, num_steps=3) as session, torch.no_grad():
        for value in (900, 800, 700):
            unet(sample, torch.tensor([value, value - 1]), **conditions)
        report = session.report().to_dict()
    assert report["predicted_calls"] == 0
    assert sum(report["unattributed"].values()) == 3


def test_gradients_are_not_cached(unet: nn.Module) -> None:
    sample, conditions = make_inputs()
    with ticache.apply(unet, N=2, num_steps=3) as session:
        for value in (900, 800, 700):
            x = sample.clone().requires_grad_()
            unet(x, value, **conditions).sample.sum().backward()
            assert x.grad is not None
        assert session.report().to_dict()["predicted_calls"] == 0


@pytest.mark.parametrize("why", ["training mode", "gradients"])
def test_a_training_loop_runs_in_full_and_is_told(why: str, caplog: pytest.LogCaptureFixture) -> None:
    """At a predicted step the modules left out would get no gradient."""
    unet: Any = make_unet().train(why == "training mode")
    sample, conditions = make_inputs(batch=1)
    scheduler = ddim()
    scheduler.set_timesteps(8)
    mid = next(unet.mid_block.parameters())
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        for t in scheduler.timesteps:
            unet.zero_grad()
            with torch.set_grad_enabled(why == "gradients"):
                loss = unet(sample, t, **conditions).sample.square().mean()
            if why == "gradients":
                loss.backward()
                assert mid.grad is not None
        report = session.report().to_dict()
        assert report["predicted_calls"] == 0
        ((reason, count),) = report["unattributed"].items()
        assert why in reason
        assert count == 8
        assert [record.name for record in caplog.records] == ["ticache"]
        assert ("torch.no_grad()" if why == "gradients" else "unet.eval()") in caplog.text
        unet.eval()
        denoise(unet, scheduler, sample, conditions, steps=8)
        assert streams(session) == [late(8)]


def test_frozen_parameters_need_no_no_grad() -> None:
    unet = make_unet().requires_grad_(False)
    sample, conditions = make_inputs(batch=1)
    scheduler = ddim()
    scheduler.set_timesteps(8)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        for t in scheduler.timesteps:
            unet(sample, t, **conditions)
        assert streams(session) == [late(8)]


def test_latents_made_outside_inference_mode_are_of_the_run(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        with torch.inference_mode():
            denoise.__wrapped__(unet, scheduler, sample, conditions, steps=8)  # pyright: ignore[reportFunctionMemberAccess]
        assert streams(session) == [late(8)]
        assert clean(session)
        denoise(unet, scheduler, sample, conditions, steps=8)
        assert streams(session) == [late(8)]


def test_a_stream_is_named_for_its_own_thread_only(unet: nn.Module) -> None:
    """While one thread stands within `stream("other")`, another's calls are not of that name."""
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        within, finished = threading.Event(), threading.Event()

        def other() -> None:
            with session.stream("other"):
                within.set()
                finished.wait()

        def each(step: int, _output: Tensor) -> None:
            if step == 3:
                thread.start()
                within.wait()

        thread = threading.Thread(target=other)
        denoise(unet, scheduler, sample, conditions, steps=8, each=each)
        finished.set()
        thread.join()
        assert streams(session) == [late(8)]


def test_few_step_consistency_models_are_refused(unet: nn.Module) -> None:
    scheduler = diffusers.LCMScheduler()
    sample, conditions = make_inputs()
    with pytest.raises(ValueError, match="LCMScheduler with 4 steps cannot be accelerated"):
        ticache.apply(unet, N=2, scheduler=scheduler, num_steps=4)
    torch.manual_seed(0)
    plain = denoise(unet, scheduler, sample, conditions, steps=4)
    with ticache.apply(unet, N=2, scheduler=scheduler) as session:
        torch.manual_seed(0)
        assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=4), plain)
        assert "cannot be accelerated" in str(session.report())


@pytest.mark.parametrize(
    ("name", "settings", "eta", "capped"),
    [
        ("DDPMScheduler", {"clip_sample": False}, None, True),
        ("EulerAncestralDiscreteScheduler", {}, None, True),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, None, True),
        ("DDIMScheduler", {"clip_sample": False}, 1.0, True),
        ("DDIMScheduler", {"clip_sample": False}, 0.0, False),
        ("EulerDiscreteScheduler", {}, None, False),
    ],
)
def test_the_order_is_capped_where_the_sampler_adds_noise(
    unet: nn.Module, name: str, settings: dict[str, Any], eta: float | None, capped: bool
) -> None:
    scheduler = getattr(diffusers, name)(**settings)
    sample, conditions = make_inputs(batch=1)
    with ticache.apply(unet, N=2, order=2, scheduler=scheduler) as session, torch.no_grad():
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            output = unet(scheduler.scale_model_input(sample, t), t, **conditions).sample
            sample = scheduler.step(output, t, sample, **({} if eta is None else {"eta": eta})).prev_sample
        assert ("capped at 1" in str(session.report())) == capped


def test_two_threads_with_two_unets_share_nothing() -> None:
    unets = [make_unet(), make_unet()]
    requests = [make_inputs(batch=1, seed=seed) for seed in (1, 2)]
    results: list[Any] = [None, None]

    def work(index: int) -> None:
        scheduler = ddim()
        with ticache.apply(unets[index], N=3, scheduler=scheduler):
            results[index] = denoise(unets[index], scheduler, *requests[index], steps=8)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        threaded, results[index] = results[index], None
        work(index)
        assert torch.equal(results[index], threaded)


def test_a_deep_copy_works_and_shares_no_state(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        alone = denoise(unet, scheduler, sample, conditions, steps=8)
        twin = copy.deepcopy(unet)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.01)  # its predictions must come from its own weights
        other = denoise(twin, scheduler, sample, conditions, steps=8)
        assert session.report().to_dict()["runs"] == 1
        assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=8), alone)
        ticache.remove(twin)
        plain = denoise(twin, scheduler, sample, conditions, steps=8)
        assert not torch.equal(plain, other)
        assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=8), alone)
        ticache.apply(twin, N=3, scheduler=scheduler)
        assert torch.equal(denoise(twin, scheduler, sample, conditions, steps=8), other)


def test_apply_twice_replaces_and_never_stacks(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    plain = denoise(unet, scheduler, sample, conditions, steps=6)
    first = ticache.apply(unet, N=2, scheduler=scheduler)
    second = ticache.apply(unet, N=3, scheduler=scheduler)
    assert not first.active
    assert "replaced" in repr(first)
    denoise(unet, scheduler, sample, conditions, steps=6)
    assert streams(second) == [late(6)]
    first.remove()
    assert second.active
    ticache.remove(unet)
    ticache.remove(unet)
    assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=6), plain)


def test_paused_is_exact_and_uncounted(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    plain = denoise(unet, scheduler, sample, conditions, steps=6)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session:
        with session.paused():
            assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=6), plain)
        assert session.report().to_dict()["full_calls"] == 0
        assert not torch.equal(denoise(unet, scheduler, sample, conditions, steps=6), plain)


def test_the_context_manager_removes_on_error_too(unet: nn.Module) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    plain = denoise(unet, scheduler, sample, conditions, steps=4)
    with pytest.raises(ZeroDivisionError), ticache.apply(unet, N=2, scheduler=scheduler):
        raise ZeroDivisionError
    assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=4), plain)

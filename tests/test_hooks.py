"""What is hung on schedulers, pipelines and modules leaves them as they were, and others can hang theirs beside it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers as real_diffusers
import peft
import pytest
import tomesd
import torch
from DeepCache import DeepCacheSDHelper
from ticache_models import ddim, denoise, make_inputs, make_unet
from torch import Tensor

import ticache

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

diffusers: Any = real_diffusers
STEPS = 6


@pytest.fixture
def unet() -> Any:
    return make_unet()


def half_a_step(unet: Any, scheduler: Any) -> Tensor:
    """A UNet call that no step of the scheduler follows yet."""
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        return unet(sample, scheduler.timesteps[0], **conditions).sample


def reaches(root: Any, wanted: object) -> bool:
    """Is an object reached from another by what they refer to, short of classes and modules?"""
    seen, queue = set(), [root]
    while queue:
        found = queue.pop()
        if found is wanted:
            return True
        if id(found) not in seen and not isinstance(found, type | type(pytest)):
            seen.add(id(found))
            code = isinstance(found, type(reaches))
            queue += [] if code else gc.get_referents(found)
    return False


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_scheduler_is_a_plain_one(unet: Any, copied: Callable[[Any], Any]) -> None:
    scheduler = ddim()
    names = set(vars(scheduler))
    with ticache.apply(unet, N=2, scheduler=scheduler):
        assert vars(copied(scheduler)).keys() == names
        denoise(unet, scheduler, *make_inputs(batch=1), steps=STEPS)
        assert "step" not in vars(copied(scheduler))
        assert not reaches(scheduler, unet)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_scheduler_copied_between_a_call_and_its_step_steps_by_itself(
    unet: Any, copied: Callable[[Any], Any]
) -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    with ticache.apply(unet, N=2, scheduler=scheduler):
        output = half_a_step(unet, scheduler)
        assert not reaches(scheduler, unet)
        twin = copied(scheduler)
        twin.step(output, twin.timesteps[0], torch.zeros_like(output))
        assert (twin.step_index, scheduler.step_index) == (1, None)
        assert not reaches(twin, unet)
        assert not reaches(twin, scheduler)


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_schedulers_state_written_back_is_its_own(unet: Any, name: str) -> None:
    """As StableDiffusionPanorama does for each of its views."""

    def views(steps: int = STEPS) -> Tensor:
        scheduler.set_timesteps(steps)
        samples = [make_inputs(batch=1, seed=seed)[0] for seed in (1, 2)]
        states = [copy.deepcopy(vars(scheduler)) for _ in samples]
        with torch.no_grad():
            for t in scheduler.timesteps:
                for index, sample in enumerate(samples):
                    vars(scheduler).update(states[index])
                    output = unet(sample, t, **make_inputs(batch=1)[1]).sample
                    samples[index] = scheduler.step(output, t, sample).prev_sample
                    states[index] = copy.deepcopy(vars(scheduler))
        return torch.cat(samples)

    scheduler = getattr(diffusers, name)()
    plain = views()
    names = set(vars(scheduler))
    with ticache.apply(unet, N=1, scheduler=scheduler):
        assert torch.equal(views(), plain)
        assert torch.equal(views(), plain)
    assert vars(scheduler).keys() == names
    assert torch.equal(views(), plain)


def test_remove_puts_back_what_stood_there(unet: Any) -> None:
    scheduler, calls = ddim(), []
    plain = scheduler.step
    vars(scheduler)["step"] = mine = lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)
    for run in (lambda: denoise(unet, scheduler, *make_inputs(batch=1), steps=STEPS), lambda: None):
        with ticache.apply(unet, N=2, scheduler=scheduler):
            run()
            half_a_step(unet, scheduler)
            assert scheduler.step is not mine
        assert scheduler.step is mine
    assert len(calls) == STEPS


def test_of_two_caches_on_one_scheduler_the_other_goes_on_seeing_its_noise() -> None:
    scheduler, unets = ddim(), [make_unet(), make_unet()]
    sessions = [ticache.apply(unet, N=2, order=2, scheduler=scheduler) for unet in unets]
    for unet in unets:
        half_a_step(unet, scheduler)
    sessions[1].remove()
    noisy(unets[0], scheduler)
    assert "capped at 1" in str(sessions[0].report())
    sessions[0].remove()
    assert "step" not in vars(scheduler)


def noisy(unet: Any, scheduler: Any, *extra: Any) -> None:
    """A run with eta=1 by name, or with what is given by place."""
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(scheduler.scale_model_input(sample, t), t, **conditions).sample
            sample = scheduler.step(output, t, sample, *extra, **({} if extra else {"eta": 1.0})).prev_sample


@pytest.mark.parametrize(
    ("name", "given", "capped"),
    [
        ("DDIMScheduler", (1.0,), True),
        ("DDIMScheduler", (0.0,), False),
        ("EulerDiscreteScheduler", (0.5, 0.0, 1e9), True),
        ("EulerDiscreteScheduler", (0.0,), False),
    ],
)
def test_noise_asked_for_by_place_is_seen(unet: Any, name: str, given: tuple[float, ...], capped: bool) -> None:
    scheduler = getattr(diffusers, name)()
    with ticache.apply(unet, N=2, order=2, scheduler=scheduler) as session:
        noisy(unet, scheduler, *given)
        assert ("capped at 1" in str(session.report())) == capped


def test_what_a_step_gave_is_known_but_not_held(unet: Any) -> None:
    scheduler = ddim()
    with ticache.apply(unet, N=2, scheduler=scheduler) as session:
        output = half_a_step(unet, scheduler)
        sample = scheduler.step(output, scheduler.timesteps[0], output).prev_sample
        assert sample in session._controller.latents
        gone = weakref.ref(sample)
        del sample
        assert gone() is None


def test_options_that_torch_compile_refuses_leave_everything_as_it_was(unet: Any) -> None:
    with ticache.apply(unet, N=2, scheduler=ddim()) as session:
        with pytest.raises(RuntimeError, match="nope"):
            ticache.apply(unet, N=3, scheduler=ddim(), compile={"mode": "nope"})
        assert session.active
    assert not any("forward" in vars(module) for module in unet.modules())
    with pytest.raises(RuntimeError, match="nope"):
        ticache.apply(unet, N=3, scheduler=ddim(), compile={"mode": "nope"})
    assert not any("forward" in vars(module) for module in unet.modules())
    assert not unet._forward_pre_hooks


def test_a_users_own_pre_hook_finds_the_arguments_where_they_were(unet: Any) -> None:
    seen = []
    with ticache.apply(unet, N=2, scheduler=(scheduler := ddim())) as session:
        handle = unet.register_forward_pre_hook(lambda _, args: seen.append((args[0].shape, len(args))))
        denoise(unet, scheduler, *make_inputs(batch=1), steps=STEPS)
        handle.remove()
        assert session.report().to_dict()["predicted_calls"] > 0
    assert seen == [(torch.Size((1, 4, 8, 8)), 2)] * STEPS


class Free(diffusers.UNet2DConditionModel):
    """A subclass of a user's, which takes whatever comes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(args[0], Tensor)
        return super().forward(*args, **kwargs)


class Longer(diffusers.UNet2DConditionModel):
    """A subclass of a user's, which names its first argument otherwise."""

    def forward(self, latents: Tensor, *rest: Any, **kwargs: Any) -> Any:
        return super().forward(latents, *rest, **kwargs)


@pytest.mark.parametrize("kind", [Free, Longer])
@pytest.mark.parametrize("positional", [False, True])
def test_a_subclass_that_takes_any_arguments_is_cached(kind: type, positional: bool) -> None:
    base, scheduler = make_unet(), ddim()
    unet: Any = kind(**{k: v for k, v in base.config.items() if not k.startswith("_")}).eval()  # pyright: ignore
    unet.load_state_dict(base.state_dict())
    sample, conditions = make_inputs(batch=1)
    tokens = conditions["encoder_hidden_states"]

    def run(model: Any) -> Tensor:
        call: Any = (lambda x, t: model(x, t, tokens)) if positional else (lambda x, t: model(x, t, **conditions))
        return denoise(call, scheduler, sample, {}, steps=STEPS)

    with ticache.apply(base, N=2, scheduler=scheduler):
        wanted = run(base)
    with ticache.apply(unet, N=2, scheduler=scheduler) as session:
        torch.testing.assert_close(run(unet), wanted)
        report = session.report().to_dict()
        assert report["predicted_calls"] == STEPS - 3
        assert report["fallbacks"] == report["unattributed"] == {}


def test_tomesd_patched_after_apply_runs_beside_us(unet: Any) -> None:
    with ticache.apply(unet, N=2, scheduler=(scheduler := ddim())) as session:
        tomesd.apply_patch(unet, ratio=0.5)
        denoise(unet, scheduler, *make_inputs(batch=1), steps=STEPS)
        assert session.report().to_dict()["predicted_calls"] == STEPS - 3
        tomesd.remove_patch(unet)


@pytest.mark.parametrize("first", [True, False])
def test_beside_deepcache_every_call_runs_in_full_and_says_why(unet: Any, first: bool) -> None:
    pipe = SimpleNamespace(unet=unet, scheduler=ddim())
    inputs = make_inputs(batch=1)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    alone = denoise(unet, pipe.scheduler, *inputs, steps=STEPS)
    helper.disable()
    if first:
        helper.enable()
    with ticache.apply(pipe, N=3) as session:
        if not first:
            helper.enable()
        assert torch.equal(denoise(unet, pipe.scheduler, *inputs, steps=STEPS), alone)
        assert any("DeepCache" in why for why in session.report().to_dict()["unattributed"])
        helper.disable()
        denoise(unet, pipe.scheduler, *inputs, steps=STEPS)
        assert session.report().to_dict()["predicted_calls"] == STEPS - 2


def test_a_peft_model_is_cached_as_the_unet_in_it(unet: Any) -> None:
    model = peft.get_peft_model(unet, peft.LoraConfig(target_modules=["to_q"])).eval()
    pipe = SimpleNamespace(unet=model, scheduler=ddim())
    inputs = make_inputs(batch=1)
    plain = denoise(model, pipe.scheduler, *inputs, steps=STEPS)
    with ticache.apply(pipe, N=2) as session:
        cached = denoise(model, pipe.scheduler, *inputs, steps=STEPS)
        assert session.report().to_dict()["predicted_calls"] == STEPS - 3
        assert "replaced" not in repr(session)
        assert not torch.equal(cached, plain)
    assert torch.equal(denoise(model, pipe.scheduler, *inputs, steps=STEPS), plain)


def test_a_controlnet_left_out_after_all_may_give_a_dataclass(unet: Any) -> None:
    net = diffusers.ControlNetModel.from_unet(unet).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    pipe = SimpleNamespace(unet=unet, controlnet=net, scheduler=ddim())
    sample, conditions = make_inputs(batch=1)
    picture = torch.ones(1, 3, 64, 64)

    def last_call() -> Tensor:
        pipe.scheduler.set_timesteps(STEPS)
        output = sample
        for index, t in enumerate(pipe.scheduler.timesteps[:3]):
            with torch.no_grad():
                added = net(sample, t, conditions["encoder_hidden_states"], picture, return_dict=True)
            down, mid = added.down_block_res_samples, added.mid_block_res_sample
            # The third is expected to be predicted, and is not: gradients are wanted.
            asked = sample.clone().requires_grad_(index == 2)
            with torch.set_grad_enabled(index == 2):
                output = unet(
                    asked, t, **conditions, down_block_additional_residuals=down, mid_block_additional_residual=mid
                ).sample
        return output.detach()

    plain = last_call()
    with ticache.apply(pipe, schedule=[0, 5]) as session:
        torch.testing.assert_close(last_call(), plain)
        assert session.report().to_dict()["predicted_calls"] == 1

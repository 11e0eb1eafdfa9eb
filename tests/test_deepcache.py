"""DeepCache's calls with our predictions behind them: the same interface, the same modules run, nearer to uncached."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import DeepCache
import diffusers as real_diffusers
import pytest
import torch
from every_pipeline_parts import clip_text, tokenizer
from test_pipelines import NO_SAFETY, PROMPT, STEPS, vae
from ticache_models import ddim, make_unet
from torch import Tensor, nn

import ticache
from ticache.deepcache import DeepCacheSDHelper
from ticache.hooks import attached_controller

diffusers: Any = real_diffusers


def pipeline() -> Any:
    """Stable Diffusion with every part that a prompt needs, tiny and random."""
    parts = {"text_encoder": clip_text(), "tokenizer": tokenizer(), "unet": make_unet(), "vae": vae()}
    pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=ddim(), **NO_SAFETY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoised(pipe: Any, steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    result = pipe(**PROMPT, num_inference_steps=steps, output_type="latent", generator=generator)
    return result.images


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """How often the middle of the UNet runs: once for every full call."""
    calls: list[int] = []
    handle = unet.mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def readme_example() -> str:
    """The first example of the installed package's own README."""
    described = importlib.metadata.distribution("DeepCache").read_text("METADATA")
    assert described is not None
    found = re.search(r"```python\n(.*?)```", described, re.DOTALL)
    assert found is not None
    return found[1]


def as_in_readme(pipe: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Tensor]:
    """Run the example with `module` in DeepCache's place: the helper and the picture that it makes."""
    code = readme_example().replace("from DeepCache import", f"from {module} import")
    loaded = SimpleNamespace(from_pretrained=lambda *_, **__: SimpleNamespace(to=lambda _: pipe))
    library: Any = ModuleType("diffusers")
    library.StableDiffusionPipeline = loaded
    monkeypatch.setitem(sys.modules, "diffusers", library)
    names: dict[str, Any] = {"prompt": "a lighthouse"}
    torch.manual_seed(0)
    exec(compile(code, "DeepCache's README", "exec"), names)
    monkeypatch.undo()
    return names["helper"], names["deepcache_image"]


def test_the_readme_example_of_deepcache_runs_with_both_and_ours_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    torch.manual_seed(0)
    plain = pipe("a lighthouse", output_type="pt").images[0]
    errors, calls = {}, {}
    for module, kind in (("DeepCache", DeepCache.DeepCacheSDHelper), ("ticache.deepcache", DeepCacheSDHelper)):
        with counted(pipe.unet) as full:
            helper, picture = as_in_readme(pipe, module, monkeypatch)
        assert type(helper) is kind
        errors[module], calls[module] = float((picture - plain).norm()), len(full)
        torch.manual_seed(0)
        assert torch.equal(pipe("a lighthouse", output_type="pt").images[0], plain), f"{module} left something behind"
    assert calls == {"DeepCache": 17, "ticache.deepcache": 17}  # of 50
    assert 0 < errors["ticache.deepcache"] < errors["DeepCache"]


@pytest.mark.parametrize("method", ["__init__", "set_params", "enable", "disable"])
def test_the_methods_take_what_deepcaches_take(method: str) -> None:
    def told(kind: type) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(kind, method)).parameters.values()
        return [(each.name, each.default, each.kind) for each in parameters]

    assert told(DeepCacheSDHelper) == told(DeepCache.DeepCacheSDHelper)


@pytest.mark.parametrize("branch", [0, 1, 2, 3, 5, 7, 8, 11])
def test_params_are_told_as_deepcache_tells_them(branch: int) -> None:
    ours, theirs = DeepCacheSDHelper(), DeepCache.DeepCacheSDHelper()
    for helper in (ours, theirs):
        helper.set_params(3, branch, "uniform")
    assert ours.params == theirs.params


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("branch", [0, 1, 2, 3, 4, 5, 8, 30])
def test_a_branch_runs_the_layers_that_deepcache_runs(branch: int, layers: int) -> None:
    def layers_run(kind: Callable[..., Any]) -> list[list[str]]:
        unet: Any = make_unet(layers_per_block=layers)
        pipe = diffusers.StableDiffusionPipeline(
            unet=unet, vae=vae(), text_encoder=None, tokenizer=None, scheduler=ddim(), **NO_SAFETY
        )
        pipe.set_progress_bar_config(disable=True)
        helper, run, steps = kind(pipe=pipe), list[str](), list[list[str]]()
        helper.set_params(cache_interval=2, cache_branch_id=branch)
        helper.enable()
        for name, module in unet.named_modules():
            if ".resnets." in name and name.endswith(".conv1"):
                module.register_forward_hook(lambda *_, name=name: run.append(name))
        unet.conv_in.register_forward_pre_hook(lambda *_: steps.append(run[:]) or run.clear())
        denoised(pipe, 4)
        return [*steps[1:], run]

    first, second, *_ = layers_run(DeepCacheSDHelper)
    assert (first, second) == tuple(layers_run(DeepCache.DeepCacheSDHelper)[:2])
    assert 0 < len(second) < len(first)


@pytest.mark.parametrize("twice", [False, True])
def test_enabled_twice_is_enabled_and_disabled_twice_is_off(twice: bool) -> None:
    pipe = pipeline()
    plain = denoised(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.disable()
    helper.set_params(cache_interval=2)
    helper.enable()
    session = helper.session
    if twice:
        helper.enable()
    assert helper.session is session
    assert session is not None
    assert not torch.equal(denoised(pipe), plain)
    assert session.report().to_dict()["full_calls"] == STEPS // 2
    helper.disable()
    if twice:
        helper.disable()
    assert torch.equal(denoised(pipe), plain)
    helper.enable()  # with the parameters that it had
    assert not torch.equal(denoised(pipe), plain)
    helper.disable()


def test_parameters_set_while_the_cache_is_on_hold_from_then_on() -> None:
    pipe = pipeline()
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.enable()
    plain = denoised(pipe)
    with counted(pipe.unet) as full:
        denoised(pipe)
    assert len(full) == STEPS  # cache_interval is 1 until it is set
    for interval, calls in ((4, 2), (2, 4)):
        helper.set_params(interval)
        with counted(pipe.unet) as full:
            denoised(pipe)
        assert len(full) == calls
    helper.set_params()
    assert torch.equal(denoised(pipe), plain)
    helper.disable()


@pytest.mark.parametrize("by_argument", [False, True])
def test_a_helper_moves_to_another_pipeline_and_lets_go_of_the_first(by_argument: bool) -> None:
    first, second = pipeline(), pipeline()
    plain = denoised(first)
    helper = DeepCacheSDHelper(pipe=first)
    helper.set_params(cache_interval=2)
    helper.enable()
    if by_argument:
        helper.enable(second)
    else:
        helper.pipe = second
        helper.enable()
    assert torch.equal(denoised(first), plain)
    assert attached_controller(first.unet) is None
    assert not torch.equal(denoised(second), plain)
    helper.disable()
    assert torch.equal(denoised(second), plain)


def test_pipelines_that_share_a_unet_take_the_cache_from_each_other_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As programs do that make an image-to-image pipeline from the parts of the other, with a scheduler of its own."""
    first = pipeline()
    second = diffusers.StableDiffusionPipeline(**{**first.components, "scheduler": ddim()})
    second.set_progress_bar_config(disable=True)
    helper = DeepCacheSDHelper(pipe=first)
    helper.set_params(cache_interval=2)
    for pipe, steps in ((first, 6), (second, 8), (first, 6)):
        helper.enable(pipe)
        with counted(pipe.unet) as full:
            denoised(pipe, steps)
        assert len(full) == steps // 2
    helper.disable()
    assert not [record for record in caplog.records if record.name == "ticache"]


def test_a_unet_put_in_the_place_of_the_cached_one_is_cached_by_the_next_enable() -> None:
    pipe = pipeline()
    old = pipe.unet
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    pipe.unet = make_unet()
    helper.enable()
    assert attached_controller(old) is None
    with counted(pipe.unet) as full:
        denoised(pipe)
    assert len(full) == STEPS // 2
    helper.disable()


def test_a_cache_applied_meanwhile_stays_when_the_helper_is_disabled() -> None:
    pipe = pipeline()
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    with ticache.apply(pipe, N=4) as session:
        helper.set_params(cache_interval=1)
        helper.disable()
        assert session.active
        with counted(pipe.unet) as full:
            denoised(pipe)
    assert len(full) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"cache_interval": 0}, ValueError, "cache_interval must be >= 1, got 0"),
        ({"cache_interval": 2.5}, TypeError, "cache_interval must be a whole number, got 2.5"),
        ({"cache_interval": float("nan")}, TypeError, "cache_interval must be a whole number, got nan"),
        ({"cache_interval": True}, TypeError, "cache_interval must be a whole number, got True"),
        ({"cache_branch_id": -1}, ValueError, "cache_branch_id must be >= 0, got -1"),
        ({"cache_branch_id": "0"}, TypeError, "cache_branch_id must be a whole number, got '0'"),
        ({"skip_mode": "quad"}, ValueError, "skip_mode must be 'uniform', the only one that DeepCache has, got 'quad'"),
        ({"cache_block_id": 1}, TypeError, "unexpected keyword argument 'cache_block_id'"),
    ],
)
def test_parameters_that_cannot_be_are_refused_in_one_sentence(
    arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    helper = DeepCacheSDHelper()
    helper.set_params(cache_interval=3.0)  # pyright: ignore[reportArgumentType]
    before = dict(helper.params)
    with pytest.raises(error, match=re.escape(sentence)) as raised:
        helper.set_params(**arguments)
    assert "\n" not in str(raised.value)
    assert helper.params == before
    assert before["cache_interval"] == 3


def test_a_helper_without_a_pipeline_or_without_a_unet_says_so() -> None:
    with pytest.raises(ValueError, match="there is no pipeline to cache"):
        DeepCacheSDHelper().enable()
    with pytest.raises(ValueError, match="expected a diffusers pipeline with a UNet"):
        DeepCacheSDHelper(SimpleNamespace(unet=None)).enable()
    pipe = pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(2)
    helper.enable()
    with pytest.raises(ValueError, match="caches UNets"):
        helper.enable(nn.Linear(1, 1))
    assert helper.session is not None
    assert helper.session.active  # where it was
    helper.disable()

"""Which module of a pipeline is cached, and the sentence that refuses what cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UnCLIPScheduler
from every_pipeline_parts import kandinsky3_unet
from ticache_models import ddim, denoise, make_inputs, make_unet
from torch import Tensor, nn

import ticache
from ticache.api import find_unet
from ticache.hooks import attached_controller
from ticache.inputs import PipelineInfo

STEPS = 12


def tokens() -> dict[str, Tensor]:
    states = make_inputs()[1]["encoder_hidden_states"]
    return {"encoder_hidden_states": states, "encoder_attention_mask": torch.ones(states.shape[:2])}


@pytest.mark.parametrize("settings", [{}, {"depth": 2}, {"cut": "output"}, {"cut": "branches"}])
def test_kandinsky_3_is_cached_by_its_levels(settings: dict[str, Any]) -> None:
    unet, scheduler = kandinsky3_unet(), ddim()
    sample = make_inputs()[0]
    plain = denoise(unet, scheduler, sample, tokens(), steps=STEPS)
    with ticache.apply(unet, N=1, scheduler=scheduler, **settings):
        assert torch.equal(denoise(unet, scheduler, sample, tokens(), steps=STEPS), plain)
    with ticache.apply(unet, N=3, scheduler=scheduler, **settings) as session:
        cached = denoise(unet, scheduler, sample, tokens(), steps=STEPS)
        report = session.report().to_dict()
    assert (report["full_calls"], report["fallbacks"]) == (4, {})
    assert report["flops_ratio"] > 1
    assert 0 < float((cached - plain).norm() / plain.norm()) < 0.1
    assert torch.equal(denoise(unet, scheduler, sample, tokens(), steps=STEPS), plain)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_kandinsky_3_reads_nothing_of_what_is_dead(depth: int) -> None:
    """At a step predicted by reuse only the live levels run: their first input of the up path is the kept feature."""
    unet: Any = kandinsky3_unet()
    ran: list[str] = []
    for name, block in [*unet.down_blocks.named_children(), *unet.up_blocks.named_children()]:
        block.resnets_in[0].register_forward_hook(lambda *_, name=name: ran.append(name))
    sample = make_inputs()[0]
    with ticache.apply(unet, N=2, schedule="uniform", forecaster="reuse", depth=depth), torch.no_grad():
        full, predicted = (unet(sample, torch.tensor(t), **tokens()).sample for t in (900.0, 900 - 1e-4))
    assert ran[8:] == [str(level) for level in (*range(depth + 1), *range(3 - depth, 4))]
    assert torch.allclose(full, predicted, atol=1e-3, rtol=1e-3)


def test_a_depth_that_kandinsky_3_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="depth must be 0 to 2 for this Kandinsky3UNet, got 3"):
        ticache.apply(kandinsky3_unet(), N=2, schedule="uniform", depth=3)


@pytest.mark.parametrize("component", ["decoder", "image_unet"])
def test_a_unet_by_another_name_is_found_with_its_scheduler(component: str) -> None:
    unet, scheduler = make_unet(), UnCLIPScheduler()
    pipe = SimpleNamespace(**{component: unet, f"{component}_scheduler": scheduler, "prior": nn.Linear(1, 1)})
    assert find_unet(pipe) == (pipe, component, unet)
    assert PipelineInfo(pipe, component=component).scheduler is scheduler
    ticache.apply(pipe, N=3)
    ticache.remove(pipe)
    assert attached_controller(unet) is None


@pytest.mark.parametrize(
    ("name", "component", "advice"),
    [
        ("UNetControlNetXSModel", "unet", r"take a ControlNet in StableDiffusion\(XL\)ControlNetPipeline"),
        ("StableCascadeUNet", "decoder", "run it uncached, or with fewer steps, or cache an SDXL pipeline"),
        ("StableCascadeUNet", "prior", "run it uncached, or with fewer steps, or cache an SDXL pipeline"),
        ("FluxTransformer2DModel", "transformer", r"diffusers' own caches \(`enable_cache`\) or cache-dit"),
        ("UNet1DModel", "unet", "run it uncached, or with fewer steps"),
    ],
)
def test_a_refusal_names_the_model_and_what_to_do(name: str, component: str, advice: str) -> None:
    model = type(name, (nn.Module,), {})()
    with pytest.raises(ValueError, match=rf"^{name} is .*; .*{advice}"):
        ticache.apply(SimpleNamespace(**{component: model}), N=3)


def test_a_unet_outside_pytorch_is_refused_with_what_to_do() -> None:
    class OnnxRuntimeModel:
        pass

    with pytest.raises(ValueError, match=r"runs its UNet as OnnxRuntimeModel, outside PyTorch; load .* PyTorch"):
        ticache.apply(SimpleNamespace(unet=OnnxRuntimeModel()), N=3)


@pytest.mark.parametrize("region", ["face.png", object(), [[0, 1], [0]]])
def test_a_region_that_is_no_mask_is_refused_by_name(region: Any) -> None:
    with pytest.raises(TypeError, match=r"region must be a mask of numbers, a callable `step -> mask`, or None, got"):
        ticache.apply(make_unet(), N=3, num_steps=9, region=region)

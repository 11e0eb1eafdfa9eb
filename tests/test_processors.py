"""Where somebody reads what an attention processor keeps of each call, every call runs; others are cached."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers as real_diffusers
import pytest
import torch
from diffusers.models import attention_processor
from test_pipelines import NO_SAFETY, NO_TEXT, PROMPT, stable_diffusion, vae
from ticache_models import ddim, denoise, make_inputs, make_unet

import ticache
from ticache.processors import keeps_state

diffusers: Any = real_diffusers
MAPS: list[Any] = []
STEPS = 6


class Own(attention_processor.AttnProcessor2_0):
    """A user's, without state."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Stores(Own):
    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = hidden_states
        return super().__call__(attn, hidden_states, *args, **kwargs)


class Shares(Own):
    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}


class Publishes(Own):
    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        MAPS.append(hidden_states)
        return super().__call__(attn, hidden_states, *args, **kwargs)


def closure(store: Any) -> Callable[..., Any]:
    def processor(attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if store is not None:
            store.append(hidden_states)
        return attention_processor.AttnProcessor2_0()(attn, hidden_states, *args, **kwargs)

    return processor


def recursive() -> Callable[..., Any]:
    def processor(*args: Any, **kwargs: Any) -> Any:
        return processor(*args, **kwargs)

    return processor


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def processor(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return processor


@pytest.mark.parametrize(
    ("processor", "keeps"),
    [
        (attention_processor.AttnProcessor(), False),
        (attention_processor.SlicedAttnProcessor(2), False),
        (attention_processor.IPAdapterAttnProcessor2_0(8, 8), False),
        (attention_processor.PAGCFGIdentitySelfAttnProcessor2_0(), False),
        (Own(), False),
        (closure(None), False),
        (wrapped(closure(None)), False),
        (recursive(), False),
        (Stores(), True),
        (Shares(), True),
        (Publishes(), True),
        (closure([]), True),
        (wrapped(closure([])), True),
        (functools.partial(closure(None)), True),
    ],
)
def test_a_processor_that_keeps_something_of_each_call_is_told(processor: Any, keeps: bool) -> None:
    assert keeps_state(processor) == keeps


@pytest.mark.parametrize(("kind", "predicted"), [(Own, STEPS - 3), (Stores, 0), (Publishes, 0)])
def test_a_skipped_module_whose_processor_keeps_state_runs_at_every_step(kind: Any, predicted: int) -> None:
    unet: Any = make_unet()
    scheduler = ddim()
    with ticache.apply(unet, N=2, scheduler=scheduler) as session:
        unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = kind()
        denoise(unet, scheduler, *make_inputs(batch=1), steps=STEPS)
        report = session.report().to_dict()
        assert report["predicted_calls"] == predicted
        why = f"{kind.__name__} keeps what it sees of the attention at every call"
        assert report["unattributed"] == ({} if predicted else {why: STEPS})
        unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = Own()
        denoise(unet, scheduler, *make_inputs(batch=1), steps=STEPS)
        assert session.report().to_dict()["predicted_calls"] == STEPS - 3


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_self_attention_guidance_reads_no_stale_map(guidance: float) -> None:
    pipe = stable_diffusion("StableDiffusionSAGPipeline", image_encoder=None)
    call: dict[str, Any] = {"guidance_scale": guidance, "num_inference_steps": STEPS, "height": 16, "width": 16}

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(**PROMPT, **call, sag_scale=0.75, generator=generator, output_type="latent").images

    plain = run()
    with ticache.apply(pipe, N=2) as session:
        assert torch.equal(run(), plain)
        assert any("CrossAttnStoreProcessor" in why for why in session.report().to_dict()["unattributed"])
    assert torch.equal(run(), plain)


def test_an_editor_that_needs_every_step_is_refused_with_what_to_do() -> None:
    parts = {"unet": make_unet(), "vae": vae(), "scheduler": ddim()} | NO_TEXT | NO_SAFETY
    pipe = diffusers.LEditsPPPipelineStableDiffusion(**parts)
    with pytest.raises(ValueError, match=r"LEditsPPPipelineStableDiffusion .* run it uncached"):
        ticache.apply(pipe, N=2)

"""Real diffusers pipelines from tiny random parts: exact where it must be, cached where it may, else untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers as real_diffusers
import numpy as np
import pytest
import torch
from diffusers.models import attention_processor
from every_pipeline_parts import controlnet, picture, vae
from ticache_models import Recorder, ddim, make_inputs, make_unet
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import ticache
from ticache.schedule import steps_of

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

diffusers: Any = real_diffusers  # tiny parts and absent text encoders are not what its signatures expect
STEPS = 8


def embeds(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (1, 5, 8), generator=torch.Generator().manual_seed(seed))


PROMPT: dict[str, Any] = {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(2)}
NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_SAFETY = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stable_diffusion(kind: str = "StableDiffusionPipeline", **parts: Any) -> Any:
    parts = {"unet": make_unet(), "vae": vae(), "scheduler": ddim()} | NO_TEXT | NO_SAFETY | parts
    return getattr(diffusers, kind)(**parts)


def svd() -> Any:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=112
    )
    decoder = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=decoder.eval(),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        unet=make_unet("spatiotemporal"),
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002
        ),
        feature_extractor=CLIPImageProcessor(crop_size=16, size={"shortest_edge": 16}),
    )


def sdxl(kind: str = "StableDiffusionXLPipeline", **parts: Any) -> Any:
    unet = make_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 * 6 + 8
    )
    none = {"text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    parts = {"unet": unet, "vae": vae(), "scheduler": diffusers.EulerDiscreteScheduler()} | none | parts
    return getattr(diffusers, kind)(**parts)


def t2i_adapter() -> Any:
    return diffusers.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)


POOLED: dict[str, Any] = {"pooled_prompt_embeds": embeds(3, 1, 8), "negative_pooled_prompt_embeds": embeds(4, 1, 8)}

# name -> (how to build it, arguments of its call, number of UNet steps in STEPS)
PIPELINES: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "text to image": (stable_diffusion, {**PROMPT}, STEPS),
    "image to image": (
        lambda: stable_diffusion("StableDiffusionImg2ImgPipeline"),
        {**PROMPT, "image": picture(), "strength": 0.75},
        6,
    ),
    "inpainting": (
        lambda: stable_diffusion("StableDiffusionInpaintPipeline", unet=make_unet(in_channels=9)),
        {**PROMPT, "image": picture(), "mask_image": picture(), "height": 16, "width": 16},
        STEPS,
    ),
    "instructions": (
        lambda: stable_diffusion("StableDiffusionInstructPix2PixPipeline", unet=make_unet(in_channels=8)),
        {**PROMPT, "image": picture()},
        STEPS,
    ),
    "xl": (sdxl, {**PROMPT, **POOLED}, STEPS),
    "control": (
        lambda: stable_diffusion("StableDiffusionControlNetPipeline", controlnet=controlnet()),
        {**PROMPT, "image": picture()},
        STEPS,
    ),
    "two controls": (
        lambda: stable_diffusion("StableDiffusionControlNetPipeline", controlnet=[controlnet(), controlnet(seed=1)]),
        {**PROMPT, "image": [picture(), picture()], "controlnet_conditioning_scale": [0.5, 1.0]},
        STEPS,
    ),
    "control, guessing": (
        lambda: stable_diffusion("StableDiffusionControlNetPipeline", controlnet=controlnet()),
        {**PROMPT, "image": picture(), "guess_mode": True},
        STEPS,
    ),
    "adapter": (
        lambda: stable_diffusion("StableDiffusionAdapterPipeline", adapter=t2i_adapter()),
        {**PROMPT, "image": picture(), "height": 16, "width": 16},
        STEPS,
    ),
    "animation": (
        lambda: diffusers.AnimateDiffPipeline(
            vae=vae(), unet=make_unet("motion"), motion_adapter=None, scheduler=ddim(), **NO_TEXT
        ),
        {**PROMPT, "num_frames": 3},
        STEPS,
    ),
    "animation of a video": (
        lambda: diffusers.AnimateDiffVideoToVideoPipeline(
            vae=vae(), unet=make_unet("motion"), motion_adapter=None, scheduler=ddim(), **NO_TEXT
        ),
        {**PROMPT, "video": [picture()] * 3, "strength": 0.75},
        6,
    ),
    "video from a picture": (svd, {"image": picture(), "height": 16, "width": 16, "num_frames": 3}, STEPS),
    "video from text": (
        lambda: diffusers.TextToVideoSDPipeline(vae=vae(), unet=make_unet("3d"), scheduler=ddim(), **NO_TEXT),
        {**PROMPT, "num_frames": 3},
        STEPS,
    ),
    "unconditional": (lambda: diffusers.DDIMPipeline(make_unet("unconditional"), ddim()), {"output_type": "np"}, STEPS),
}


def run(pipe: Any, steps: int = STEPS, **call: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
    result = pipe(**settings | {"output_type": "latent"} | call)
    found = result[0]
    return torch.as_tensor(np.stack(found) if isinstance(found, list) else found)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_cached_and_restored(name: str) -> None:
    build, call, steps = PIPELINES[name]
    pipe = build()
    plain = run(pipe, **call)
    assert plain.isfinite().all()
    ticache.apply(pipe, N=1)
    assert torch.equal(run(pipe, **call), plain)
    session = ticache.apply(pipe, N=3, order=2)
    cached = run(pipe, **call)
    assert torch.equal(run(pipe, **call), cached)
    report = session.report().to_dict()
    full = list(steps_of("spread", steps, 3))
    assert [stream["full"] for stream in report["streams"]] == [full]
    assert report["predicted_calls"] == steps - len(full)
    assert report["fallbacks"] == report["unattributed"] == {}
    assert report["held_bytes"] == 0
    assert cached.isfinite().all()
    assert not torch.equal(cached, plain)
    assert float((cached - plain).norm() / plain.norm()) < 0.25
    twin = copy.deepcopy(pipe)
    assert torch.equal(run(twin, **call), cached)
    ticache.remove(pipe)
    assert torch.equal(run(pipe, **call), plain)
    assert torch.equal(run(twin, **call), cached)


@pytest.mark.parametrize("name", ["control", "two controls", "control, guessing"])
@pytest.mark.parametrize("settings", [{}, {"cut": "output"}, {"depth": 1}, {"cut": "branches"}])
def test_controlnet_does_not_run_at_a_predicted_step(name: str, settings: dict[str, Any]) -> None:
    build, call, steps = PIPELINES[name]
    pipe = build()
    nets = pipe.controlnet.nets if "two" in name else [pipe.controlnet]
    recorders = [Recorder(net.controlnet_mid_block) for net in nets]
    with ticache.apply(pipe, N=3, order=2, **settings) as session:
        run(pipe, **call)
        assert session.report().to_dict()["full_calls"] == len(steps_of("spread", steps, 3))
    assert [len(recorder.outputs) for recorder in recorders] == [len(steps_of("spread", steps, 3))] * len(nets)


@pytest.mark.parametrize("settings", [{}, {"cut": "output"}, {"depth": 2}])
def test_a_unet_class_of_your_own_goes_with_controlnet(settings: dict[str, Any]) -> None:
    """Such a class's first full call is made again as a predicted one, which reads what ControlNet adds."""
    build, call, steps = PIPELINES["control"]
    pipe = build()
    pipe.unet.__class__ = type("OwnUNet", (real_diffusers.UNet2DConditionModel,), {"__module__": __name__})
    with ticache.apply(pipe, N=3, **settings) as session:
        run(pipe, **call)
        assert session.report().to_dict()["full_calls"] == len(steps_of("spread", steps, 3))


def test_the_live_residual_of_controlnet_is_predicted_like_a_site() -> None:
    """With reuse everywhere, what the last layer reads at a predicted step is the residual of the last full step."""
    pipe = PIPELINES["control"][0]()
    read: list[Tensor] = []
    pipe.unet.up_blocks[-1].register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(kwargs["res_hidden_states_tuple"][0].clone()), with_kwargs=True
    )
    conv_in = Recorder(pipe.unet.conv_in)
    with ticache.apply(pipe, N=4, forecaster="reuse", schedule="uniform"):
        run(pipe, **PIPELINES["control"][1])
    added = [skip - own for skip, own in zip(read, conv_in.outputs, strict=True)]
    for step in range(8):
        assert torch.allclose(added[step], added[step // 4 * 4], atol=5e-5)  # a difference of numbers of about 100
    assert not torch.allclose(added[0], added[4], atol=1e-4)


def test_a_change_of_controlnets_scale_is_a_full_step() -> None:
    """control_guidance_end switches it off midway: nothing may be predicted across the switch."""
    pipe = PIPELINES["control"][0]()
    with ticache.apply(pipe, N=4, order=1) as session:
        run(pipe, **PIPELINES["control"][1], control_guidance_end=0.5)
        report = session.report().to_dict()
    assert 4 in report["streams"][0]["full"]
    assert 4 not in steps_of("spread", 8, 4)
    assert report["fallbacks"] == {"ControlNet's scale changed": 1}


def test_interrupted_runs_leave_nothing_to_the_next() -> None:
    """Five runs with fresh prompts, each stopped in the middle, as the button of a user interface does."""
    pipe = stable_diffusion()

    def stop(pipe: Any, step: int, _timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 3
        return values

    held = []
    with ticache.apply(pipe, N=3) as session:
        for seed in range(5):
            run(pipe, prompt_embeds=embeds(seed), negative_prompt_embeds=embeds(9), callback_on_step_end=stop)
            held.append(session.report().to_dict()["held_bytes"])
        assert held[0] > 0
        assert held == [held[0]] * 5
        run(pipe, **PROMPT)
        assert session.report().to_dict()["held_bytes"] == 0


def test_image_to_image_with_another_strength_and_size() -> None:
    pipe = PIPELINES["image to image"][0]()
    with ticache.apply(pipe, N=2) as session:
        for strength, size, steps in [(0.5, 16, 4), (0.75, 16, 6), (0.75, 32, 6), (1.0, 16, 8)]:
            run(pipe, **PROMPT, image=picture(size), strength=strength)
            report = session.report().to_dict()
            assert report["streams"][0]["full"] == list(steps_of("spread", steps, 2))
            assert report["fallbacks"] == report["unattributed"] == {}


def test_a_base_model_that_hands_over_to_a_refiner_knows_its_end() -> None:
    pipe = sdxl()
    with ticache.apply(pipe, N=3) as session:
        run(pipe, **PROMPT, **POOLED, denoising_end=0.5)
        (stream,) = session.report().to_dict()["streams"]
    assert stream["num_steps"] == 4
    assert stream["full"] == list(steps_of("spread", 4, 3))


@pytest.mark.parametrize("settings", [{}, {"cut": "output"}, {"depth": 2}, {"cut": "branches", "resnets": True}])
def test_free_u_writes_in_place_and_harms_nothing(settings: dict[str, Any]) -> None:
    """With two up blocks FreeU reaches the last one; what is kept must be the feature before it is written into."""
    pipe = stable_diffusion()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    plain = run(pipe, **PROMPT)
    with ticache.apply(pipe, N=1, **settings):
        assert torch.equal(run(pipe, **PROMPT), plain)
    with ticache.apply(pipe, N=2, order=2, **settings) as session:
        cached = run(pipe, **PROMPT)
        assert session.report().to_dict()["predicted_calls"] == 4
    assert float((cached - plain).norm() / plain.norm()) < 0.25
    assert torch.equal(run(pipe, **PROMPT), plain)
    sample, conditions = make_inputs()
    with ticache.apply(pipe.unet, N=2, schedule="uniform", forecaster="reuse", **settings), torch.no_grad():
        # Two timesteps that are all but the same: the predicted call must repeat the full one.
        full, predicted = (pipe.unet(sample, torch.tensor(t), **conditions).sample for t in (900.0, 900 - 1e-4))
    assert torch.allclose(full, predicted, atol=1e-3, rtol=1e-3)


def lora(pipe: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


def slicing(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def channels_last(pipe: Any) -> None:
    pipe.unet.to(memory_format=torch.channels_last)


def bfloat16(pipe: Any) -> None:
    pipe.to(torch.bfloat16)


def ip_adapter(pipe: Any) -> None:
    torch.manual_seed(0)
    keys = [name for name in pipe.unet.attn_processors if "attn2" in name]
    adapter = {}
    for number, name in enumerate(keys):
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        adapter[f"{2 * number + 1}.to_k_ip.weight"] = torch.randn(width, 8)
        adapter[f"{2 * number + 1}.to_v_ip.weight"] = torch.randn(width, 8)
    projection = {
        "proj.weight": torch.randn(32, 6),
        "proj.bias": torch.zeros(32),
        "norm.weight": torch.ones(8),
        "norm.bias": torch.zeros(8),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}], low_cpu_mem_usage=False)


@pytest.mark.parametrize("change", [lora, slicing, channels_last, bfloat16, ip_adapter])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("cut", ["outer", "output", "branches"])
def test_what_is_done_to_a_pipeline_before_or_after(change: Callable[[Any], None], before: bool, cut: str) -> None:
    pipe, other = stable_diffusion(), stable_diffusion()
    call = dict(PROMPT)
    if change is ip_adapter:
        call["ip_adapter_image_embeds"] = [embeds(5, 2, 1, 6)]
    change(other)
    plain = run(other, **call)
    if before:
        change(pipe)
    session = ticache.apply(pipe, N=3, cut=cut)
    if not before:
        change(pipe)
    cached = run(pipe, **call)
    assert torch.equal(run(pipe, **call), cached)
    assert session.report().to_dict()["predicted_calls"] == STEPS - 3
    assert session.report().to_dict()["fallbacks"] == {}
    ticache.remove(pipe)
    assert torch.equal(run(pipe, **call), plain)


def at_step(step: int, change: Callable[[Any], None]) -> Callable[..., dict[str, Any]]:
    """A callback that changes the pipeline once a step has ended."""

    def callback(pipe: Any, ended: int, _timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if ended == step:
            change(pipe)
        return values

    return callback


ADAPTER_CHANGES: dict[str, tuple[Callable[[Any], None] | None, Callable[[Any], None]]] = {
    "IP-Adapter's scale": (ip_adapter, lambda pipe: pipe.set_ip_adapter_scale(0.0)),
    "LoRA off": (lora, lambda pipe: pipe.unet.disable_adapters()),
    "LoRA's scale": (lora, lambda pipe: pipe.unet.set_adapters(["default"], [0.3])),
    "LoRA loaded": (None, lambda pipe: lora(pipe)),
    "attention processors": (None, lambda pipe: pipe.unet.set_attn_processor(attention_processor.AttnProcessor())),
}


@pytest.mark.parametrize("name", ADAPTER_CHANGES)
@pytest.mark.parametrize("last", [2, 3])
def test_a_change_of_adapters_is_a_full_step_and_a_fresh_history(name: str, last: int) -> None:
    """Also where the step is full by the schedule: what follows must not be predicted from before the change."""
    load, change = ADAPTER_CHANGES[name]
    pipe = stable_diffusion()
    if load is not None:
        load(pipe)
    with ticache.apply(pipe, schedule=[0, 1, 4, 6], order=1) as session:
        run(pipe, **PROMPT, **adapter_call(pipe), callback_on_step_end=at_step(last, change))
        report = session.report().to_dict()
    assert report["streams"][0]["full"] == sorted({0, 1, 4, 6, last + 1})
    assert report["fallbacks"] == {"an adapter or its scale changed": 1}


def replacing(step: int, change: Callable[[Tensor], Tensor]) -> Callable[..., dict[str, Any]]:
    """A callback that gives other latents back at one step."""

    def callback(_pipe: Any, ended: int, _timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": change(values["latents"])} if ended == step else {}

    return callback


INPAINTING: dict[str, Any] = {"image": picture(), "mask_image": picture(), "height": 16, "width": 16, "strength": 1.0}


@pytest.mark.parametrize(
    ("kind", "change", "forced"),
    [
        ("StableDiffusionPipeline", lambda latents: latents + 1, [5]),
        ("StableDiffusionPipeline", lambda latents: latents.mul_(2), [5]),
        ("StableDiffusionPipeline", lambda latents: latents, []),
        ("StableDiffusionInpaintPipeline", lambda latents: latents, []),
    ],
)
def test_latents_that_a_callback_gives_back_are_a_full_step(
    kind: str, change: Callable[[Tensor], Tensor], forced: list[int]
) -> None:
    """Inpainting with a UNet of four channels blends latents of its own at every step, and stays cached."""
    pipe = stable_diffusion(kind)
    call = PROMPT | (INPAINTING if "Inpaint" in kind else {})
    with ticache.apply(pipe, schedule=[0, 1], order=1) as session:
        run(pipe, **call, callback_on_step_end=replacing(4, change))
        report = session.report().to_dict()
    assert report["streams"][0]["full"] == [0, 1, *forced]
    assert sum(report["fallbacks"].values()) == len(forced)


def adapter_call(pipe: Any) -> dict[str, Any]:
    ip = getattr(pipe.unet, "encoder_hid_proj", None) is not None
    return {"ip_adapter_image_embeds": [embeds(5, 2, 1, 6)]} if ip else {}


def test_an_adapter_that_ends_midway_is_a_full_step() -> None:
    pipe = sdxl("StableDiffusionXLAdapterPipeline", adapter=t2i_adapter())
    with ticache.apply(pipe, schedule=[0, 1], order=1) as session:
        run(pipe, **PROMPT, **POOLED, image=picture(), height=16, width=16, adapter_conditioning_factor=0.5)
        report = session.report().to_dict()
    assert report["streams"][0]["full"] == [0, 1, 4]
    assert report["fallbacks"] == {"an adapter or its scale changed": 1}


@pytest.mark.parametrize(("scales", "changes"), [([0.7] * 8, 0), ([0.7] * 3 + [0.2] * 5, 1)])
def test_a_scale_of_lora_may_come_with_each_call(scales: list[float], changes: int) -> None:
    """diffusers multiplies the layers' scales by it, and divides them again after the call."""
    pipe = stable_diffusion()
    lora(pipe)
    sample, conditions = make_inputs(batch=1)
    pipe.scheduler.set_timesteps(8)
    with ticache.apply(pipe, N=3) as session, torch.no_grad():
        for timestep, scale in zip(pipe.scheduler.timesteps, scales, strict=True):
            pipe.unet(sample, timestep, **conditions, cross_attention_kwargs={"scale": scale})
        report = session.report().to_dict()
    assert sum(report["fallbacks"].values()) == changes
    assert report["predicted_calls"] == 5 - changes


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ["text to image", "control"])
def test_offloading_hooks_come_and_go(first: bool, sequential: bool, name: str) -> None:
    """As enable_model_cpu_offload does it: hooks are taken off and put on again after every call of the pipeline."""
    import accelerate
    from accelerate.hooks import remove_hook_from_module

    build, call, steps = PIPELINES[name]
    pipe = build()
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]

    def offload() -> None:
        for model in models:
            if sequential:
                accelerate.cpu_offload(model, torch.device("cpu"))
            else:
                accelerate.cpu_offload_with_hook(model, torch.device("cpu"))

    plain = run(pipe, **call)
    if first:
        session = ticache.apply(pipe, N=3)
        offload()
    else:
        offload()
        session = ticache.apply(pipe, N=3)
    cached = plain
    for _ in range(3):
        cached = run(pipe, **call)
        assert session.report().to_dict()["predicted_calls"] == steps - 3
        for model in models:
            remove_hook_from_module(model, recurse=True)
        offload()
    ticache.remove(pipe)
    assert torch.equal(run(pipe, **call), plain)
    for model in models:
        remove_hook_from_module(model, recurse=True)
    assert torch.equal(run(pipe, **call), plain)
    assert not torch.equal(cached, plain)


def test_an_exchanged_scheduler_is_followed() -> None:
    pipe = stable_diffusion()
    with ticache.apply(pipe, N=3) as session:
        first = pipe.scheduler
        run(pipe, **PROMPT)
        pipe.scheduler = diffusers.UniPCMultistepScheduler()
        run(pipe, 10, **PROMPT)
        assert session.report().to_dict()["streams"][0]["full"] == list(steps_of("spread", 10, 3))
        assert "step" not in vars(first)
    assert "step" not in vars(pipe.scheduler)


def test_an_exchanged_unet_is_said() -> None:
    pipe = stable_diffusion()
    session = ticache.apply(pipe, N=3)
    pipe.unet = make_unet()
    with pytest.warns(UserWarning, match=r"pipe.unet was replaced after ticache.apply"):
        run(pipe, **PROMPT)
    assert "was replaced" in repr(session)
    assert "was replaced" in str(session.report())
    assert ticache.apply(pipe, N=3).active


def test_exchanged_modules_are_hooked_again() -> None:
    """As FreeNoise's split inference exchanges motion modules inside a UNet."""
    pipe = PIPELINES["animation"][0]()
    with ticache.apply(pipe, N=3) as session:
        run(pipe, **PROMPT, num_frames=3)
        block = pipe.unet.up_blocks[-1]
        fresh: Any = make_unet("motion")
        block.motion_modules[0] = fresh.up_blocks[-1].motion_modules[0]
        recorder = Recorder(block.motion_modules[0].proj_out)
        run(pipe, **PROMPT, num_frames=3)
        assert len(recorder.outputs) == 3
        report = session.report().to_dict()
        assert report["predicted_calls"] == STEPS - 3
        assert report["flops_ratio"] > 1.5


def test_a_second_pipeline_that_shares_the_unet_sees_one_cache(caplog: pytest.LogCaptureFixture) -> None:
    pipe = stable_diffusion()
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    first = ticache.apply(pipe, N=3)
    second = ticache.apply(other, N=3)
    assert "shared" in caplog.text
    assert not first.active
    run(pipe, **PROMPT)
    assert second.report().to_dict()["predicted_calls"] == STEPS - 3
    ticache.remove(pipe)
    assert not second.active


def test_what_is_no_unet_is_refused_with_what_and_why() -> None:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, norm_num_groups=4
    )
    before = set(vars(transformer))
    with pytest.raises(ValueError, match=r"DiTTransformer2DModel is a transformer .* ticache caches UNets"):
        ticache.apply(transformer, N=3, num_steps=8)
    assert set(vars(transformer)) == before
    with pytest.raises(ValueError, match="expected a diffusers pipeline with a UNet, or a UNet, got int"):
        ticache.apply(3)
    with pytest.raises(ValueError, match="the number of steps is unknown"):
        ticache.apply(make_unet(), N=3)
    with pytest.raises(ValueError, match="depth must be 0 to 3 for this UNet2DConditionModel, got 4"):
        ticache.apply(stable_diffusion(), depth=4)
    with pytest.raises(TypeError, match="config must be a CacheConfig, got int"):
        ticache.apply(stable_diffusion(), 3)  # pyright: ignore[reportArgumentType]
    ticache.remove(make_unet())
    ticache.remove(3)

"""The E-Adapter: the equation, the files that any diffusers loads, and what happens where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from emoji_parts import load_adapters
from torch.nn import functional as F

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.errors import UserError

CROSS, IDENTITY, STATES = 32, 16, 24
PLAIN: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": CROSS,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def small_unet(**more: Any) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(**(PLAIN | more)).eval()


def hung(unet: Any) -> Any:
    """A UNet with both branches, their weights random (at first keys and values are the text's)."""
    torch.manual_seed(1)
    adapter.attach(
        unet, [adapter.identity_projection(CROSS, IDENTITY), adapter.expression_projection(CROSS, STATES, 64)]
    )
    for branch in (0, 1):
        for weight in adapter.branch_parameters(unet, branch):
            torch.nn.init.normal_(weight, std=0.2)
    return unet


def embeds(batch: int = 2) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(2)
    return [torch.randn(batch, 1, IDENTITY, generator=made), torch.randn(batch, 1, 5, STATES, generator=made)]


def run(unet: Any, given: list[torch.Tensor] | None) -> torch.Tensor:
    made = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 4, 8, 8, generator=made), torch.randn(2, 6, CROSS, generator=made)
    conditions = None if given is None else {"image_embeds": given}
    with torch.no_grad():
        return unet(latents, 500, encoder_hidden_states=text, added_cond_kwargs=conditions).sample


def test_attention_is_equation_5() -> None:
    unet = hung(small_unet())
    attention = next(iter(adapter.cross_attentions(unet).values()))
    adapter.set_scales(unet, [0.7, 1.3])
    width, heads = attention.to_q.in_features, attention.heads
    hidden, text = torch.randn(2, 16, width), torch.randn(2, 6, CROSS)
    tokens = [torch.randn(2, 1, n, CROSS) for n in (adapter.IDENTITY_TOKENS, adapter.EXPRESSION_TOKENS)]

    def attend(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        split = [x.view(2, -1, heads, width // heads).transpose(1, 2) for x in (attention.to_q(hidden), key, value)]
        weights = (split[0] @ split[1].transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        return (weights @ split[2]).transpose(1, 2).reshape(2, -1, width)

    with torch.no_grad():
        found = attention(hidden, encoder_hidden_states=(text, tokens))
        summed = attend(attention.to_k(text), attention.to_v(text))
        for branch, scale in enumerate((0.7, 1.3)):
            own, processor = tokens[branch][:, 0], attention.processor
            summed = summed + scale * attend(processor.to_k_ip[branch](own), processor.to_v_ip[branch](own))
        wanted = attention.to_out[0](summed)
    assert (found - wanted).abs().max() <= 1e-6


def test_a_branch_of_scale_zero_changes_no_bit() -> None:
    unet = small_unet()
    plain = run(unet, None)
    hung(unet)
    assert not torch.equal(run(unet, embeds()), plain)
    adapter.set_scales(unet, [0.0, 0.0])
    assert torch.equal(run(unet, embeds()), plain)


def test_taken_off_it_is_the_unet_that_was() -> None:
    unet = small_unet()
    plain = run(unet, None)
    hung(unet)
    with pytest.raises(ValueError, match="IP-Adapters already"):
        hung(unet)
    adapter.detach(unet)
    assert torch.equal(run(unet, None), plain)


def test_the_expression_acts_in_its_layers_only() -> None:
    unet = hung(small_unet())
    groups = adapter.groups_of(unet)
    assert groups == ["down_blocks.0.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1",
                      "mid_block.attentions.0"]  # fmt: skip
    adapter.set_scales(unet, [1.0, 1.0], layers=groups[1:2])
    scales = {name: attention.processor.scale for name, attention in adapter.cross_attentions(unet).items()}
    acting = [name for name, scale in scales.items() if scale[1]]
    assert [adapter.group_of(name) for name in acting] == groups[1:2]
    assert all(scale[0] == 1.0 for scale in scales.values())


def small_vae() -> AutoencoderKL:
    torch.manual_seed(4)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8).eval()


def written(unet: Any, folder: Path) -> None:
    """Both branches into files; the UNet goes on with what the files hold, rounded to float16."""
    for branch, name in enumerate(("identity.safetensors", "expression.safetensors")):
        projection = unet.encoder_hid_proj.image_projection_layers[branch]
        rounded = {key: value.half().float() for key, value in projection.state_dict().items()}
        adapter.write_branch(folder / name, unet, branch)
        adapter.load_branch(unet, branch, adapter.read_branch(folder / name))
        assert all(torch.equal(value, rounded[key]) for key, value in projection.state_dict().items())


def picture(pipe: Any, **more: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        ip_adapter_image_embeds=embeds(),
        output_type="np",
        **more,
    )
    return np.asarray(made.images if hasattr(made, "images") else made.frames)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "animatediff"])
def test_the_files_load_into_an_untouched_diffusers(kind: str, tmp_path: Path) -> None:
    text = {name: torch.randn(1, 6, CROSS) for name in ("prompt_embeds", "negative_prompt_embeds")}
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)

    def build() -> Any:
        parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "feature_extractor", "image_encoder"))
        parts |= {"vae": small_vae(), "scheduler": scheduler}
        if kind == "sdxl":
            more = {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 24 + 6 * 4,
            }
            parts |= {"unet": small_unet(**more), "text_encoder_2": None, "tokenizer_2": None}
            return StableDiffusionXLPipeline(**parts, add_watermarker=False)
        if kind == "animatediff":
            torch.manual_seed(6)
            motion = MotionAdapter(
                block_out_channels=(8, 16),
                motion_layers_per_block=1,
                motion_norm_num_groups=4,
                motion_num_attention_heads=2,
            )
            parts |= {"unet": UNetMotionModel.from_unet2d(small_unet(), motion), "motion_adapter": motion}
            return AnimateDiffPipeline(**parts)
        parts |= {"unet": small_unet(), "safety_checker": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**parts)

    more: dict[str, Any] = {**text, "height": 8, "width": 8}
    if kind == "sdxl":
        more |= {name: torch.randn(1, 24) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
    if kind == "animatediff":
        more |= {"num_frames": 3}
    ours, theirs = build(), build()
    theirs.unet.load_state_dict(ours.unet.state_dict())
    hung(ours.unet)
    written(ours.unet, tmp_path)
    load_adapters(theirs, tmp_path)
    found, wanted = picture(ours, **more), picture(theirs, **more)
    assert np.abs(found - wanted).max() <= 1e-6
    adapter.set_scales(ours.unet, [1.0, 0.0])
    assert np.abs(picture(ours, **more) - wanted).max() > 1e-4, "the expression branch does nothing"


# Of h94's ip-adapter-faceid_sd15 and ip-adapter-plus_sd15: first and last cross-attention, and the projections.
PUBLISHED_FACE_ID = {
    "image_proj.proj.0.weight": (1024, 512),
    "image_proj.proj.2.weight": (4 * 768, 1024),
    "image_proj.norm.weight": (768,),
    "ip_adapter.1.to_k_ip.weight": (320, 768),
    "ip_adapter.31.to_v_ip.weight": (1280, 768),
}
PUBLISHED_PLUS = {
    "image_proj.latents": (1, 16, 768),
    "image_proj.proj_in.weight": (768, 1280),
    "image_proj.proj_out.weight": (768, 768),
    "image_proj.norm_out.bias": (768,),
    "image_proj.layers.3.0.norm1.weight": (768,),
    "image_proj.layers.3.0.norm2.bias": (768,),
    "image_proj.layers.0.0.to_q.weight": (768, 768),
    "image_proj.layers.0.0.to_kv.weight": (1536, 768),
    "image_proj.layers.0.0.to_out.weight": (768, 768),
    "image_proj.layers.0.1.0.weight": (768,),
    "image_proj.layers.0.1.1.weight": (3072, 768),
    "image_proj.layers.0.1.3.weight": (768, 3072),
    "ip_adapter.1.to_k_ip.weight": (320, 768),
    "ip_adapter.31.to_v_ip.weight": (1280, 768),
}


def test_published_sizes_have_the_published_names() -> None:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        adapter.attach(unet, [adapter.identity_projection(768), adapter.expression_projection(768)])
    state = {k: tuple(v.shape) for k, v in adapter.branch_state(unet, 0).items()}
    assert PUBLISHED_FACE_ID.items() <= state.items()
    assert len(state) == 6 + 32
    state = {k: tuple(v.shape) for k, v in adapter.branch_state(unet, 1).items()}
    assert PUBLISHED_PLUS.items() <= state.items()
    assert len(state) == 7 + 4 * 11 + 32


def test_sdxl_has_eleven_groups_and_seventy_layers() -> None:
    with torch.device("meta"):
        shape: dict[str, Any] = {
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        }
        unet: Any = UNet2DConditionModel(**shape, cross_attention_dim=2048, use_linear_projection=True)
        layers, groups = adapter.cross_attentions(unet), adapter.groups_of(unet)
        adapter.attach(unet, [adapter.identity_projection(2048), adapter.expression_projection(2048)])
    assert len(layers) == 70
    assert len(groups) == 11
    assert sum(adapter.group_of(name) in adapter.SDXL_LAYERS for name in layers) == 10


def test_gradients_reach_a_branch_and_nothing_else() -> None:
    unet = hung(small_unet()).requires_grad_(False)
    chosen = adapter.branch_parameters(unet, 1)
    for weight in chosen:
        weight.requires_grad_(True)
    made = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 4, 8, 8, generator=made), torch.randn(2, 6, CROSS, generator=made)
    out = unet(latents, 500, encoder_hidden_states=text, added_cond_kwargs={"image_embeds": embeds()}).sample
    F.mse_loss(out, torch.ones_like(out)).backward()
    with_gradient = [w for w in unet.parameters() if w.grad is not None]
    assert {id(w) for w in with_gradient} == {id(w) for w in chosen}
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in chosen)


def test_a_file_for_another_base_is_refused_before_anything_changes(tmp_path: Path) -> None:
    other = hung(small_unet(layers_per_block=2))
    adapter.write_branch(tmp_path / "expression.safetensors", other, 1)
    unet = hung(small_unet())
    before = run(unet, embeds())
    with pytest.raises(UserError, match=r"expression.safetensors does not fit this base model: .* another one"):
        state = adapter.read_branch(tmp_path / "expression.safetensors")
        adapter.load_branch(unet, 1, state, "expression.safetensors")
    assert torch.equal(run(unet, embeds()), before)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        adapter.read_branch(tmp_path / "gone.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(UserError, match="cannot be read"):
        adapter.read_branch(tmp_path / "half.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no IP-Adapter file"):
        adapter.read_branch(tmp_path / "other.safetensors")


def test_four_pooled_tokens_are_the_plain_adapter(tmp_path: Path) -> None:
    unet = small_unet()
    projections = [
        adapter.identity_projection(CROSS, IDENTITY), adapter.expression_projection(CROSS, STATES, tokens=4)
    ]  # fmt: skip
    adapter.attach(unet, projections)
    written(unet, tmp_path)
    state = adapter.read_branch(tmp_path / "expression.safetensors")
    assert state["image_proj.proj.weight"].shape == (4 * CROSS, STATES)
    again = small_unet()
    adapter.attach(again, [adapter.identity_projection(CROSS, IDENTITY), adapter.projection_of(again, state)])
    adapter.load_branch(again, 1, state)


def test_a_width_that_loaders_would_misread_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        adapter.expression_projection(CROSS, STATES, 96)

"""A tiny Wan pipeline with random weights, and expression branches that do something."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fye_pipeline.multi_portrait.expression import BlendshapeExtractor
from fye_pipeline.multi_portrait.expression_encoder import ExpressionEncoder
from fye_pipeline.multi_portrait.wan import WanExpression

DIMS = {"head": 6, "eye": 6, "emotion": 8, "lip": 12}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transformer(seed: int = 0, layers: int = 2) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=layers,
            image_dim=16,
            added_kv_proj_dim=48,
        ).eval()


def encoder(seed: int = 0, dims: Mapping[str, int] = DIMS) -> ExpressionEncoder:
    widths: dict[str, Any] = {f"{name}_dim": dim for name, dim in dims.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ExpressionEncoder(
            **widths,
            width=16,
            queries=(4, 2),
            resampler_dim=8,
            resampler_depth=2,
            resampler_heads=2,
            resampler_head_dim=4,
        ).eval()


def trained(host: Any, dims: Mapping[str, int] = DIMS) -> WanExpression:
    """Branches that do something."""
    made = WanExpression(host, encoder(dims=dims))
    for number, processor in enumerate(made.adapter.processors.values()):
        torch.nn.init.normal_(processor.to_v.weight, std=0.5, generator=torch.Generator().manual_seed(number))
    return made


def pipeline(host: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
        vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
        image_encoder = CLIPVisionModel(config).eval()
    pipe = WanImageToVideoPipeline(
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        image_processor=CLIPImageProcessorPil(  # pyright: ignore[reportArgumentType]
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        image_encoder=image_encoder,
        transformer=host,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_wan(folder: Path, layers: int = 2) -> Path:
    """A pipeline folder with an adapter that takes what MediaPipe tells of a face."""
    host = transformer(layers=layers)
    pipe = pipeline(host)
    pipe.save_pretrained(folder)
    trained(host, BlendshapeExtractor.dims).save(folder)
    return folder

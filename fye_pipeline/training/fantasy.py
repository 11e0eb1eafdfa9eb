"""Training of FantasyPortrait's adapter on Wan: flow matching, everything but the adapter frozen.

The recipe is the paper's as far as it says: lr 1e-4, references and expressions left out 20 % of the time, 81 frames.
It was never run at its size here; `rehearse` runs the same steps on a tiny random Wan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fye_pipeline.animate.session import LazyDetector, choose_device
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.expression import FACTORS, BlendshapeExtractor
from fye_pipeline.multi_portrait.expression_encoder import ExpressionEncoder
from fye_pipeline.multi_portrait.extractors import extractor_named
from fye_pipeline.multi_portrait.wan import WanExpression
from fye_pipeline.multi_portrait.wan_model import TEXT_TOKENS, choose_dtype, load_pipeline
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import write_json
from fye_pipeline.training.checkpointing import Progress, load_checkpoint, save_checkpoint
from fye_pipeline.training.fantasy_data import Clips, PeopleClip, RenderedPairs, VideoClips

NAME = "fantasy-14b"
STATES = "states"
ADAPTER = "adapter"
# Wan 2.1's image-to-video transformer of 14 B values, as its config.json says.
WAN_14B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
}


@dataclass(frozen=True)
class FantasyConfig:
    """frames: of a clip, 4 k + 1. size: pixels of the shorter side. dropout: of reference and of expression, each.

    extractor: whose features the encoder takes. Steps are ours; the paper says three days on 24 GPUs.
    """

    steps: int = 20_000
    lr: float = 1e-4
    frames: int = 81
    size: int = 480
    dropout: float = 0.2
    clip_norm: float = 1.0
    extractor: str = "pdfgc"
    seed: int = 0
    checkpoint_every: int = 500


@dataclass(frozen=True)
class Sizes:
    """How many values there are: of the frozen transformer, of the branches' keys and values, of the encoder."""

    transformer: int
    branches: int
    encoder: int

    def __str__(self) -> str:
        return (
            f"transformer {self.transformer / 1e9:.1f} B values (frozen), expression branches "
            f"{self.branches / 1e6:.0f} M, encoder {self.encoder / 1e6:.0f} M"
        )


def construct() -> Sizes:
    """The whole model at its published size, without memory for it (torch's meta device)."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        transformer = WanTransformer3DModel(**WAN_14B)
        frozen = sum(value.numel() for value in transformer.parameters())
        made = WanExpression(transformer, ExpressionEncoder())
    branches, encoder = (sum(value.numel() for value in each.parameters()) for each in (made.adapter, made.encoder))
    return Sizes(frozen, branches, encoder)


class FlowMatching:
    """One training step of the adapter on a pipeline: what the transformer must predict is noise less video."""

    def __init__(self, pipe: Any, expression: WanExpression, config: FantasyConfig) -> None:
        self.pipe, self.expression, self.config = pipe, expression, config
        pipe.transformer.requires_grad_(False)
        self.trained = [*expression.adapter.parameters(), *expression.encoder.parameters()]
        for value in self.trained:
            value.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.lr)

    def step(self, clip: PeopleClip, generator: torch.Generator) -> float:
        """Train on one clip. -> its loss. Raises FloatingPointError where that is not finite."""
        with self.loss(clip, generator) as loss:
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {loss.item()}; lower the rate")
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @contextmanager
    def loss(self, clip: PeopleClip, generator: torch.Generator) -> Iterator[Tensor]:
        """Mean squared error of the predicted velocity at a time whose logit is normal (Esser et al., 2024).

        For the length of a block: with gradient checkpointing the backward pass looks at the expressions once more.
        """
        pipe, transformer = self.pipe, self.pipe.transformer
        device, dtype = transformer.device, transformer.dtype
        video = (
            torch.from_numpy(clip.frames).to(device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        )  # [1, 3, F, H, W]
        with torch.no_grad():
            latents = self._normed(pipe.vae.encode(video.to(pipe.vae.dtype)).latent_dist.mode().float())
            condition, seen = self._reference(video, clip, generator)
        sigma = torch.randn((), generator=generator).sigmoid().to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy = (1 - sigma) * latents + sigma * noise
        keeps_reference, keeps_expression = (torch.rand(2, generator=generator) >= self.config.dropout).tolist()
        if not keeps_reference:
            condition, seen = torch.zeros_like(condition), None if seen is None else torch.zeros_like(seen)
        scale = float(keeps_expression)
        with self.expression.given(clip.features, clip.masks.to(device), scale=scale):
            (made,) = transformer(
                hidden_states=torch.cat([noisy, condition], dim=1).to(dtype),
                timestep=(sigma * 1000)[None],
                encoder_hidden_states=self._prompt().to(device, dtype),
                encoder_hidden_states_image=seen,
                return_dict=False,
            )
            yield functional.mse_loss(made.float(), noise - latents)

    def _normed(self, latents: Tensor) -> Tensor:
        config = self.pipe.vae.config
        mean, spread = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) / spread

    def _reference(self, video: Tensor, clip: PeopleClip, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The first frame as the pipeline gives it to the transformer: latents with their mask, and what CLIP sees."""
        pipe, frames, size = self.pipe, video.shape[2], video.shape[3:]
        _, condition = pipe.prepare_latents(
            video[:, :, 0], 1, pipe.vae.config.z_dim, *size, frames, torch.float32, video.device, generator
        )
        if pipe.transformer.config.image_dim is None:
            return condition, None
        seen = pipe.encode_image(Image.fromarray(clip.frames[0]), video.device)
        return condition, seen.to(pipe.transformer.dtype)

    def _prompt(self) -> Tensor:
        """The empty prompt, as zeros: it is the same in training and in animation without a text encoder."""
        return torch.zeros(1, TEXT_TOKENS, self.pipe.transformer.config.text_dim)


def run_steps(matching: FlowMatching, clips: Clips, first: int, last: int) -> list[float]:
    """Train from one step to another; each step's chance is its own, so that a resumed run is the unbroken one."""
    config = matching.config
    losses = []
    for step in range(first, last):
        random = np.random.default_rng((config.seed, step))
        generator = torch.Generator("cpu").manual_seed(int(random.integers(2**63)))
        losses.append(matching.step(clips.draw(random, config.frames), generator))
    return losses


def rehearse(steps: int = 2) -> list[float]:
    """So many steps on a tiny random Wan and two rendered heads. -> their losses."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanImageToVideoPipeline,
        WanTransformer3DModel,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2}
        transformer = WanTransformer3DModel(in_channels=36, text_dim=16, freq_dim=16, **tiny)
        nothing: Any = None
        pipe = WanImageToVideoPipeline(
            tokenizer=nothing,
            text_encoder=nothing,
            vae=AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            transformer=transformer,
        )
        widths: dict[str, Any] = {f"{name}_dim": BlendshapeExtractor.dims[name] for name in FACTORS}
        encoder = ExpressionEncoder(
            **widths,
            width=16,
            queries=(4, 2),
            resampler_dim=8,
            resampler_depth=1,
            resampler_heads=2,
            resampler_head_dim=4,
        )
        expression = WanExpression(transformer, encoder)
    matching = FlowMatching(pipe, expression, FantasyConfig(frames=5, size=64))
    return run_steps(matching, RenderedPairs(BlendshapeExtractor(), 64, pipe.vae_scale_factor_spatial), 0, steps)


def train_fantasy(
    init: Path,
    dataset: Path,
    output: Path,
    config: FantasyConfig,
    *,
    weights: Path | None = None,
    face_landmarker: Path | None = None,
    device: str = "auto",
    max_steps: int | None = None,
    resume: bool = False,
) -> Path:
    """Train an adapter on a folder with Wan's pipeline and the videos that `fye prepare --people` chose. -> its folder.

    weights: of the extractor `pdfgc`. output: gets `adapter` (which `fye animate --model` finds in the model's folder),
    landmarks of the videos, `log.jsonl`, and what a resumed run goes on from. max_steps: in all.
    Raises `UserError` where an input does not fit, or `output` holds a run and `resume` is not set.
    """
    if (output / "config.json").exists() and not resume:
        raise UserError(f"{output} already holds a training run; continue it with --resume or choose another folder.")
    extractor = extractor_named(config.extractor, weights)
    at = choose_device(device)
    pipe = load_pipeline(init, choose_dtype("auto", at)).to(at)
    widths: dict[str, Any] = {f"{name}_dim": extractor.dims[name] for name in FACTORS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        expression = WanExpression(pipe.transformer, ExpressionEncoder(**widths))
    torch.nn.Module.to(expression.encoder, at, pipe.transformer.dtype)
    pipe.transformer.enable_gradient_checkpointing()
    matching = FlowMatching(pipe, expression, config)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", asdict(config))
    accelerator, progress = Accelerator(cpu=at.type == "cpu"), Progress()
    branches = torch.nn.ModuleList([expression.encoder, *expression.adapter.processors.values()])
    accelerator.prepare(branches, matching.optimizer)  # what checkpoints hold; the transformer is not among it
    accelerator.register_for_checkpointing(progress)
    load_checkpoint(accelerator, output / STATES)  # of a run that is resumed
    last = min(config.steps, max_steps or config.steps)
    cell, patch = int(pipe.vae_scale_factor_spatial), pipe.transformer.config.patch_size
    with LazyDetector(face_landmarker) as detector:
        clips = VideoClips(
            dataset,
            extractor,
            detector,
            output / "landmarks",
            size=config.size,
            multiples=(cell * patch[2], cell * patch[1]),
            cell=cell,
        )
        while progress.step < last:
            until = min(progress.step + config.checkpoint_every, last)
            losses = run_steps(matching, clips, progress.step, until)
            progress.step = until
            logger.info(f"step {until}/{config.steps}  loss {np.mean(losses):.4f}")
            with (output / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": until, "loss": float(np.mean(losses))}) + "\n")
            save_checkpoint(accelerator, output / STATES, until, 1)
            expression.save(output / ADAPTER)
    return output / ADAPTER

"""Wan's pipeline as a folder of diffusers, with the expression adapter on its transformer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fye_pipeline.animate import session as sessions
from fye_pipeline.animate.config import DType
from fye_pipeline.animate.session import AnimationSession, Offload
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.adapter import WEIGHTS
from fye_pipeline.multi_portrait.wan import WanExpression
from fye_pipeline.multi_portrait.wan_settings import WanSettings
from fye_pipeline.storage.files import digest_of_folder, digest_of_path

GUIDANCE = 4.5
SIDE = 480  # pixels of the shorter side
TEXT_TOKENS = 512


@dataclass(frozen=True)
class WanModel:
    """The pipeline of diffusers, and what moves the people in its videos."""

    pipe: Any
    expression: WanExpression

    @property
    def cell(self) -> int:
        """Pixels a side of a latent."""
        return int(self.pipe.vae_scale_factor_spatial)

    def size(self, width: int, height: int, side: int | None) -> tuple[int, int]:
        """Width and height of the video of a picture: the shorter side has `side` pixels, both fit the tokens."""
        patch = self.pipe.transformer.config.patch_size
        scale = (side or SIDE) / min(width, height)
        across, down = self.cell * patch[2], self.cell * patch[1]
        return max(round(width * scale / across), 1) * across, max(round(height * scale / down), 1) * down

    def run(self, picture: Image.Image, frames: int, *, steps: int, guidance: float, seed: int, after_step: Any) -> Any:
        """A window of 4 k + 1 frames from a picture of its size. -> [F, H, W, 3] in [0, 1]."""
        return self.pipe(
            image=picture,
            **self._prompts(),
            height=picture.height,
            width=picture.width,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
            callback_on_step_end=after_step,
            return_dict=False,
        )[0][0]

    def _prompts(self) -> dict[str, Any]:
        """The empty prompt for both calls; zeros in its place where the folder has no text encoder."""
        if self.pipe.text_encoder is not None:
            return {"prompt": "", "negative_prompt": ""}
        nothing = torch.zeros(1, TEXT_TOKENS, self.pipe.transformer.config.text_dim)
        return {"prompt_embeds": nothing, "negative_prompt_embeds": nothing}


def wan_model(session: AnimationSession, settings: WanSettings) -> WanModel:
    """The model of these settings, loaded once while its files stay. Raises `UserError` as `load_wan`."""
    dtype = choose_dtype(settings.dtype, session.device)
    adapter = settings.expression_adapter
    digest = None if adapter is None else digest_of_path(adapter)
    key = ("wan", settings.model, digest_of_folder(settings.model), digest, dtype, settings.vae_tiling)
    options: dict[str, Any] = {"offload": session.offload, "vae_tiling": settings.vae_tiling}
    return session.held(key, lambda: load_wan(settings.model, adapter, session.device, dtype, **options))


def choose_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The numbers of the transformer; `auto` is float32, and bfloat16 on a CUDA GPU, as Wan was trained."""
    return sessions.choose_dtype(name, device, on_gpu=torch.bfloat16)


def load_wan(
    folder: Path,
    adapter: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: Offload = "none",
    vae_tiling: bool = False,
) -> WanModel:
    """Load a pipeline and an adapter onto a device.

    adapter: a published checkpoint; None: `expression_adapter.safetensors` in the folder.

    Raises:
        UserError: a folder that cannot be loaded, of a Wan with two transformers, or without an adapter that fits.
    """
    if adapter is None and not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds no {WEIGHTS}: put an adapter there, or name a published one with --expression-adapter."
        )
    pipe = load_pipeline(folder, dtype)
    if adapter is None:
        expression = WanExpression.load(folder, pipe.transformer)
    else:
        expression = WanExpression.from_release(adapter, pipe.transformer)
    torch.nn.Module.to(expression.encoder, device, dtype).eval()
    if vae_tiling:
        pipe.vae.enable_tiling()
    if offload == "none":
        pipe.to(device)
    else:
        move = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
        move(device=device)
    return WanModel(pipe, expression)


def load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """Wan's image-to-video pipeline from a folder, in main memory; its VAE stays in float32.

    Raises `UserError` for a folder that cannot be loaded, or of a Wan with two transformers.
    """
    from diffusers import WanImageToVideoPipeline

    try:
        pipe: Any = WanImageToVideoPipeline.from_pretrained(
            folder, dtype={"default": dtype, "vae": torch.float32}, **_absent(folder)
        )
    except Exception as error:  # a damaged folder fails in whatever way its files lead to
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be loaded ({type(error).__name__}: {said}).") from error
    if pipe.transformer is None or pipe.transformer_2 is not None or pipe.config.expand_timesteps:
        raise UserError(f"{folder} is a Wan of another kind: the adapter is for Wan 2.1, with one transformer.")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _absent(folder: Path) -> dict[str, None]:
    """The parts that a folder says it does not have; diffusers asks to be told of some once more."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}

"""Where and in which numbers a model runs: the device that was asked for, and the folder that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from fye_pipeline.animate.config import DType
from fye_pipeline.errors import UserError
from fye_pipeline.models.layouts import is_published_folder
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.storage.files import is_pointer

Offload = Literal["none", "model", "sequential"]
_WEIGHTS = (".safetensors", ".bin", ".pth")


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        UserError: it is none of auto, cpu, cuda, cuda:N, mps, or this machine (or this build of torch) lacks it.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name in there or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise UserError(f"--device {name} is not there; this machine has {', '.join(there)}.")


def choose_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The numbers of the networks; `auto` is float32, and float16 on a CUDA GPU."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def load_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: Offload = "none",
    vae_tiling: bool = False,
) -> FollowYourEmojiPipeline:
    """Load a pipeline folder, or a folder with the published weights, onto a device.

    offload: `model` keeps one network at a time on the GPU, `sequential` one layer; both by accelerate, through
    diffusers. vae_tiling: the VAE works on overlapping tiles of large pictures.

    Raises:
        UserError: absent, another kind of model, incomplete, with Git-LFS pointers in place of the weights; or
            offloading that this device cannot do.
    """
    check_offload(offload, device)
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist; leave out --model for the model that ships.")
    _check_kind(folder)
    for file in folder.rglob("*"):
        if file.suffix in _WEIGHTS and file.is_file() and is_pointer(file):
            raise UserError(f"{file} is a Git-LFS pointer file, not the weights: run `git lfs pull` in that folder.")
    if not (folder / "model_index.json").is_file() and is_published_folder(folder):
        pipe = FollowYourEmojiPipeline.from_official(folder, dtype=dtype)
    else:
        pipe = FollowYourEmojiPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if vae_tiling:
        tile_vae(pipe)
    if offload == "none":
        return pipe.to(device)
    move = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
    move(device=device)
    return pipe


def check_offload(offload: Offload, device: torch.device) -> None:
    """Raise `UserError` where the device has no memory of its own that could be spared."""
    if offload != "none" and device.type != "cuda":
        raise UserError(
            f"--offload {offload} moves the model between main memory and a CUDA GPU, and the device is "
            f"{device.type}: leave it out."
        )


def tile_vae(pipe: FollowYourEmojiPipeline, side: int | None = None) -> None:
    """Let the VAE encode and decode in overlapping tiles; pictures that fit into one are not cut.

    side: of a tile in pixels, a multiple of the pixels a latent stands for; None: what the VAE was trained on.
    """
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    if side is not None:
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = side, side // pipe.vae_scale_factor


def _check_kind(folder: Path) -> None:
    index = folder / "model_index.json"
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # loading says what is wrong with it
    if kind != "FollowYourEmojiPipeline":
        raise UserError(
            f"{folder} holds a {kind}, not a FollowYourEmojiPipeline: it has no landmark encoder and no appearance net."
        )

"""Where and in which numbers a model runs: the device that was asked for, and the folder that holds it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fye_pipeline.errors import UserError
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.settings import DType

_POINTER = b"version https://git-lfs"  # the first bytes of a Git-LFS pointer file
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


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> FollowYourEmojiPipeline:
    """Load a pipeline folder onto a device.

    Raises:
        UserError: absent, another kind of model, incomplete, or with Git-LFS pointers in place of the weights.
    """
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist; leave out --model for the model that ships.")
    _check_kind(folder)
    for file in folder.rglob("*"):
        if file.suffix in _WEIGHTS and file.is_file() and is_pointer(file):
            raise UserError(f"{file} is a Git-LFS pointer file, not the weights: run `git lfs pull` in that folder.")
    pipe = FollowYourEmojiPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def is_pointer(file: Path) -> bool:
    """Whether a file is a Git-LFS pointer, which stands where a large file was not fetched."""
    with open(file, "rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


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

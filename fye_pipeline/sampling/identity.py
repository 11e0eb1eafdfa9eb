"""What decides a generated video, in few words: clips that were finished by another run are told apart by it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

FORMAT = 2  # of work folders; another one's clips are not used
_NETWORKS = ("vae", "image_encoder", "appearance_net", "unet", "landmark_encoder")


def describe(
    pipe: FollowYourEmojiPipeline,
    portrait: Image.Image,
    image_tokens: Tensor | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Everything beside the frames' own inputs that decides the result, as JSON takes it; `more` as it is."""
    session = pipe.session if pipe.session is not None and pipe.session.active else None
    return {
        "format": FORMAT,
        **more,
        "size": f"{portrait.width} x {portrait.height}",
        "portrait": digest_of(np.asarray(portrait)),
        "image_tokens": None if image_tokens is None else digest_of(image_tokens.detach().float().cpu()),
        "model": digest_of_weights({name: pipe.components[name] for name in _NETWORKS}),
        "scheduler": f"{type(pipe.scheduler).__name__} {dict(pipe.scheduler.config)}",
        "noise_scale": pipe.noise_scale,
        "dtype": f"{pipe.unet.dtype}, {pipe.vae.dtype}",
        "device": torch.device(pipe._execution_device).type,
        "cache": more["cache"] if "cache" in more else None if session is None else str(session.config),
    }


def digest_of(*values: np.ndarray | Tensor | None) -> str:
    """A hash of shapes, types and contents."""
    total = hashlib.sha256()
    for value in values:
        array = None if value is None else np.ascontiguousarray(value)
        total.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def digest_of_weights(networks: dict[str, torch.nn.Module], samples: int = 64) -> str:
    """A hash of every tensor's name, shape and some of its values: quick, and other weights give another."""
    total = hashlib.sha256()
    for part, network in networks.items():
        for name, tensor in network.state_dict().items():
            total.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
            if not tensor.is_meta:  # offloaded weights are told by name and shape alone
                some = tensor.detach().flatten()[:: max(1, tensor.numel() // samples)]
                total.update(some.to("cpu", torch.float32).numpy().tobytes())
    return total.hexdigest()

"""Small EmojiDiff models with random weights, for tests of what does not depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.base import CROSS, build_base
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet, tiny_encoder
from fye_pipeline.emoji.model import EmojiModel, EmojiSettings
from fye_pipeline.emoji.people import CROP
from fye_pipeline.landmarks.faces import Face, make_face
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World

IDENTITY = 32


def small_vae() -> AutoencoderKL:
    """Eight pixels to a latent, as Stable Diffusion's, of few channels."""
    torch.manual_seed(4)
    blocks: dict[str, Any] = {
        "block_out_channels": (8,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(**blocks, norm_num_groups=4, sample_size=128, layers_per_block=1).eval()


def small_model() -> EmojiModel:
    """Every part, untrained, on the tiny base's UNet; its output projection and both branches are made to be seen."""
    pipe: Any = build_base(small_vae())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter.attach(
            pipe.unet, [adapter.identity_projection(CROSS, IDENTITY), adapter.expression_projection(CROSS, 128, 64)]
        )
        for branch in (0, 1):
            for weight in adapter.branch_parameters(pipe.unet, branch):
                torch.nn.init.normal_(weight, std=0.2)
        identity, finder = IdentityNet(widths=(8,) * 4, dimension=IDENTITY), LandmarkNet((8,) * 4)
        encoder = tiny_encoder()
    for network in (identity, finder, encoder):
        network.eval().requires_grad_(False)
    return EmojiModel(pipe, encoder, identity, finder, EmojiSettings(crop=CROP, guidance=2.0))


def save_model(model: EmojiModel, folder: Path) -> Path:
    """As `fye emoji export` writes it; the model goes on with the rounded weights of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for branch, name in enumerate(("identity.safetensors", "expression.safetensors")):
        adapter.write_branch(folder / name, model.pipe.unet, branch)
        adapter.load_branch(model.pipe.unet, branch, adapter.read_branch(folder / name))
    unet = model.pipe.unet
    projection, hung = unet.encoder_hid_proj, [each.processor for each in adapter.cross_attentions(unet).values()]
    adapter.detach(unet)
    model.pipe.save_pretrained(folder / "base", safe_serialization=True)
    for attention, processor in zip(adapter.cross_attentions(unet).values(), hung, strict=True):
        attention.set_processor(processor)
    unet.encoder_hid_proj = projection
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    model.encoder.save_pretrained(folder / "expression_encoder")
    model.identity_net.save(folder / "identity_net.safetensors")
    model.landmark_net.save(folder / "landmark_net.safetensors")
    model.settings.write(folder)
    return folder


def load_adapters(pipe: Any, folder: Path) -> Any:
    """Both branches' files, loaded by a diffusers pipeline itself."""
    names = ["identity.safetensors", "expression.safetensors"]
    pipe.load_ip_adapter([str(folder)] * 2, subfolder=["", ""], weight_name=names, image_encoder_folder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


CANONICAL = CanonicalFace.load()
WORLD = World(CANONICAL, size=128)


def head(index: int) -> tuple[NDArray[np.uint8], Face]:
    """A rendered portrait and its face, as a detector would give it."""
    clip = WORLD.portrait("held", index)
    return clip.frames[0], make_face(clip.sequence.landmarks[0], np.zeros(52), 128, 128, CANONICAL)


class Finder:
    """Finds the faces of rendered heads, by their pictures."""

    def __init__(self, *heads: tuple[NDArray[np.uint8], Face]) -> None:
        self.known = {picture.tobytes(): face for picture, face in heads}

    def __call__(self, picture: NDArray[np.uint8]) -> Sequence[Face]:
        face = self.known.get(picture.tobytes())
        return [] if face is None else [face]

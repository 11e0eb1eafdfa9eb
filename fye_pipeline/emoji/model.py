"""An EmojiDiff model in a folder: the base, both adapters, the networks beside them, and what `emoji.json` says."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionModel

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet, as_batch
from fye_pipeline.errors import UserError

BASE, ENCODER = "base", "expression_encoder"
IDENTITY, EXPRESSION = "identity.safetensors", "expression.safetensors"
IDENTITY_NET, LANDMARK_NET = "identity_net.safetensors", "landmark_net.safetensors"
SETTINGS = "emoji.json"


@dataclass(frozen=True)
class EmojiSettings:
    """What `emoji.json` holds. layers: groups where the expression acts, or None for all. crop: side in pixels."""

    identity_scale: float = 1.0
    expression_scale: float = 1.0
    layers: tuple[str, ...] | None = None
    crop: int = 224
    guidance: float = 7.5
    base: str = ""  # hash of the base's UNet
    stage: str = ""  # of the training, that the expression adapter comes from
    licence: str = ""
    version: int = 1

    @classmethod
    def read(cls, folder: Path) -> EmojiSettings:
        """From a model's folder. UserError where there is none, or it is not readable."""
        path = folder / SETTINGS
        if not path.is_file():
            raise UserError(f"{folder} holds no EmojiDiff model: {SETTINGS} is missing; check the folder's name.")
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            layers = told.get("layers")
            return cls(**{**told, "layers": None if layers is None else tuple(layers)})
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is not readable ({error}); fetch or export the model again.") from error

    def write(self, folder: Path) -> None:
        """Into a model's folder."""
        (folder / SETTINGS).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass
class EmojiModel:
    """The parts; the pipeline's UNet carries branch 0 (identity) and branch 1 (expression)."""

    pipe: Any
    encoder: CLIPVisionModel
    identity_net: Any
    landmark_net: Any
    settings: EmojiSettings

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> EmojiModel:
        """Everything from a folder. UserError names what is missing or does not fit."""
        settings = EmojiSettings.read(folder)
        pipe = load_base(folder / BASE, dtype)
        states = [adapter.read_branch(folder / name) for name in (IDENTITY, EXPRESSION)]
        hang(pipe.unet, *states)
        encoder = load_encoder(folder / ENCODER)
        model = cls(
            pipe.to(device),
            encoder,
            IdentityNet.load(folder / IDENTITY_NET),
            LandmarkNet.load(folder / LANDMARK_NET) if (folder / LANDMARK_NET).is_file() else None,
            settings,
        )
        model.scale(settings.identity_scale, settings.expression_scale)
        return model

    def scale(self, identity: float, expression: float) -> None:
        """How much each branch adds; the expression in its layers only."""
        adapter.set_scales(self.pipe.unet, [identity, expression], self.settings.layers)

    def embeds(self, identities: Tensor, states: Tensor, *, guided: bool = True) -> list[Tensor]:
        """People [B, D] and expressions [B, T, S] as a pipeline takes them: [B, 1, D] and [B, 1, T, S].

        guided: with those of classifier-free guidance before them: nobody, and a crop without a face.
        """
        pairs = [(identities,), (states,)]
        if guided:
            pairs = [(torch.zeros_like(identities), identities), (grey_states(self.encoder).expand_as(states), states)]
        unet = self.pipe.unet
        return [torch.cat(pair).unsqueeze(1).to(unet.device, unet.dtype) for pair in pairs]

    @torch.no_grad()
    def identity_of(self, face: NDArray[np.uint8]) -> Tensor:
        """Who an upright face (`face_crop`) is. [S, S, 3] -> [1, D]."""
        return self.identity_net(as_batch(face[None]))


def load_base(folder: Path, dtype: torch.dtype) -> Any:
    """The Stable Diffusion (XL) pipeline of a folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder} holds no diffusers pipeline: model_index.json is missing.")
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "")
    home = StableDiffusionXLPipeline if "XL" in kind else StableDiffusionPipeline
    pipe: Any = home.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_encoder(folder: Path) -> CLIPVisionModel:
    """The expression encoder, frozen, in float32."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is missing; the expression encoder (a CLIP vision model's folder) belongs there.")
    encoder = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return encoder.requires_grad_(False).eval()


def hang(unet: Any, identity: dict[str, Tensor], expression: dict[str, Tensor]) -> None:
    """Attach both branches to a UNet and fill them. UserError where they were trained for another base."""
    files = {IDENTITY: identity, EXPRESSION: expression}
    adapter.attach(unet, [adapter.projection_of(unet, state, name) for name, state in files.items()])
    for branch, (name, state) in enumerate(files.items()):
        adapter.load_branch(unet, branch, state, name)


def grey_states(encoder: CLIPVisionModel) -> Tensor:
    """What the encoder makes of a picture of its mean colour: "no expression". -> [1, T, D]."""
    side = int(encoder.config.image_size)  # pyright: ignore[reportArgumentType]
    blank = torch.zeros(1, 3, side, side, device=encoder.device, dtype=encoder.dtype)
    with torch.no_grad():
        return encoder(blank, output_hidden_states=True).hidden_states[-2]

"""The small networks that look at a face: who it is, where its points are, and what the expression encoder sees."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from fye_pipeline.emoji.expression_crop import EXPRESSION_TEMPLATE, similarity
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.topology import N_BLENDSHAPES, N_POINTS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _Block(nn.Module):
    """Two convolutions beside a shortcut, half the side, group-normalised."""

    def __init__(self, wide: int, wider: int, stride: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(wide, wider, 3, stride, 1)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, wider), nn.GroupNorm(4, wider)])
        self.shortcut = nn.Conv2d(wide, wider, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.norms[0](self.first(x)))
        return F.silu(self.shortcut(x) + self.norms[1](self.second(inner)))


class _FaceNet(nn.Module):
    """What the networks share: residual blocks on a square picture, then the flattened map."""

    def __init__(self, size: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.widths = size, widths
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.features = widths[-1] * (size >> len(widths)) ** 2

    def trunk(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, size, size] in [0, 1] -> [B, features]."""
        if pictures.shape[-2:] != (self.size, self.size):
            pictures = F.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True)
        return self.blocks(F.silu(self.stem(pictures * 2 - 1))).flatten(1)

    def settings(self) -> dict[str, Any]:
        """What the network is built from."""
        return {"size": self.size, "widths": list(self.widths)}

    def save(self, path: Path) -> None:
        """Weights in float16, and what the network is built from."""
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, path, metadata={name: str(value) for name, value in self.settings().items()})

    @classmethod
    def load(cls, path: Path) -> Any:
        """A saved network, in float32, for measuring: no gradients of its weights."""
        if not path.is_file():
            raise UserError(f"{path} is missing; fetch or train the model's folder again (`fye emoji train`).")
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        settings: dict[str, Any] = {
            name: tuple(int(n) for n in text.strip("[]").split(",")) if text.startswith("[") else int(text)
            for name, text in told.items()
        }
        network = cls(**settings)
        network.load_state_dict(weights)
        return network.requires_grad_(False).eval()


class IdentityNet(_FaceNet):
    """Who is seen: upright faces (`face_crop`) [B, 3, S, S] in [0, 1] -> unit vectors [B, D], whose cosine compares.

    Trained with ArcFace's margin (Deng et al. 2019) on people of the rendered world, in every style.
    """

    def __init__(self, size: int = 64, widths: tuple[int, ...] = (24, 32, 48, 64), dimension: int = 256) -> None:
        super().__init__(size, widths)
        self.dimension = dimension
        self.head = nn.Linear(self.features, dimension)
        self.centre = nn.BatchNorm1d(dimension, affine=False)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"dimension": self.dimension}

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.centre(self.head(self.trunk(faces))), dim=-1)


class LandmarkNet(nn.Module):
    """Where a face's points are and what it expresses, with gradients, which MediaPipe has not.

    A first network finds the face in the whole picture, a second one looks at it upright and close. Pictures
    [B, 3, H, W] in [0, 1] -> landmarks [B, 478, 2] in 0..1, blendshapes [B, 52] in about 0..1.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 32, 40, 56), hidden: int = 96) -> None:
        super().__init__()
        self.widths, self.hidden = widths, hidden
        self.far, self.near = _FaceNet(64, (12, 16, 24, 32)), _FaceNet(64, widths)
        self.five = nn.Linear(self.far.features, 10)
        self.neck = nn.Linear(self.near.features, hidden)
        self.points = nn.Linear(hidden, N_POINTS * 2)
        self.shapes = nn.Linear(hidden, N_BLENDSHAPES)

    def settings(self) -> dict[str, Any]:
        """What the network is built from."""
        return {"widths": list(self.widths), "hidden": self.hidden}

    def find(self, pictures: Tensor) -> Tensor:
        """Pupils, nose and corners of the mouth in whole pictures. -> [B, 5, 2] in 0..1."""
        return self.five(self.far.trunk(pictures)).unflatten(1, (5, 2))

    def look(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Upright crops [B, 3, S, S] -> landmarks [B, 478, 2] in 0..1 of them, blendshapes [B, 52]."""
        inner = F.silu(self.neck(self.near.trunk(crops)))
        return self.points(inner).unflatten(1, (N_POINTS, 2)), self.shapes(inner)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            five = self.find(pictures)
        crops, places = upright(pictures, five, EXPRESSION_TEMPLATE, self.near.size)
        points, shapes = self.look(crops)
        return points @ places[:, :, :2].transpose(1, 2) + places[:, None, :, 2], shapes

    save = _FaceNet.save
    load = classmethod(_FaceNet.load.__func__)  # pyright: ignore[reportFunctionMemberAccess]


def upright(pictures: Tensor, five: Tensor, aim: NDArray[np.float64], size: int) -> tuple[Tensor, Tensor]:
    """Crops where five points [B, 5, 2] in 0..1 lie as in a template, with gradients to the pictures [B, 3, H, W].

    -> crops [B, 3, size, size], and the matrices [B, 2, 3] that bring places of the crops (0..1) back to the pictures.
    """
    turns = np.stack([similarity(aim, each) for each in five.detach().cpu().double().numpy()])
    moved = 2 * (turns[:, :, :2] @ (0.5, 0.5) + turns[:, :, 2]) - 1  # affine_grid's coordinates run from -1 to 1
    theta = torch.from_numpy(np.concatenate([turns[:, :, :2], moved[:, :, None]], axis=2)).to(pictures)
    grid = F.affine_grid(theta, [len(pictures), 3, size, size], align_corners=False)
    crops = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return crops, torch.from_numpy(turns).to(pictures)


def tiny_encoder() -> CLIPVisionModel:
    """The expression encoder of the tiny model: a CLIP vision transformer of 4 layers, 8-pixel patches of 64 pixels."""
    config = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=8
    )
    return CLIPVisionModel(config)


def encoder_states(encoder: CLIPVisionModel, crops: Tensor) -> Tensor:
    """The hidden states before the last layer, as IP-Adapter Plus takes them. [B, 3, S, S] in [0, 1] -> [B, T, D]."""
    mean, std = (crops.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    side = int(encoder.config.image_size)  # pyright: ignore[reportArgumentType]
    if crops.shape[-1] != side:
        crops = F.interpolate(crops, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return encoder((crops - mean) / std, output_hidden_states=True).hidden_states[-2]


def as_batch(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255

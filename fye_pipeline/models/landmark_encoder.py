"""The landmark encoder: pictures of landmarks become features that are added after the UNet's `conv_in`."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class LandmarkEncoder(ModelMixin, ConfigMixin):
    """Eight 3x3 convolutions (three of stride 2 with four levels) that work on every frame by itself.

    out_channels: channels of the UNet's first level. hidden_channels: one per resolution; each step between them halves
    the size, so the features are 2 ** (levels - 1) times smaller than the picture. The last convolution starts at zero.
    """

    __module__ = "fye_pipeline"  # the library that model_index.json names
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 320,
        hidden_channels: tuple[int, ...] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, hidden_channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for wide, wider in itertools.pairwise(hidden_channels):
            self.blocks.append(nn.Conv2d(wide, wide, 3, padding=1))
            self.blocks.append(nn.Conv2d(wide, wider, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(hidden_channels[-1], out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode landmark pictures. [B, 3, F, H, W] in [0, 1] -> [B, C, F, H/8, W/8]."""
        batch = len(pictures)
        features = F.silu(self.conv_in(pictures.transpose(1, 2).flatten(0, 1)))
        for block in self.blocks:
            features = F.silu(block(features))
        return self.conv_out(features).unflatten(0, (batch, -1)).transpose(1, 2)

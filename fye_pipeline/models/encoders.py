"""What encodes the conditions: landmark pictures into features, the portrait's vision tokens into an image prompt."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn

KINDS = ("linear", "resampler")


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


def build_image_prompt(
    kind: str, image_dim: int, prompt_dim: int, *, queries: int = 16, layers: int = 4, heads: int = 12
) -> nn.Module:
    """Build the map from vision tokens [B, L, image_dim] to prompt tokens [B, L', prompt_dim].

    kind: "linear" keeps every token (L' = L) and is what the published weights hold; "resampler" is the paper's
    4-layer Q-Former, read as learned queries (L' = queries) that attend to the tokens and to each other.
    Raises ValueError for an unknown kind, or heads that do not divide prompt_dim.
    """
    if kind not in KINDS:
        raise ValueError(f"image_prompt must be one of {KINDS}, got {kind!r}")
    if kind == "linear":
        return nn.Linear(image_dim, prompt_dim)
    if prompt_dim % heads:
        raise ValueError(f"prompt_heads must divide cross_attention_dim = {prompt_dim}, got {heads}")
    return IPAdapterPlusImageProjection(
        embed_dims=image_dim,
        output_dims=prompt_dim,
        hidden_dims=prompt_dim,
        depth=layers,
        dim_head=prompt_dim // heads,
        heads=heads,
        num_queries=queries,
    )

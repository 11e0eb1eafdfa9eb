"""FantasyPortrait's expression-augmented encoder: one frame's features of one person -> tokens for cross-attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn

from fye_pipeline.multi_portrait.expression import FACTORS


class ExpressionEncoder(ModelMixin, ConfigMixin):
    """Each factor becomes one token by a linear layer; those that are augmented, more by a resampler of their own.

    The defaults are the published sizes: resamplers of width 1280, depth 4, 20 heads of 64, 16 queries of the lips and
    4 of the emotion: 24 tokens a frame.

    head_dim, eye_dim, emotion_dim, lip_dim: widths of the features. width: of the tokens. augment: the factors with a
    resampler, by default lip and emotion. queries: tokens of each resampler, in the order of `augment`.
    """

    __module__ = "fye_pipeline"  # the library that model_index.json names

    @register_to_config
    def __init__(
        self,
        head_dim: int = 6,
        eye_dim: int = 6,
        emotion_dim: int = 30,
        lip_dim: int = 512,
        width: int = 2048,
        augment: tuple[str, ...] = ("lip", "emotion"),
        queries: tuple[int, ...] = (16, 4),
        resampler_dim: int = 1280,
        resampler_depth: int = 4,
        resampler_heads: int = 20,
        resampler_head_dim: int = 64,
    ) -> None:
        super().__init__()
        if unknown := set(augment) - set(FACTORS):
            raise ValueError(f"augment must be some of {', '.join(FACTORS)}, got {', '.join(sorted(unknown))}")
        if len(queries) != len(augment):
            raise ValueError(f"queries must be one number for each of augment {augment}, got {queries}")
        dims = dict(zip(FACTORS, (head_dim, eye_dim, emotion_dim, lip_dim), strict=True))
        self.project = nn.ModuleDict({name: nn.Linear(dim, width, bias=False) for name, dim in dims.items()})
        self.norm = nn.LayerNorm(width)
        self.resample = nn.ModuleDict(
            {
                name: IPAdapterPlusImageProjection(
                    embed_dims=dims[name],
                    output_dims=width,
                    hidden_dims=resampler_dim,
                    depth=resampler_depth,
                    dim_head=resampler_head_dim,
                    heads=resampler_heads,
                    num_queries=count,
                )
                for name, count in zip(augment, queries, strict=True)
            }
        )
        self.tokens = len(FACTORS) + sum(queries)  # a frame

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features [..., d] of every factor, such as [B, P, F, d] for P people -> tokens [..., N, width].

        The factors' own tokens come first, then those of the resamplers; nothing passes from one person or frame to
        another.
        """
        leading = features[FACTORS[0]].shape[:-1]
        flat = {name: features[name].reshape(-1, features[name].shape[-1]) for name in FACTORS}
        tokens = [self.norm(self.project[name](flat[name]))[:, None] for name in FACTORS]
        tokens += [resampler(flat[name][:, None]) for name, resampler in self.resample.items()]
        return torch.cat(tokens, dim=1).unflatten(0, leading)

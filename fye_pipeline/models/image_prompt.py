"""The image prompt: vision tokens of the reference picture become the tokens that cross-attention reads."""

from __future__ import annotations

from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import nn

KINDS = ("linear", "resampler")


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

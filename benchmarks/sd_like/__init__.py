"""A small Stable-Diffusion-like model, for the methods that only know `UNet2DConditionModel`.

    python -m benchmarks.sd_like --train [--data runs/world/train] [--output benchmarks/assets/sd_like]
    python -m benchmarks.sd_like --samples FILE.png

It stands by itself: UNet, autoencoder and recipe lie in `benchmarks/assets/sd_like`. Trained on the rendered world's
training heads, a tenth of them without a prompt, so that guidance means what it should.
"""

from benchmarks.sd_like.model import (
    ASSETS,
    POINTS,
    build_pipeline,
    build_unet,
    held_out,
    load_pipeline,
    prompt_tokens,
    sample,
)

__all__ = [
    "ASSETS",
    "POINTS",
    "build_pipeline",
    "build_unet",
    "held_out",
    "load_pipeline",
    "prompt_tokens",
    "sample",
]

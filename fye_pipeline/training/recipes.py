"""Named recipes: what each changes of the defaults in `TrainConfig`, which are those of `tiny`."""

from __future__ import annotations

from typing import Any

# Minutes on a CPU: the whole path with a handful of heads, for tests and for a first look.
SMOKE: dict[str, Any] = {
    "name": "smoke",
    "heads": 8,
    "vae_seconds": 2.0,
    "image": {"steps": 8, "batch": 2, "warmup": 2},
    "video": {"steps": 4, "batch": 1, "warmup": 2, "frames": 4},
    "checkpoint_every": 4,
    "sample_every": 0,
    "log_every": 1,
}

# `tiny` for one large GPU: more heads, larger batches, bfloat16. Not yet run on a GPU: the steps are an estimate of
# what fits into 25 minutes, and the rates are those of `tiny` raised somewhat for the larger batch.
TINY_GPU: dict[str, Any] = {
    "name": "tiny-gpu",
    "heads": 6000,
    "workers": 12,
    "mixed_precision": "bf16",
    "vae_seconds": 240.0,
    "vae_batch": 48,
    "image": {"steps": 9000, "batch": 16, "frames": 3, "lr": 1.0e-3, "warmup": 300, "decay_from": 0.5, "ema": 0.999},
    "video": {"steps": 3500, "batch": 4, "lr": 8e-4, "warmup": 150, "decay_from": 0.5, "ema": 0.998},
    "checkpoint_every": 1000,
    "sample_every": 3000,
    "log_every": 50,
}

# Follow-Your-Emoji-Faster's own settings as far as the paper gives them: 512x512 pixels, 30000 steps on pictures, then
# 10000 on clips of 16 frames, batch 32, Adam at a constant 1e-5. `batch` counts for each process: with 8, set it to 4.
PAPER: dict[str, Any] = {
    "name": "paper",
    "needs": ("init", "dataset"),
    "reference_hint": False,
    "train_image_encoder": False,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "workers": 8,
    "image": {"steps": 30000, "batch": 32, "frames": 1, "lr": 1e-5, "warmup": 1, "decay_from": 1.0, "ema": 0.9999},
    "video": {
        "steps": 10000,
        "batch": 32,
        "frames": 16,
        "lr": 1e-5,
        "warmup": 1,
        "decay_from": 1.0,
        "none_given": 0.34,
        "ema": 0.9999,
    },
    "checkpoint_every": 1000,
    "sample_every": 1000,
    "log_every": 50,
}

RECIPES: dict[str, dict[str, Any]] = {"tiny": {}, "smoke": SMOKE, "tiny-gpu": TINY_GPU, "paper": PAPER}

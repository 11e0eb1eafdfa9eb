"""What a training run does: the built-in `tiny` recipe, and TOML or JSON files that change it."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fye_pipeline.errors import UserError


@dataclass(frozen=True)
class PhaseConfig:
    """One phase. Warm-up, then a constant rate, then a linear fall from `decay_from` (a share of the steps) on."""

    steps: int
    batch: int
    lr: float
    frames: int = 1  # targets that share a reference: pictures in phase I, a clip in phase II
    warmup: int = 200
    decay_from: float = 0.6
    lr_end: float = 0.05  # share of lr at the last step
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    cfg_dropout: float = 0.1
    none_given: float = 1.0  # share of the clips that are given no clean frame
    ema: float = 0.999

    def lr_at(self, step: int) -> float:
        """The learning rate of a step counted from 0."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        fall = max(0.0, (step / max(self.steps, 1) - self.decay_from) / max(1 - self.decay_from, 1e-9))
        return self.lr * warm * (1 - (1 - self.lr_end) * min(fall, 1.0))


@dataclass(frozen=True)
class TrainConfig:
    """A whole run: the world's heads, the autoencoder, phase I (image) and phase II (video)."""

    name: str = "tiny"
    seed: int = 0
    init: str | None = None  # a pipeline folder to go on from, else random weights
    data: str | None = None  # folder for rendered heads and latents; default: `data` in the output folder
    heads: int = 3000
    in_channels: int = 9
    image_prompt: str = "linear"
    reference_hint: bool = True  # the reference's latents in the clean-latent channels of frames that are not given
    vae_seconds: float = 1150.0
    phases: tuple[str, ...] = ("image", "video")
    image: PhaseConfig = field(
        default_factory=lambda: PhaseConfig(
            steps=3700, batch=4, frames=3, lr=6e-4, warmup=150, decay_from=0.65, ema=0.998
        )
    )
    video: PhaseConfig = field(
        default_factory=lambda: PhaseConfig(
            steps=1150, batch=1, frames=16, lr=5e-4, warmup=60, decay_from=0.5, none_given=0.5, ema=0.995
        )
    )
    expression_loss: bool = True
    facial_loss: bool = True
    ffg_weight: float = 1.0
    mixed_precision: str = "no"
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    sample_every: int = 500
    log_every: int = 25

    def to_json(self) -> str:
        """Every resolved option."""
        return json.dumps(dataclasses.asdict(self), indent=2)


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
NAMED: dict[str, dict[str, Any]] = {"tiny": {}, "smoke": SMOKE}


def load_config(source: str | Path) -> TrainConfig:
    """A named recipe ("tiny", "smoke") or a .toml/.json file of options that differ from `tiny`.

    Raises UserError for unreadable files and unknown options.
    """
    if str(source) in NAMED:
        return build_config(NAMED[str(source)])
    path = Path(source)
    if not path.is_file():
        raise UserError(f"config must be one of {', '.join(NAMED)} or a .toml or .json file, got {source}")
    try:
        text = path.read_text(encoding="utf-8")
        options = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a training config: {error}") from error
    return build_config(options)


def build_config(options: dict[str, Any]) -> TrainConfig:
    """Apply options to the `tiny` recipe; `image` and `video` hold a phase's own. Raises UserError."""
    base = TrainConfig()
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"unknown training options: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    changes = dict(options)
    for phase in ("image", "video"):
        if phase in changes:
            try:
                changes[phase] = dataclasses.replace(getattr(base, phase), **changes[phase])
            except TypeError as error:
                raise UserError(f"training option {phase}: {error}") from error
    if "phases" in changes:
        changes["phases"] = tuple(changes["phases"])
        if not set(changes["phases"]) <= {"image", "video"}:
            raise UserError(f"phases must be among image, video, got {', '.join(changes['phases'])}")
    return dataclasses.replace(base, **changes)

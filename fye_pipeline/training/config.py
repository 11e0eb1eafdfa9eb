"""What a training run does: options, named recipes, and TOML or JSON files that change one."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import Style
from fye_pipeline.world.dataset import WORLD_VERSIONS

PRECISIONS = ("no", "bf16", "fp16")
LATENTS = ("cache", "encode")
PHASES = ("image", "video", "light")


def learning_rate(step: int, steps: int, lr: float, warmup: int = 50) -> float:
    """A rise over the first `warmup` steps, then a half cosine to a fiftieth of `lr`; steps count from 0."""
    fall = 0.5 * (1 + math.cos(math.pi * step / steps))
    return lr * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * fall)


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
    """A whole run: the world's heads, the autoencoder, phase I (image), phase II (video); or `light`: fewer steps."""

    name: str = "tiny"
    needs: tuple[str, ...] = ()  # options that have no default in this recipe
    seed: int = 0
    data_seed: int | None = None  # of batches and noise; default: `seed`. Change it when a run goes on from weights
    init: str | None = None  # a pipeline folder to go on from ("shipped": the package's), else random weights
    motion_init: str | None = None  # an AnimateDiff checkpoint (file, or a MotionAdapter's folder) for motion modules
    dataset: str | None = None  # a folder made by `fye prepare`; default: heads of the rendered world
    data: str | None = None  # folder for rendered heads and latents; default: `data` in the output folder
    latents: str = "cache"  # of a dataset: "cache" encodes every frame once, "encode" each when it is needed
    clip_stride: int = 4  # of a dataset: frames of a training clip are 1 to this many apart
    shuffle_shards: int = 16  # of a dataset: clips are shuffled within this many shards
    heads: int = 3000
    world: int = 2  # version of the rendered world
    workers: int = 0  # processes that render heads and make batches ahead; 0: the training process itself
    landmark_style: Style = "expression"  # Table 4's ablations: with-contour, without-pupils, plain
    in_channels: int | None = None  # of the UNet; default: what given frames and the bent portrait need
    latent_channels: int | None = None  # default: those of `init`, else 8; the networks grow by what `init` lacks
    image_prompt: str = "linear"
    reference_hint: bool = True  # the reference's latents in the clean-latent channels of frames that are not given
    bent_hint: bool = True  # the portrait bent to each frame's landmarks, in five more channels
    train_image_encoder: bool = True  # phase I; False where it comes trained
    train_conv_in: bool = True  # phase II, where frames can be given; False: the motion modules alone
    vae_seconds: float = 1150.0  # of training the autoencoder from random weights
    vae_further_seconds: float = 0.0  # where `init` brings an autoencoder: 0 keeps it as it is
    vae_batch: int = 6
    vae_pictures: int = 2500  # pictures of other things than heads, which the autoencoder sees too
    vae_picture_share: float = 0.6  # of its batches
    vae_textured_share: float = 0.5  # share of its heads that are laid over with a texture
    vae_ssim_weight: float = 0.4  # of 1 - SSIM in its loss
    vae_keep_weight: float = 0.02  # further training: of how far the latents of heads move, which the UNet knows
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
    light: PhaseConfig = field(  # steps: of each stage
        default_factory=lambda: PhaseConfig(
            steps=400, batch=1, frames=8, lr=1e-4, warmup=20, decay_from=0.5, cfg_dropout=0.0, ema=0.98
        )
    )
    stages: tuple[int, ...] = (32, 16, 8, 4)  # steps of the light model, stage by stage, each half of the one before
    light_clips: int = 64  # batches that light steps take turns with; what the UNet is given of each is kept in memory
    light_guidance: float | None = None  # that goes into the light model; default: what `init` recommends
    expression_loss: bool = True
    facial_loss: bool = True
    ffg_weight: float = 1.0
    mixed_precision: str = "no"
    gradient_accumulation: int = 1  # parts in which a batch is computed: the same step in less memory
    gradient_checkpointing: bool = False
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    sample_every: int = 500
    log_every: int = 25

    def parts(self, phase: PhaseConfig) -> int:
        """In how many parts a phase's batch is computed: `gradient_accumulation`, but no part is empty."""
        return min(self.gradient_accumulation, phase.batch)

    def to_json(self) -> str:
        """Every resolved option."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def load_config(source: str | Path, **overrides: Any) -> TrainConfig:
    """A named recipe or a .toml/.json file of options that differ from `tiny`, or from the recipe it names as `base`.

    overrides: options that win over both; None is no override. Raises UserError for unreadable files and unknown
    options.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if str(source) in RECIPES:
        return build_config({"base": str(source), **given})
    path = Path(source)
    if not path.is_file():
        raise UserError(f"config must be one of {', '.join(RECIPES)} or a .toml or .json file, got {source}")
    try:
        text = path.read_text(encoding="utf-8")
        options = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a training config: {error}") from error
    return build_config(options | given)


def build_config(options: dict[str, Any]) -> TrainConfig:
    """Apply options to a recipe (`base`, default `tiny`); `image` and `video` hold a phase's own. Raises UserError."""
    changes = dict(options)
    recipe = changes.pop("base", "tiny")
    if recipe not in RECIPES:
        raise UserError(f"base must be one of {', '.join(RECIPES)}, got {recipe!r}")
    config = _apply(_apply(TrainConfig(), RECIPES[recipe]), changes)
    _check(config)
    return config


def _apply(base: TrainConfig, options: dict[str, Any]) -> TrainConfig:
    """Options over others. Raises UserError for unknown ones."""
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"unknown training options: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    changes = dict(options)
    for phase in PHASES:
        if phase in changes:
            try:
                changes[phase] = dataclasses.replace(getattr(base, phase), **changes[phase])
            except TypeError as error:
                raise UserError(f"training option {phase}: {error}") from error
    for name in ("phases", "needs", "stages"):
        if name in changes:
            changes[name] = tuple(changes[name])
    return dataclasses.replace(base, **changes)


def _check(config: TrainConfig) -> None:
    """Raise UserError where an option has a value that it cannot have."""
    if not set(config.phases) <= set(PHASES):
        raise UserError(f"phases must be among {', '.join(PHASES)}, got {', '.join(config.phases)}")
    if not config.stages or any(2 * later != earlier for earlier, later in pairwise(config.stages)):
        raise UserError(f"each of stages must have half the steps of the one before, got {config.stages}")
    for name, allowed in (
        ("mixed_precision", PRECISIONS),
        ("latents", LATENTS),
        ("landmark_style", get_args(Style)),
    ):
        if getattr(config, name) not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")
    if config.world not in WORLD_VERSIONS:
        raise UserError(f"world must be one of {', '.join(map(str, WORLD_VERSIONS))}, got {config.world}")
    if config.latent_channels is not None and config.latent_channels < 4:
        raise UserError(f"latent_channels must be >= 4, got {config.latent_channels}")
    for name in ("vae_picture_share", "vae_textured_share"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} must be between 0 and 1, got {getattr(config, name)}")
    if config.vae_picture_share and config.vae_pictures < 1:
        raise UserError(f"vae_pictures must be >= 1, got {config.vae_pictures}; or vae_picture_share = 0")
    for name in ("gradient_accumulation", "clip_stride", "shuffle_shards", "light_clips"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be >= 1, got {getattr(config, name)}")
    for name in config.phases:
        phase: PhaseConfig = getattr(config, name)
        if phase.batch < 1:
            raise UserError(f"{name}.batch must be >= 1, got {phase.batch}")
        if phase.batch % config.parts(phase):
            raise UserError(
                f"{name}.batch must be a multiple of gradient_accumulation ({config.gradient_accumulation}), "
                f"got {phase.batch}"
            )


def check_inputs(config: TrainConfig) -> None:
    """Raise UserError, naming all of them, where a recipe's inputs are not given or do not go together."""
    missing = [name for name in config.needs if getattr(config, name) is None]
    if missing:
        needed = " and ".join(f"{name} ({NEEDED[name]})" for name in missing)
        flags = " and ".join(f"--{name}" for name in missing)
        raise UserError(
            f"the recipe {config.name} needs {needed}: pass {flags}, "
            f"or name them in a config file with base = {config.name!r}"
        )
    if "light" in config.phases and config.init is None and config.phases[0] == "light":
        raise UserError(f"the phase light needs init ({NEEDED['init']}): pass --init FOLDER, or --init shipped")
    if config.dataset is not None and config.init is None:
        raise UserError(
            f"training on a dataset needs init ({NEEDED['init']}): pass --init FOLDER, "
            "or --init shipped for the package's model"
        )


NEEDED = {
    "init": "a pipeline folder, as save_pretrained writes it",
    "dataset": "a folder made by `fye prepare`",
}

# What each named recipe changes of the defaults in `TrainConfig`, which are those of `tiny`.

# Minutes on a CPU: the whole path with a handful of heads, for tests and for a first look.
SMOKE: dict[str, Any] = {
    "name": "smoke",
    "heads": 8,
    "vae_seconds": 2.0,
    "vae_pictures": 4,
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
    "vae_pictures": 4000,
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
    "bent_hint": False,
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

# The model that ships, taught to need 4 steps: a further phase, from its weights.
TINY_LIGHT: dict[str, Any] = {
    "name": "tiny-light",
    "init": "shipped",
    "heads": 64,
    "world": 1,
    "phases": ("light",),
    "checkpoint_every": 50,
}

RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "smoke": SMOKE,
    "tiny-gpu": TINY_GPU,
    "paper": PAPER,
    "tiny-light": TINY_LIGHT,
}

"""What a run starts from: its data, and random weights or a pipeline folder, with AnimateDiff's motion modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor

from fye_pipeline.animate.session import PAPER_GUIDANCE, recommended_guidance
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.models.denoising_unet import DenoisingUNet, channels_for
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.models.latents import lay, rebuilt, with_more_latents
from fye_pipeline.models.layouts import read_weights
from fye_pipeline.models.official import rename
from fye_pipeline.models.published import model_folder
from fye_pipeline.models.tiny import build_tiny
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training.batches import BatchSource
from fye_pipeline.training.clip_batches import ClipBatches, LatentCache
from fye_pipeline.training.config import TrainConfig
from fye_pipeline.training.dataset import Dataset
from fye_pipeline.training.heads import HeadBatches, HeadData, encode_heads, render_heads
from fye_pipeline.training.vae import (
    VaeConfig,
    natural_pictures,
    normalise_latents,
    start_as_thumbnail,
    train_vae,
)
from fye_pipeline.world import World

Report = Callable[[str], None]

SHIPPED = "shipped"
FRESH_LATENTS = 8  # channels of an autoencoder that begins with random weights
_ADAPTER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_TABLE = "pos_embed.pe"
_TABLE_ERROR = 1e-2  # tables are sines of the place, rounded where a checkpoint is float16


def open_run(
    config: TrainConfig, output: Path, accelerator: Accelerator, report: Report
) -> tuple[BatchSource, dict[str, Any]]:
    """Make the data and build the parts. -> batches, and the parts with the autoencoder trained and on its device."""
    folder = Path(config.data) if config.data else output / "data"
    parts = load_parts(config, report)
    seed = config.seed if config.data_seed is None else config.data_seed
    if config.dataset is not None:
        dataset = Dataset(config.dataset)
        report(f"dataset: {len(dataset)} clips of {dataset.size} pixels in {config.dataset}")
        return _clip_batches(config, dataset, parts, folder, accelerator, seed, report), parts
    world = World(CanonicalFace.load(), seed=config.seed, version=config.world)
    with accelerator.main_process_first():
        report(f"heads: {config.heads} in {folder}")
        data = render_heads(world, folder, config.heads, jobs=config.workers)
    if config.init is None or config.vae_further_seconds:
        _obtain_vae(config, parts, data, output / "vae", accelerator, report)
    parts["vae"].to(accelerator.device)
    with accelerator.main_process_first():
        latents = encode_heads(parts["vae"], data, folder)
    bent = parts["unet"].config["bent_hint"]
    return HeadBatches(data, latents, parts["feature_extractor"], seed, config.landmark_style, bent=bent), parts


def _clip_batches(
    config: TrainConfig,
    dataset: Dataset,
    parts: dict[str, Any],
    folder: Path,
    accelerator: Accelerator,
    seed: int,
    report: Report,
) -> ClipBatches:
    """Batches of a prepared dataset; its latents are cached now unless the steps are to encode them."""
    vae, processes = parts["vae"].to(accelerator.device), accelerator.num_processes
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    smallest = factor * 2 ** (len(parts["unet"].config["block_out_channels"]) - 1)
    if dataset.size % smallest:
        raise UserError(
            f"{dataset.folder} has pictures of {dataset.size} pixels; the model takes multiples of {smallest}."
        )
    cache = None
    if config.latents == "cache":
        cache = LatentCache(dataset, vae, folder)
        cache.fill(vae, rank=accelerator.process_index, processes=processes, report=report)
        accelerator.wait_for_everyone()
    return ClipBatches(
        dataset,
        cache,
        parts["feature_extractor"],
        seed,
        cell=dataset.size // factor,
        processes=processes,
        style=config.landmark_style,
        max_stride=config.clip_stride,
        window=config.shuffle_shards,
        bent=parts["unet"].config["bent_hint"],
    )


def _obtain_vae(
    config: TrainConfig, parts: dict[str, Any], data: HeadData, folder: Path, accelerator: Accelerator, report: Report
) -> None:
    """Train the autoencoder, new or further, or read what was made before; the main process works, others wait."""
    with accelerator.main_process_first():
        if not (folder / "config.json").exists():
            vae, settings = parts["vae"], vae_settings(config)
            if config.init is None:
                start_as_thumbnail(vae)
            vae.to(accelerator.device)
            natural = None
            if settings.picture_share:
                report(f"autoencoder: {config.vae_pictures} pictures of other things than heads")
                natural = natural_pictures(config.vae_pictures, data.meta.size, config.seed)
            train_vae(vae, data, folder, settings, on_progress=report, resume=True, natural=natural)
            kept = settings.keep_channels or 0
            if kept < vae.config["latent_channels"]:
                normalise_latents(vae, data, kept=kept)
            vae.save_pretrained(folder)
    parts["vae"] = type(parts["vae"]).from_pretrained(folder)


def vae_settings(config: TrainConfig) -> VaeConfig:
    """How the autoencoder is trained: from the start, or further, holding to the latents that the UNet knows."""
    first = VaeConfig(
        seconds=config.vae_seconds,
        batch=config.vae_batch,
        picture_share=config.vae_picture_share,
        textured_share=config.vae_textured_share,
        ssim_weight=config.vae_ssim_weight,
        seed=config.seed,
    )
    if config.init is None:
        return first
    return replace(
        first,
        seconds=config.vae_further_seconds,
        whole_from=0.7,
        lr=8e-4,
        lr_end=2e-5,
        expression_weight=2.0,
        keep_weight=config.vae_keep_weight,
        keep_channels=_known_channels(config),
    )


def _known_channels(config: TrainConfig) -> int:
    """The latents' channels of the model that a run goes on from, which its UNet knows."""
    folder = init_folder(config)
    assert folder is not None
    return int(json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["latent_channels"])


def init_folder(config: TrainConfig) -> Path | None:
    """The folder of the model that a run goes on from; None where it begins with random weights."""
    if config.init is None:
        return None
    return SHIPPED_MODEL if config.init == SHIPPED else model_folder(Path(config.init))


def noise_scale_of(config: TrainConfig) -> float:
    """What sampling multiplies its initial noise by, with the model that a run goes on from."""
    folder = init_folder(config)
    if folder is None:
        return 1.0
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return float(index.get("noise_scale", 1.0))


def guidance_of(config: TrainConfig) -> float:
    """The guidance that goes into a light model: the one that is asked for, else what its teacher recommends."""
    if config.light_guidance is not None:
        return config.light_guidance
    folder = init_folder(config)
    return PAPER_GUIDANCE if folder is None else recommended_guidance(folder)


def load_parts(config: TrainConfig, report: Report = lambda text: None) -> dict[str, Any]:
    """Build the parts with random weights, or read them from the pipeline folder `config.init`, in float32.

    A folder's UNet of fewer input channels than the run needs gets new ones that begin at zero. `motion_init`
    replaces the motion modules' weights. Raises UserError where a folder or a checkpoint does not fit.
    """
    folder = init_folder(config)
    if folder is None:
        latents = config.latent_channels or FRESH_LATENTS
        parts = build_tiny(
            config.seed,
            in_channels=_input_channels(config, latents),
            image_prompt=config.image_prompt,
            reference_hint=config.reference_hint,
            bent_hint=config.bent_hint,
            latent_channels=latents,
        )
    else:
        parts = dict(FollowYourEmojiPipeline.from_pretrained(folder).components)
        known = parts["vae"].config["latent_channels"]
        latents = config.latent_channels or known
        if latents < known:
            raise UserError(f"latent_channels must be >= {known}, as {folder} has so many, got {latents}")
        if latents > known:
            parts = with_more_latents(parts, latents)
        hints = {"reference_hint": config.reference_hint, "bent_hint": config.bent_hint}
        parts["unet"] = widened(parts["unet"], _input_channels(config, latents), **hints)
    if config.motion_init is not None:
        report(load_motion(parts["unet"], Path(config.motion_init)))
    return parts


def _input_channels(config: TrainConfig, latents: int) -> int:
    """How many the UNet takes at least, with latents of so many channels. Raises UserError where they are too few."""
    for name, groups in (("bent_hint", 3), ("reference_hint", 2)):
        needed = channels_for(groups, latents)
        if getattr(config, name) and (config.in_channels or needed) < needed:
            raise UserError(f"{name} needs in_channels >= {needed}, got {config.in_channels}; or {name} = false")
    return config.in_channels or channels_for(3 if config.bent_hint else 2, latents)


def widened(
    unet: DenoisingUNet, in_channels: int, *, reference_hint: bool = False, bent_hint: bool = False
) -> DenoisingUNet:
    """The UNet with at least `in_channels` inputs: itself, or one with new columns of zeros in `conv_in`."""
    if unet.config["in_channels"] >= in_channels:
        return unet
    wide = rebuilt(unet, in_channels=in_channels, reference_hint=reference_hint, bent_hint=bent_hint)
    lay(wide.conv_in, unet.conv_in)
    return wide.eval()


def load_motion(unet: DenoisingUNet, path: Path) -> str:
    """Load the motion modules from an AnimateDiff checkpoint; returns a sentence on what was loaded.

    path: a file with the original key names, a diffusers MotionAdapter's file, or the adapter's folder. Without modules
    for the middle block (v1, v3) that one stays as it is. Raises UserError where the file does not fit this UNet.
    """
    state = motion_state(path)
    own = {key: value for key, value in unet.state_dict().items() if ".motion_modules." in key}
    unexpected = sorted(state.keys() - own.keys())
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith(_TABLE))
    kept = [key for key in missing if key.startswith("mid_block.")]
    absent = [key for key in missing if not key.startswith("mid_block.")]
    shapes = [
        key for key in own.keys() & state.keys() if not key.endswith(_TABLE) and own[key].shape != state[key].shape
    ]
    if unexpected or absent or shapes:
        faults = {"unexpected": unexpected, "missing": absent, "of another shape": shapes}
        listed = "; ".join(f"{len(keys)} {what}, such as {sorted(keys)[0]}" for what, keys in faults.items() if keys)
        raise UserError(f"{path} does not fit the UNet's motion modules: {listed}")
    for key, value in state.items():
        if key.endswith(_TABLE):
            _check_table(path, key, value, own[key])
    loaded = {key: value.to(own[key]) for key, value in state.items() if not key.endswith(_TABLE)}
    unet.load_state_dict(loaded, strict=False)
    modules = sum(isinstance(module, AnimateDiffTransformer3D) for module in unet.modules())
    note = "; the middle block's is not in the file and stays as it was" if kept else ""
    return f"motion modules: {modules - bool(kept)} of {modules} from {path}{note}"


def motion_state(path: Path) -> dict[str, Tensor]:
    """An AnimateDiff checkpoint under our key names. Raises UserError where there is none."""
    if path.is_dir():
        files = [path / name for name in _ADAPTER_FILES if (path / name).is_file()]
        if not files:
            raise UserError(f"{path} holds no MotionAdapter: expected {' or '.join(_ADAPTER_FILES)}")
        path = files[0]
    if not path.is_file():
        raise UserError(
            f"motion_init {path} does not exist; name an AnimateDiff checkpoint or a MotionAdapter's folder"
        )
    raw = read_weights(path) if path.suffix == ".safetensors" else _unwrapped(path)
    state: dict[str, Tensor] = {}
    for key, value in raw.items():
        at = [key.find(start) for start in ("down_blocks.", "mid_block.", "up_blocks.") if start in key]
        if ".motion_modules." in key and at:
            state[key[min(at) :]] = value  # without such prefixes as "module."
    if not state:
        raise UserError(f"{path} holds no motion modules (no key with .motion_modules.)")
    return rename(state)


def _unwrapped(path: Path) -> Mapping[str, Any]:
    """A torch checkpoint's weights, also where training wrapped them. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error
    inner = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not isinstance(inner, Mapping):
        raise UserError(f"{path} must hold a dictionary of tensors, got {type(state).__name__}")
    return {key: value for key, value in inner.items() if isinstance(value, Tensor)}


def _check_table(path: Path, key: str, given: Tensor, own: Tensor) -> None:
    """Positions are computed, not trained: a table of another length is no matter, one of other values is."""
    length = min(given.shape[1], own.shape[1])
    if given.shape[2] != own.shape[2] or (given[:, :length].float() - own[:, :length]).abs().max() > _TABLE_ERROR:
        raise UserError(f"{path}: {key} is not the table of sines that this UNet uses")

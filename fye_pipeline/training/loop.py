"""The training loop, through Accelerate: phase I on pictures, phase II on clips, resumable after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.training.batches import Batches, BatchSource, encode_heads
from fye_pipeline.training.clip_batches import ClipBatches, LatentCache
from fye_pipeline.training.config import PhaseConfig, TrainConfig, check_inputs
from fye_pipeline.training.data import HeadData, render_heads
from fye_pipeline.training.dataset import Dataset
from fye_pipeline.training.losses import LossParts
from fye_pipeline.training.outputs import LAST, cut_log, export, sample, save_checkpoint
from fye_pipeline.training.portrait import Average, PortraitModel, motion_left_out
from fye_pipeline.training.start import load_parts
from fye_pipeline.training.steps import Stepper, batches_ahead
from fye_pipeline.training.vae import VaeConfig, normalise_latents, start_as_thumbnail, train_vae
from fye_pipeline.world import World

Report = Callable[[str], None]
LOG = "log.jsonl"


@dataclass
class Progress:
    """What a checkpoint knows beside the weights."""

    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def train(
    config: TrainConfig,
    *,
    output: Path,
    resume: bool = False,
    max_steps: int | None = None,
    on_progress: Report = print,
) -> Path:
    """Run a whole recipe: data, on rendered heads also the autoencoder, then both phases. Returns the model's folder.

    output: a folder that gets `config.json`, `data`, `vae`, one folder per phase (checkpoints, logs, samples) and
    `model`, the pipeline folder in float16. resume: go on from what is there. max_steps: end each phase early, after
    that many steps in all.
    Raises UserError if `output` holds a run and `resume` is not set, and where the recipe's inputs are missing.
    """
    output = Path(output)
    check_inputs(config)
    if (output / "config.json").exists() and not resume:
        raise UserError(f"{output} already holds a training run; continue it with --resume or choose another folder.")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without this, processes on CPUs do not find each other
        mixed_precision=config.mixed_precision,
        log_with="tensorboard",
        project_dir=output,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    report = on_progress if accelerator.is_main_process else _silent
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.json").write_text(config.to_json(), encoding="utf-8")
    batches, parts = _prepare(config, output, accelerator, report)
    for phase in config.phases:
        _train_phase(phase, config, accelerator, parts, batches, output / phase, resume, max_steps, report)
    if accelerator.is_main_process:
        export(parts, output / "model")
    accelerator.end_training()
    return output / "model"


def _silent(message: str) -> None:
    """Only the main process speaks."""


def _prepare(
    config: TrainConfig, output: Path, accelerator: Accelerator, report: Report
) -> tuple[BatchSource, dict[str, Any]]:
    """Make the data and build the parts, the autoencoder trained and on its device."""
    folder = Path(config.data) if config.data else output / "data"
    parts = load_parts(config, report)
    seed = config.seed if config.data_seed is None else config.data_seed
    if config.dataset is not None:
        dataset = Dataset(config.dataset)
        report(f"dataset: {len(dataset)} clips of {dataset.size} pixels in {config.dataset}")
        return _clip_batches(config, dataset, parts, folder, accelerator, seed, report), parts
    world = World(CanonicalFace.load(), seed=config.seed)
    with accelerator.main_process_first():
        report(f"heads: {config.heads} in {folder}")
        data = render_heads(world, folder, config.heads, jobs=config.workers)
    if config.init is None:
        _obtain_vae(config, parts, data, output / "vae", accelerator, report)
    parts["vae"].to(accelerator.device)
    with accelerator.main_process_first():
        latents = encode_heads(parts["vae"], data, folder)
    return Batches(data, latents, parts["feature_extractor"], seed, config.landmark_style), parts


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
    )


def _obtain_vae(
    config: TrainConfig, parts: dict[str, Any], data: HeadData, folder: Path, accelerator: Accelerator, report: Report
) -> None:
    """Train the autoencoder, or read what a former run made; the main process works, the others wait."""
    with accelerator.main_process_first():
        if not (folder / "config.json").exists():
            vae = parts["vae"]
            start_as_thumbnail(vae)
            vae.to(accelerator.device)
            settings = VaeConfig(seconds=config.vae_seconds, batch=config.vae_batch, seed=config.seed)
            train_vae(vae, data, folder, settings, on_progress=report, resume=True)
            normalise_latents(vae, data)
            vae.save_pretrained(folder)
    parts["vae"] = type(parts["vae"]).from_pretrained(folder)


def _train_phase(
    phase: str,
    config: TrainConfig,
    accelerator: Accelerator,
    parts: dict[str, Any],
    batches: BatchSource,
    folder: Path,
    resume: bool,
    max_steps: int | None,
    report: Report,
) -> None:
    """Train one phase to its end and leave the averaged weights in `parts`."""
    settings: PhaseConfig = getattr(config, phase)
    folder.mkdir(parents=True, exist_ok=True)
    model = PortraitModel(parts).to(accelerator.device).train()
    if config.gradient_checkpointing:
        parts["unet"].enable_gradient_checkpointing()
        parts["appearance_net"].enable_gradient_checkpointing()
    trainable = model.choose_trainable(phase, image_encoder=config.train_image_encoder, conv_in=config.train_conv_in)
    optimizer = torch.optim.AdamW(
        trainable, lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
    )
    average, progress = Average(model, settings.ema), Progress()
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator._custom_objects.clear()  # a phase registers its own objects only
    accelerator.register_for_checkpointing(average, progress)
    if resume and (folder / LAST).exists():
        accelerator.load_state(str(folder / json.loads((folder / LAST).read_text(encoding="utf-8"))["folder"]))
        report(f"{phase}: resumed at step {progress.step}")
        if accelerator.is_main_process:
            cut_log(folder / LOG, progress.step)
    accelerator.init_trackers(phase)
    end = min(settings.steps, max_steps if max_steps is not None else settings.steps)
    clips = phase == "video"
    trainer = Stepper(config, settings, accelerator, prepared, optimizer, parts, clips=clips)
    ahead = batches_ahead(
        batches,
        settings,
        range(progress.step, end),
        rank=accelerator.process_index,
        clips=clips,
        parts=config.parts(settings),
        workers=config.workers,
    )
    log = _Log(phase, settings, folder, accelerator, report)
    while progress.step < end:
        begun = time.monotonic()
        with nullcontext() if clips else motion_left_out(model):
            loss, rate = trainer.step(progress.step, ahead)
        average.update(model)
        progress.step += 1
        progress.seconds += time.monotonic() - begun
        log.add(progress, loss, rate, now=progress.step % config.log_every == 0 or progress.step == end)
        if progress.step % config.checkpoint_every == 0 or progress.step == end:
            save_checkpoint(accelerator, folder, progress.step, config.keep_checkpoints)
        if config.sample_every and accelerator.is_main_process and progress.step % config.sample_every == 0:
            average.swap(model)
            model.eval()
            sample(parts, batches, folder / "samples" / f"{progress.step:06d}.png")
            model.train()
            average.swap(model)
    average.swap(model)
    model.eval()
    accelerator.free_memory()


class _Log:
    """The losses as lines of JSON, as TensorBoard scalars and as progress, from the main process."""

    def __init__(
        self, phase: str, settings: PhaseConfig, folder: Path, accelerator: Accelerator, report: Report
    ) -> None:
        self.phase, self.settings, self.accelerator, self.report = phase, settings, accelerator, report
        self.path = folder / LOG
        self.recent: list[float] = []

    def add(self, progress: Progress, loss: LossParts, rate: float, *, now: bool) -> None:
        """Note a step; write it if `now`. Raises FloatingPointError once the loss is not finite."""
        values = {name: float(getattr(loss, name).detach()) for name in ("total", "ldm", "ffg")} | {"lr": rate}
        total, step = values["total"], progress.step
        if not np.isfinite(total):
            raise FloatingPointError(f"{self.phase}: the loss is {total} at step {step}; lower the rate")
        self.recent = [*self.recent[-199:], total]
        if not (now and self.accelerator.is_main_process):
            return
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, "seconds": round(progress.seconds, 1), **values}) + "\n")
        self.accelerator.log({f"{self.phase}/{name}": value for name, value in values.items()}, step=step)
        self.report(
            f"{self.phase} {step}/{self.settings.steps}  loss {total:.4f}  mean {np.mean(self.recent):.4f}  "
            f"ldm {values['ldm']:.4f}  lr {rate:.1e}  {progress.seconds / step:.2f} s/step"
        )

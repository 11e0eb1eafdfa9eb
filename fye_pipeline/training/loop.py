"""The training loop, through Accelerate: phase I on pictures, phase II on clips, resumable after a kill."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from fye_pipeline.errors import UserError
from fye_pipeline.training.batches import BatchSource, batches_ahead
from fye_pipeline.training.checkpointing import (
    Average,
    Progress,
    cut_log,
    export,
    load_checkpoint,
    sample,
    save_checkpoint,
)
from fye_pipeline.training.config import PhaseConfig, TrainConfig, check_inputs
from fye_pipeline.training.light import train_light
from fye_pipeline.training.losses import LossParts
from fye_pipeline.training.start import Report, noise_scale_of, open_run
from fye_pipeline.training.steps import PortraitModel, Stepper, motion_left_out

LOG = "log.jsonl"


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
    batches, parts = open_run(config, output, accelerator, report)
    recipe: dict[str, Any] | None = None
    for phase in config.phases:
        if phase == "light":
            train_light(
                config, accelerator, parts, batches, output / phase, resume=resume, max_steps=max_steps, report=report
            )
            recipe = {"name": config.name, "guidance": 1.0, "steps": config.stages[-1]}
        else:
            _train_phase(phase, config, accelerator, parts, batches, output / phase, resume, max_steps, report)
    if accelerator.is_main_process:
        export(parts, output / "model", noise_scale=noise_scale_of(config), recipe=recipe)
    accelerator.end_training()
    return output / "model"


def _silent(message: str) -> None:
    """Only the main process speaks."""


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
    average, progress = Average(trainable, settings.ema), Progress()
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator._custom_objects.clear()  # a phase registers its own objects only
    accelerator.register_for_checkpointing(average, progress)
    if resume and load_checkpoint(accelerator, folder):
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
        average.step(trainable)
        progress.step += 1
        progress.seconds += time.monotonic() - begun
        log.add(progress, loss, rate, now=progress.step % config.log_every == 0 or progress.step == end)
        if progress.step % config.checkpoint_every == 0 or progress.step == end:
            save_checkpoint(accelerator, folder, progress.step, config.keep_checkpoints)
        if config.sample_every and accelerator.is_main_process and progress.step % config.sample_every == 0:
            average.store(trainable)
            average.copy_to(trainable)
            model.eval()
            sample(parts, batches, folder / "samples" / f"{progress.step:06d}.png")
            model.train()
            average.restore(trainable)
    average.copy_to(trainable)
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

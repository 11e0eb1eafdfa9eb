"""The phase `light` of `fye train`: the portrait UNet taught to need few steps and no guidance (`distillation`).

Everything that the UNet is given beside latents and time stays as it is and is made once for each clip; a step is then
one call of the student and one or two of its teacher.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fye_pipeline.storage.files import atomic_target
from fye_pipeline.training.batches import Batch, BatchSource
from fye_pipeline.training.checkpointing import Average, Progress, cut_log, load_checkpoint, save_checkpoint
from fye_pipeline.training.config import TrainConfig
from fye_pipeline.training.distillation import Noising, Predict, distillation_loss, stage_target
from fye_pipeline.training.losses import with_given_frames
from fye_pipeline.training.start import guidance_of, noise_scale_of
from fye_pipeline.training.steps import PortraitModel

LOG = "log.jsonl"
FINISHED = "unet.safetensors"  # of a stage


@dataclass(frozen=True)
class ClipConditions:
    """What the UNet is given of clips beside latents and time, and clean latents [B, C, F, h, w].

    channels [B, C, F, h, w]: behind the latents. tokens [B, L, D], references and landmarks as its arguments. keep [B]:
    False for no reference, which is what guidance strengthens.
    """

    clean: Tensor
    channels: Tensor
    tokens: Tensor
    references: list[Tensor]
    landmarks: list[Tensor]
    keep: Tensor

    def without_reference(self) -> ClipConditions:
        """The row that guidance goes away from, as in animation."""
        return replace(self, keep=torch.zeros_like(self.keep))


@torch.no_grad()
def conditions_of(model: PortraitModel, batch: Batch) -> ClipConditions:
    """Work out what stays the same at every step, for a batch with latents; no frame is given."""
    assert batch.clean is not None
    assert batch.reference is not None
    clean, config = batch.clean, model.unet.config
    keep = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
    channels = clean[:, :0]
    if model.unet.takes_frames:
        nothing = torch.zeros(len(clean), clean.shape[2], dtype=torch.bool, device=clean.device)
        hint = batch.reference if config["reference_hint"] else None
        channels = with_given_frames(clean, clean, nothing, hint, batch.bent)[:, clean.shape[1] :]
    tokens = model.image_encoder(batch.prompt_pixels).last_hidden_state
    references = model.appearance_net(batch.reference, tokens)
    return ClipConditions(clean, channels, tokens, references, model.landmark_encoder(batch.landmarks), keep)


def predicting(unet: nn.Module) -> Predict:
    """How the UNet predicts v of latents [B, C, F, h, w] under `ClipConditions`."""

    def predict(latents: Tensor, times: Tensor, given: ClipConditions) -> Tensor:
        return unet(
            torch.cat([latents, given.channels], dim=1),
            times,
            encoder_hidden_states=given.tokens * given.keep[:, None, None].to(given.tokens),
            reference_tokens=given.references,
            reference_mask=given.keep,
            landmark_features=given.landmarks,
        ).sample

    return predict


def train_light(
    config: TrainConfig,
    accelerator: Accelerator,
    parts: dict[str, Any],
    batches: BatchSource,
    folder: Path,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Halve the steps stage by stage; `parts` then hold a UNet for `config.stages[-1]` of them at guidance 1.

    The first stage puts the guidance into the UNet; at guidance 1 there is none, and it begins with the second. folder:
    a folder for each stage, with checkpoints, a log and the finished weights. max_steps: of each stage.
    """
    model = PortraitModel(parts).to(accelerator.device).eval().requires_grad_(False)
    scale = guidance_of(config)
    source = _Clips(model, parts["vae"], batches, config, accelerator.device)
    for number, steps in enumerate(config.stages):
        stage = folder / f"{steps}-steps"
        finished = stage / FINISHED
        if number == 0 and scale == 1:
            report(f"light: guidance is 1, so that {steps} steps are the model's own")
            continue
        if resume and finished.is_file():
            parts["unet"].load_state_dict(load_file(finished))
            continue
        stage.mkdir(parents=True, exist_ok=True)
        run = _Stage(number, steps, scale, parts["scheduler"], noise_scale_of(config))
        run.train(config, accelerator, parts["unet"], source, stage, resume, max_steps, report)
        if accelerator.is_main_process:
            with atomic_target(finished) as temporary:
                save_file({name: value.contiguous() for name, value in parts["unet"].state_dict().items()}, temporary)


class _Clips:
    """Conditions of clips by number, each made once."""

    def __init__(
        self, model: PortraitModel, vae: nn.Module, batches: BatchSource, config: TrainConfig, device: torch.device
    ) -> None:
        self.model, self.vae, self.batches, self.device = model, vae, batches, device
        self.rows, self.frames, self.count = config.light.batch, config.light.frames, config.light_clips
        self.kept: dict[int, ClipConditions] = {}

    def __call__(self, step: int) -> ClipConditions:
        number = step % self.count
        if number not in self.kept:
            batch = self.batches.draw(self.rows, self.frames, number, clips=True).to(self.device)
            self.kept[number] = conditions_of(self.model, batch.encoded(self.vae))
        return self.kept[number]


@dataclass(frozen=True)
class _Stage:
    """One stage: number in the order of stages, the steps of its student, and the noise that sampling begins with."""

    number: int
    steps: int
    scale: float
    scheduler: Any
    noise_scale: float

    def train(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        unet: nn.Module,
        source: _Clips,
        folder: Path,
        resume: bool,
        max_steps: int | None,
        report: Callable[[str], None],
    ) -> None:
        """Train the UNet, whose weights of now are the teacher's; the average of its weights stays in it."""
        settings, noising = config.light, Noising.of(self.scheduler)
        teacher = predicting(copy.deepcopy(unet).requires_grad_(False).eval())
        target = stage_target(teacher, noising, self.number, self.steps, ClipConditions.without_reference, self.scale)
        trained = list(unet.requires_grad_(True).parameters())
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
        average, progress = Average(trained, settings.ema), Progress()
        student, optimizer = accelerator.prepare(unet, optimizer)
        accelerator._custom_objects.clear()  # a stage registers its own objects only
        accelerator.register_for_checkpointing(average, progress)
        if resume and load_checkpoint(accelerator, folder):
            report(f"light, {self.steps} steps: resumed at {progress.step}")
            if accelerator.is_main_process:
                cut_log(folder / LOG, progress.step)
        predict, end = predicting(student), min(settings.steps, max_steps or settings.steps)
        losses: list[float] = []
        while progress.step < end:
            begun = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr_at(progress.step)
            given = source(progress.step)
            seed = np.random.SeedSequence([9, config.seed, self.number, progress.step, accelerator.process_index])
            generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
            loss = distillation_loss(
                predict, target, noising, given.clean, given, self.steps, generator, noise_scale=self.noise_scale
            )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            average.step(trained)
            progress.step += 1
            progress.seconds += time.monotonic() - begun
            losses.append(float(loss.detach()))
            if progress.step % config.log_every == 0 or progress.step == end:
                seconds, recent = progress.seconds, losses[-config.log_every :]
                mean = sum(recent) / len(recent)
                if accelerator.is_main_process:
                    with (folder / LOG).open("a", encoding="utf-8") as log:
                        line = {"step": progress.step, "seconds": round(seconds, 1), "loss": mean}
                        log.write(json.dumps(line) + "\n")
                done, pace = f"{progress.step}/{settings.steps}", seconds / progress.step
                report(f"light, {self.steps} steps: {done}  loss {mean:.5f}  {pace:.2f} s/step")
            if progress.step % config.checkpoint_every == 0 or progress.step == end:
                save_checkpoint(accelerator, folder, progress.step, config.keep_checkpoints)
        average.copy_to(trained)
        unet.requires_grad_(False)
        accelerator.free_memory()

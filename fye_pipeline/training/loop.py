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
from torch import Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.model_file import find_face_landmarker
from fye_pipeline.models.tiny import build_tiny
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training.batches import Batches, encode_heads
from fye_pipeline.training.config import PhaseConfig, TrainConfig
from fye_pipeline.training.data import HeadData, render_heads
from fye_pipeline.training.losses import LossParts, add_noise, noise_levels, training_loss
from fye_pipeline.training.masking import draw_given_frames, with_given_frames
from fye_pipeline.training.outputs import LAST, export, sample, save_checkpoint
from fye_pipeline.training.portrait import Average, PortraitModel, motion_left_out
from fye_pipeline.training.vae import VaeConfig, normalise_latents, start_as_thumbnail, train_vae
from fye_pipeline.world import World

Report = Callable[[str], None]


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
    face_landmarker: Path | None = None,
    on_progress: Report = print,
) -> Path:
    """Run a whole recipe: render heads, train the autoencoder, both phases. Returns the folder of the trained model.

    output: a folder that gets `config.json`, `data`, `vae`, one folder per phase (checkpoints, logs, samples) and
    `model`, the pipeline folder in float16. resume: go on from what is there. max_steps: end each phase early, after
    that many steps in all. Raises UserError if `output` holds a run and `resume` is not set.
    """
    output = Path(output)
    if (output / "config.json").exists() and not resume:
        raise UserError(f"{output} already holds a training run; continue it with --resume or choose another folder.")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation,
        log_with="tensorboard",
        project_dir=output,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    report = on_progress if accelerator.is_main_process else _silent
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.json").write_text(config.to_json(), encoding="utf-8")
    data, parts = _prepare(config, output, accelerator, face_landmarker, report)
    latents = encode_heads(parts["vae"], data, Path(config.data) if config.data else output / "data")
    batches = Batches(data, latents, parts["feature_extractor"], config.seed)
    for phase in config.phases:
        _train_phase(phase, config, accelerator, parts, batches, output / phase, resume, max_steps, report)
    if accelerator.is_main_process:
        export(parts, output / "model")
    accelerator.end_training()
    return output / "model"


def _silent(message: str) -> None:
    """Only the main process speaks."""


def _prepare(
    config: TrainConfig, output: Path, accelerator: Accelerator, task: Path | None, report: Report
) -> tuple[HeadData, dict[str, Any]]:
    """Render the heads and build the parts, with a trained autoencoder; the main process works, the others wait."""
    world = World(CanonicalFace.from_task(find_face_landmarker(task)), seed=config.seed)
    folder = Path(config.data) if config.data else output / "data"
    with accelerator.main_process_first():
        report(f"heads: {config.heads} in {folder}")
        data = render_heads(world, folder, config.heads)
    parts = load_parts(config)
    if config.init is None:
        with accelerator.main_process_first():
            if not (output / "vae" / "config.json").exists():
                vae_config = VaeConfig(seconds=config.vae_seconds, seed=config.seed)
                start_as_thumbnail(parts["vae"])
                train_vae(parts["vae"], data, output / "vae", vae_config, on_progress=report, resume=True)
                normalise_latents(parts["vae"], data)
                parts["vae"].save_pretrained(output / "vae")
        parts["vae"] = type(parts["vae"]).from_pretrained(output / "vae")
    return data, parts


def load_parts(config: TrainConfig) -> dict[str, Any]:
    """Build the parts with random weights, or read them from the pipeline folder `config.init`, in float32."""
    if config.init is None:
        return build_tiny(
            config.seed,
            in_channels=config.in_channels,
            image_prompt=config.image_prompt,
            reference_hint=config.reference_hint,
        )
    return dict(FollowYourEmojiPipeline.from_pretrained(config.init).components)


def _train_phase(
    phase: str,
    config: TrainConfig,
    accelerator: Accelerator,
    parts: dict[str, Any],
    batches: Batches,
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
    trainable = model.choose_trainable(phase)
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
    accelerator.init_trackers(phase)
    end = min(settings.steps, max_steps if max_steps is not None else settings.steps)
    clips = phase == "video"
    trainer = _Stepper(config, settings, accelerator, prepared, optimizer, parts["scheduler"], batches, clips)
    log = _Log(phase, settings, folder, accelerator, report)
    while progress.step < end:
        begun = time.monotonic()
        with nullcontext() if clips else motion_left_out(model):
            loss, rate = trainer.step(progress.step)
        if accelerator.sync_gradients:
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
        self.path = folder / "log.jsonl"
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


class _Stepper:
    """One optimizer step as a function of its number, so that a resumed run repeats it exactly."""

    def __init__(
        self,
        config: TrainConfig,
        settings: PhaseConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: Any,
        scheduler: Any,
        batches: Batches,
        clips: bool,
    ) -> None:
        self.config, self.settings, self.accelerator = config, settings, accelerator
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.alphas: Tensor = scheduler.alphas_cumprod
        self.clips, self.hint = clips, config.reference_hint

    def step(self, number: int) -> tuple[LossParts, float]:
        """Draw a batch and noise from the step's own seed, and take the step. -> the losses and the rate."""
        settings, rank = self.settings, self.accelerator.process_index
        seed = [7, self.config.seed, int(self.clips), number, rank]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        batch = self.batches.draw(settings.batch, settings.frames, number, rank, clips=self.clips)
        rate = settings.lr_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        count = settings.batch
        # One timestep from each of `count` equal ranges: less noisy than independent draws.
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (share * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(batch.clean.shape, generator=generator)
        keep = torch.rand(count, generator=generator) >= settings.cfg_dropout
        given = draw_given_frames(count, settings.frames, none_share=settings.none_given, generator=generator)
        device = self.accelerator.device
        batch, noise, timesteps, keep = batch.to(device), noise.to(device), timesteps.to(device), keep.to(device)
        with self.accelerator.accumulate(self.model):
            loss = self._loss(batch, noise, timesteps, keep, given.to(device))
            self.accelerator.backward(loss.total)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, rate

    def _loss(self, batch: Any, noise: Tensor, timesteps: Tensor, keep: Tensor, given: Tensor) -> LossParts:
        alpha, sigma = noise_levels(self.alphas, timesteps, batch.clean)
        sample = add_noise(batch.clean, noise, alpha, sigma)
        if self.config.in_channels > 4:
            # Like the landmarks, the hint is never dropped: guidance strengthens the reference's tokens and the prompt.
            sample = with_given_frames(sample, batch.clean, given, batch.reference if self.hint else None)
        with self.accelerator.autocast():
            predicted = self.model(sample, timesteps, batch, keep)
        return training_loss(
            predicted.float(),
            batch.clean,
            noise,
            alpha,
            sigma,
            expression_mask=batch.expression if self.config.expression_loss else None,
            facial_mask=batch.face if self.config.facial_loss else None,
            ffg_weight=self.config.ffg_weight,
        )

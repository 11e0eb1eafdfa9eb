"""One optimizer step as a function of its number, and the batches for it, made ahead by worker processes if wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed

from fye_pipeline.training.batches import Batch, BatchSource
from fye_pipeline.training.config import PhaseConfig, TrainConfig
from fye_pipeline.training.losses import LossParts, add_noise, noise_levels, training_loss
from fye_pipeline.training.masking import draw_given_frames, with_given_frames

AHEAD = 2  # batches that each worker holds ready


@dataclass(frozen=True)
class _Numbered(Indexed[Batch]):
    """Batches by number: part p of step s is number s * parts + p."""

    batches: BatchSource
    batch: int
    frames: int
    rank: int
    clips: bool
    parts: int

    def __getitem__(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        rows = self.batch // self.parts
        return self.batches.draw(
            self.batch,
            self.frames,
            step,
            self.rank,
            clips=self.clips,
            part=slice(part * rows, (part + 1) * rows),
        )


def batches_ahead(
    batches: BatchSource,
    settings: PhaseConfig,
    steps: range,
    *,
    rank: int = 0,
    clips: bool,
    parts: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """The batches of `steps` in order, `parts` for each. How many workers make them has no influence on them."""
    numbered = _Numbered(batches, settings.batch, settings.frames, rank, clips, parts)
    numbers = range(steps.start * parts, steps.stop * parts)
    if workers == 0 or not numbers:
        return map(numbered.__getitem__, numbers)
    loader = DataLoader(
        numbered,
        batch_size=None,
        sampler=numbers,
        num_workers=min(workers, os.cpu_count() or 1),
        prefetch_factor=AHEAD,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the global one stays as it is
    )
    return iter(loader)


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork


class Stepper:
    """One optimizer step as a function of its number, so that a resumed run repeats it exactly."""

    def __init__(
        self,
        config: TrainConfig,
        settings: PhaseConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: Any,
        parts: dict[str, Any],
        *,
        clips: bool,
    ) -> None:
        self.config, self.settings, self.accelerator = config, settings, accelerator
        self.model, self.optimizer, self.vae = model, optimizer, parts["vae"]
        self.alphas: Tensor = parts["scheduler"].alphas_cumprod
        self.clips = clips
        self.given, self.hint = parts["unet"].config["in_channels"] > 4, parts["unet"].config["reference_hint"]

    def step(self, number: int, batches: Iterator[Batch]) -> tuple[LossParts, float]:
        """Draw noise from the step's own seed and take the step, part by part. -> the losses and the rate.

        The parts of a batch share one draw of noise and one step of the optimizer: their gradients are the whole's.
        """
        settings, rank = self.settings, self.accelerator.process_index
        rate = settings.lr_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pieces = self.config.parts(settings)
        drawn: list[Tensor] | None = None
        losses = []
        for part in range(pieces):
            batch = next(batches).to(self.accelerator.device).encoded(self.vae)
            assert batch.clean is not None
            if drawn is None:
                drawn = self._draw(number, rank, tuple(batch.clean.shape[1:]))
            rows = slice(part * len(batch.clean), (part + 1) * len(batch.clean))
            last = part == pieces - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(batch, *(values[rows] for values in drawn))
                self.accelerator.backward(loss.total / pieces)
            losses.append(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean_loss(losses), rate

    def _draw(self, number: int, rank: int, shape: tuple[int, ...]) -> list[Tensor]:
        """A step's noise [B, *shape], timesteps [B], kept references [B] and given frames [B, F], on the device."""
        settings, count = self.settings, self.settings.batch
        seed = self.config.seed if self.config.data_seed is None else self.config.data_seed
        sequence = np.random.SeedSequence([7, seed, int(self.clips), number, rank])
        generator = torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
        # One timestep from each of `count` equal ranges: less noisy than independent draws.
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (share * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn((count, *shape), generator=generator)
        keep = torch.rand(count, generator=generator) >= settings.cfg_dropout
        given = draw_given_frames(count, settings.frames, none_share=settings.none_given, generator=generator)
        return [values.to(self.accelerator.device) for values in (noise, timesteps, keep, given)]

    def _loss(self, batch: Batch, noise: Tensor, timesteps: Tensor, keep: Tensor, given: Tensor) -> LossParts:
        assert batch.clean is not None
        alpha, sigma = noise_levels(self.alphas, timesteps, batch.clean)
        sample = add_noise(batch.clean, noise, alpha, sigma)
        if self.given:
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


def mean_loss(losses: Sequence[LossParts]) -> LossParts:
    """The mean over equal parts of a batch, which is the loss of the whole, without gradients."""
    names = ("total", "ldm", "ffg")
    return LossParts(*(torch.stack([getattr(loss, name).detach() for loss in losses]).mean() for name in names))

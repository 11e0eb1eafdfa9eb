"""Distillation of the portrait model: `distillation` with what its UNet is given beside latents and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fye_pipeline.training.batches import Batch
from fye_pipeline.training.distillation import Noising, Predict, distil
from fye_pipeline.training.losses import with_given_frames
from fye_pipeline.training.steps import PortraitModel


@dataclass(frozen=True)
class PortraitConditions:
    """batch: with latents. given [B, F]: clean frames that the model is shown. keep [B]: False for no reference."""

    batch: Batch
    given: Tensor
    keep: Tensor


def predicting(model: Any) -> Predict:
    """How a `PortraitModel` predicts v of latents [B, 4, F, h, w]."""

    def predict(latents: Tensor, times: Tensor, conditions: PortraitConditions) -> Tensor:
        batch, sample = conditions.batch, latents
        assert batch.clean is not None
        if model.unet.config["in_channels"] > 4:
            hint = batch.reference if model.unet.config["reference_hint"] else None
            sample = with_given_frames(latents, batch.clean, conditions.given, hint, batch.bent)
        return model(sample, times, batch, conditions.keep)

    return predict


def without_reference(conditions: PortraitConditions) -> PortraitConditions:
    """What guidance strengthens is the reference's tokens and the prompt, as in animation."""
    return replace(conditions, keep=torch.zeros_like(conditions.keep))


def light_portrait(
    model: PortraitModel,
    scheduler: Any,
    batch_of: Callable[[int], Batch],
    *,
    scale: float,
    stages: Sequence[int] = (32, 16, 8, 4),
    updates: int = 1000,
    lr: float = 1e-4,
) -> PortraitModel:
    """A portrait model for `stages[-1]` steps at guidance 1. The one that is given stays as it is.

    batch_of: a batch with latents by the number of its draw. scheduler: with the noise that the model was trained with.
    scale: guidance that goes into the model. Raises ValueError as `distil`.
    """
    drawn = iter(range(updates * len(stages)))

    def draw(generator: torch.Generator) -> tuple[Tensor, PortraitConditions]:
        batch = batch_of(next(drawn))
        assert batch.clean is not None
        rows, frames = batch.clean.shape[0], batch.clean.shape[2]
        nothing = torch.zeros(rows, frames, dtype=torch.bool)
        return batch.clean, PortraitConditions(batch, nothing, torch.ones(rows, dtype=torch.bool))

    made = distil(
        model,
        draw,
        Noising.of(scheduler),
        teach=predicting,
        without=without_reference,
        scale=scale,
        stages=stages,
        updates=updates,
        lr=lr,
    )
    assert isinstance(made, PortraitModel)
    return made

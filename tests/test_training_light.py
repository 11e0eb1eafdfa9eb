"""The portrait model distilled: what its guided teacher predicts it predicts in one call; at a tiny size."""

from __future__ import annotations

from pathlib import Path

import torch
from training_parts import make_dataset, small_parts

from fye_pipeline.training.batches import Batch
from fye_pipeline.training.clip_batches import ClipBatches
from fye_pipeline.training.dataset import Dataset
from fye_pipeline.training.distillation import guided, trailing_times
from fye_pipeline.training.light import PortraitConditions, light_portrait, predicting, without_reference
from fye_pipeline.training.steps import PortraitModel


def test_a_portrait_model_takes_guidance_in(tmp_path: Path) -> None:
    parts = small_parts()
    dataset = Dataset(make_dataset(tmp_path / "made"))
    batches = ClipBatches(dataset, None, parts["feature_extractor"], 0, cell=8, max_stride=1)
    batch = batches.draw(2, 2, 0, clips=True).encoded(parts["vae"])
    model = PortraitModel(parts).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def batch_of(number: int) -> Batch:
        return batch

    student = light_portrait(model, parts["scheduler"], batch_of, scale=4.0, stages=(4, 2), updates=2, lr=2e-3)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    only = light_portrait(model, parts["scheduler"], batch_of, scale=4.0, stages=(2,), updates=16, lr=3e-3)
    assert batch.clean is not None
    rows, frames = batch.clean.shape[0], batch.clean.shape[2]
    given, keep = torch.zeros(rows, frames, dtype=torch.bool), torch.ones(rows, dtype=torch.bool)
    conditions = PortraitConditions(batch, given, keep)
    latents = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([trailing_times(2)[0]] * rows)
    with torch.no_grad():
        wanted = guided(predicting(model), without_reference, 4.0)(latents, times, conditions)
        plain, taught, halved = (predicting(each)(latents, times, conditions) for each in (model, only, student))
    assert (taught - wanted).abs().mean() < 0.9 * (plain - wanted).abs().mean()
    assert halved.isfinite().all()
    assert (halved - plain).abs().max() > 1e-4

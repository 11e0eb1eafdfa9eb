"""One step under every way of computing it: parts of a batch, checkpointing, precision, workers, cached latents."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from training_parts import fresh_accelerate, make_dataset, small_parts

from fye_pipeline.errors import UserError
from fye_pipeline.training.batches import batches_ahead
from fye_pipeline.training.clip_batches import ClipBatches, LatentCache
from fye_pipeline.training.config import build_config
from fye_pipeline.training.dataset import Dataset
from fye_pipeline.training.steps import PortraitModel, Stepper, motion_left_out

__all__ = ["fresh_accelerate"]  # a fixture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(make_dataset(tmp_path_factory.mktemp("steps") / "made"))


class Recorder:
    """An optimizer that keeps the gradients and changes nothing."""

    def __init__(self, model: PortraitModel) -> None:
        self.model, self.param_groups = model, [{"lr": 0.0}]
        self.gradients: dict[str, torch.Tensor] = {}

    def step(self) -> None:
        self.gradients = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def zero_grad(self) -> None:
        self.model.zero_grad()


def take_step(dataset: Dataset, phase: str, number: int = 0, **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """One step of the small model on the dataset -> its loss and gradients."""
    shape = {"batch": 4, "frames": 3, "clip_norm": 1e9, "none_given": 0.5}
    config = build_config({"init": "x", "dataset": "x", "phases": [phase], **options, phase: shape})
    parts, clips = small_parts(), phase == "video"
    parts["unet"].requires_grad_(True)
    model = PortraitModel(parts).train()
    if config.gradient_checkpointing:
        parts["unet"].enable_gradient_checkpointing()
        parts["appearance_net"].enable_gradient_checkpointing()
    model.choose_trainable(phase)
    recorder = Recorder(model)
    accelerator = Accelerator(cpu=True, mixed_precision=config.mixed_precision)
    seed = config.seed if config.data_seed is None else config.data_seed
    batches = ClipBatches(
        dataset, None, parts["feature_extractor"], seed, cell=8, style=config.landmark_style, max_stride=1
    )
    settings = getattr(config, phase)
    stepper = Stepper(config, settings, accelerator, model, recorder, parts, clips=clips)
    ahead = batches_ahead(batches, settings, range(number, number + 1), clips=clips, parts=config.parts(settings))
    if clips:
        loss, _ = stepper.step(number, ahead)
    else:
        with motion_left_out(model):
            loss, _ = stepper.step(number, ahead)
    return float(loss.total), recorder.gradients


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 10
    largest = max(float(value.abs().max()) for value in one.values())
    for name, value in one.items():
        assert float((value - other[name]).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize("phase", ["image", "video"])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(dataset: Dataset, phase: str) -> None:
    whole, gradients = take_step(dataset, phase)
    for parts in (2, 4):
        loss, pieces = take_step(dataset, phase, gradient_accumulation=parts)
        assert loss == pytest.approx(whole, rel=1e-5)
        assert_same(gradients, pieces)


@pytest.mark.parametrize("phase", ["image", "video"])
def test_checkpointing_gives_the_same_gradients(dataset: Dataset, phase: str) -> None:
    loss, gradients = take_step(dataset, phase)
    again, recomputed = take_step(dataset, phase, gradient_checkpointing=True)
    assert again == pytest.approx(loss, rel=1e-6)
    assert_same(gradients, recomputed)


def test_bfloat16_is_near_float32_and_keeps_float32_gradients(dataset: Dataset) -> None:
    exact, gradients = take_step(dataset, "image")
    AcceleratorState._reset_state(True)
    loss, rounded = take_step(dataset, "image", mixed_precision="bf16")
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)
    assert all(value.dtype == torch.float32 for value in rounded.values())
    one, other = (torch.cat([value.flatten() for value in each.values()]) for each in (gradients, rounded))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_data_and_noise_follow_the_data_seed_and_the_step(dataset: Dataset) -> None:
    first, _ = take_step(dataset, "image", seed=1)
    assert take_step(dataset, "image", seed=0, data_seed=1)[0] == first
    assert take_step(dataset, "image", seed=1, data_seed=2)[0] != first
    assert take_step(dataset, "image", number=1, seed=1)[0] != first


@pytest.mark.parametrize("half", ["expression_loss", "facial_loss"])
def test_each_half_of_the_facial_loss_can_be_switched_off(dataset: Dataset, half: str) -> None:
    both, _ = take_step(dataset, "image")
    one, _ = take_step(dataset, "image", **{half: False})
    none, _ = take_step(dataset, "image", expression_loss=False, facial_loss=False)
    assert none < one < both


def test_landmark_styles_reach_the_batches(dataset: Dataset) -> None:
    styles = ("expression", "with-contour", "without-pupils", "plain")
    pictures = [batches_of(dataset, style=style).draw(1, 3, 0, clips=False).landmarks for style in styles]
    assert all(not torch.equal(*pair) for pair in itertools.combinations(pictures, 2))


def batches_of(dataset: Dataset, latents: LatentCache | None = None, **options: Any) -> ClipBatches:
    parts = small_parts()
    return ClipBatches(dataset, latents, parts["feature_extractor"], 0, cell=8, **options)


@pytest.mark.parametrize("clips", [False, True])
def test_cached_latents_are_those_that_a_step_encodes(dataset: Dataset, tmp_path: Path, clips: bool) -> None:
    vae = small_parts()["vae"]
    cache = LatentCache(dataset, vae, tmp_path)
    for rank in range(2):
        cache.fill(vae, rank=rank, processes=2, report=lambda text: None)
    cached = batches_of(dataset, cache).draw(3, 3, 5, clips=clips)
    encoded = batches_of(dataset).draw(3, 3, 5, clips=clips).encoded(vae)
    assert cached.clean is not None
    assert encoded.clean is not None
    assert cached.clean.shape == encoded.clean.shape == (3, 4, 3, 8, 8)
    for name in ("clean", "reference"):
        assert torch.allclose(getattr(cached, name), getattr(encoded, name), atol=2e-3), name  # float16
    assert torch.equal(cached.landmarks, encoded.landmarks)
    assert LatentCache(dataset, small_parts(1)["vae"], tmp_path).folder != cache.folder


def test_cached_latents_of_a_dataset_prepared_anew_are_not_used(tmp_path: Path) -> None:
    vae, folder, made = small_parts()["vae"], tmp_path / "made", tmp_path / "latents"
    before = LatentCache(Dataset(make_dataset(folder)), vae, made)
    assert LatentCache(Dataset(folder), vae, made).folder == before.folder
    shutil.rmtree(folder)
    make_dataset(folder, ((5, 6), (8, 6)))
    assert LatentCache(Dataset(folder), vae, made).folder != before.folder


def test_clips_have_frames_at_one_distance_and_pictures_differ(dataset: Dataset) -> None:
    batches = batches_of(dataset, max_stride=3)
    strides = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        reference, numbers = batches._frames(9, 3, True, rng)
        assert 0 <= reference < 9
        assert numbers[0] >= 0
        assert numbers[-1] < 9
        (stride,) = set(np.diff(numbers).tolist())
        strides.add(stride)
        reference, numbers = batches._frames(4, 3, False, rng)
        assert sorted([reference, *numbers]) == [0, 1, 2, 3]
    assert strides == {1, 2, 3}
    assert batches._frames(3, 3, True, np.random.default_rng(0))[1].tolist() == [0, 1, 2]
    assert len(batches._frames(1, 1, True, np.random.default_rng(0))[1]) == 1


def test_clips_that_are_too_short_are_named(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="has no clip of 9 frames or more; the longest has 8"):
        batches_of(dataset).draw(1, 9, 0, clips=True)


def test_workers_change_nothing(dataset: Dataset) -> None:
    settings = build_config({"image": {"batch": 2, "frames": 2}}).image
    options: dict[str, Any] = {"clips": False, "parts": 2}
    state = torch.get_rng_state()
    alone = list(batches_ahead(batches_of(dataset), settings, range(3, 5), **options))
    ahead = list(batches_ahead(batches_of(dataset), settings, range(3, 5), workers=2, **options))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(alone) == len(ahead) == 4
    for one, other in zip(alone, ahead, strict=True):
        for name in ("pixels", "prompt_pixels", "landmarks", "expression", "face"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), msg=name)  # from another process

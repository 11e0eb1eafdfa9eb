"""What the tests of progressive generation share: a small video, its runs, and runs that are broken off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import build, pictures, portrait
from torch import Tensor

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.sampling.clip_plan import plan_clips
from fye_pipeline.sampling.progressive import generate

FRAMES, WINDOW, STEPS = 11, 4, 2
PLAN = plan_clips(FRAMES, length=WINDOW)  # three levels: 0 5 10; 0 2 5, 5 7 10; then the gaps between those


class StopError(Exception):
    """What a killed run dies of here."""


@pytest.fixture(scope="module")
def shared_pipe() -> FollowYourEmojiPipeline:
    return build(in_channels=9)


@pytest.fixture
def pipe(shared_pipe: FollowYourEmojiPipeline) -> Iterator[FollowYourEmojiPipeline]:
    scheduler = shared_pipe.scheduler
    yield shared_pipe
    shared_pipe.scheduler = scheduler
    shared_pipe.disable_cache()


@pytest.fixture(scope="module")
def whole(shared_pipe: FollowYourEmojiPipeline) -> Tensor:
    """The unbroken video of seed 3, made in memory. [F, 3, H, W]"""
    return in_memory(shared_pipe, output_type="pt")[0]


def in_memory(pipe: FollowYourEmojiPipeline, **options: Any) -> Tensor:
    """A progressive run by way of the pipeline."""
    given = {
        "landmarks": pictures(FRAMES),
        "long": "progressive",
        "window": WINDOW,
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    return pipe(portrait(), **(given | options)).frames


def stream(pipe: FollowYourEmojiPipeline, folder: Path, **options: Any) -> Iterator[Tensor]:
    given = {
        "image": portrait(),
        "landmarks": pictures(FRAMES),
        "work_folder": folder,
        "seed": 3,
        "window": WINDOW,
        "num_inference_steps": STEPS,
    }
    return generate(pipe, **(given | options))


def collect(batches: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(batches))


class Calls:
    """Counts UNet calls, keeps what the conditional row was shown, and stops a run before call `stop`."""

    def __init__(self, pipe: FollowYourEmojiPipeline, stop: int | None = None) -> None:
        self.samples: list[Tensor] = []
        self.stop = stop
        self._hook = pipe.unet.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        if len(self.samples) == self.stop:
            raise StopError
        sample = args[0] if args else kwargs["sample"]  # a cache passes all by name
        self.samples.append(sample[-1:].clone())

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def break_off(pipe: FollowYourEmojiPipeline, folder: Path, stop: int, **options: Any) -> list[Tensor]:
    """Run until the UNet's call `stop`; the frames that came out."""
    seen = []
    with Calls(pipe, stop), pytest.raises(StopError):
        seen.extend(stream(pipe, folder, **options))
    return seen


def region() -> np.ndarray:
    """A mask per frame whose first pixel tells the frame."""
    masks = np.ones((FRAMES, 8, 8), np.float32)
    masks[:, 0, 0] = np.arange(FRAMES) / 16
    return masks

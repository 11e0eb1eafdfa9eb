"""What a step is fed: latents, landmark pictures and masks, made ahead by worker processes if wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed

from fye_pipeline.landmarks.bend import Bender
from fye_pipeline.landmarks.drawing import Style, draw_sequence, expression_mask, facial_mask, reduce_mask
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.training.config import PhaseConfig

ENCODED_TOGETHER = 8  # pictures that the autoencoder sees at once
NOT_BENT = 0.08  # share of the samples without a bent portrait
EMPTY = np.array([128, 128, 128, 0], np.uint8)  # what stands in its place: grey that is not to be trusted
TREMBLE = 0.003  # of landmarks, in picture widths
CUT = 128  # pixels a side at which a person is cut out: a fifth of the time of what a portrait gets
AHEAD = 2  # batches that each worker holds ready


@dataclass(frozen=True)
class Batch:
    """Everything a step needs but noise.

    clean [B, C, F, h, w], reference [B, C, h, w]: scaled latents, or None and pixels [B, 1 + F, 3, H, W] in [-1, 1],
    the reference first, from which the step encodes them; prompt_pixels [B, 3, p, p] for the image encoder;
    landmarks [B, 3, F, H, W] in [0, 1]; expression, face [B, F, h, w]: masks reduced to the latent grid; bent
    [B, C + 1, F, h, w]: latents of the bent portraits and where they can be trusted, or None, and bent_pixels
    [B, F, 4, H, W], their pictures in [-1, 1] and trust in [0, 1], from which the step encodes them.
    """

    clean: Tensor | None
    reference: Tensor | None
    prompt_pixels: Tensor
    landmarks: Tensor
    expression: Tensor
    face: Tensor
    pixels: Tensor | None = None
    bent: Tensor | None = None
    bent_pixels: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: value if value is None else value.to(device) for name, value in values.items()}
        return Batch(**moved)

    @torch.no_grad()
    def encoded(self, vae: Any) -> Batch:
        """The batch with latents: as it is where it brings them, else encoded from its pictures, on their device."""
        batch = self
        if self.pixels is not None:
            latents = _encode(vae, self.pixels)
            batch = replace(batch, reference=latents[:, 0], clean=latents[:, 1:].transpose(1, 2), pixels=None)
        if self.bent_pixels is not None:
            latents = _encode(vae, self.bent_pixels[:, :, :3]).transpose(1, 2)
            trust = reduce_mask(self.bent_pixels[:, :, 3], *latents.shape[-2:])[:, None]
            latents = latents * (trust.amax((1, 2, 3, 4), keepdim=True) > 0)  # without a bent portrait: zeros
            batch = replace(batch, bent=torch.cat([latents, trust], dim=1), bent_pixels=None)
        return batch


@dataclass(frozen=True)
class Example:
    """A row of a sample sheet: portrait [H, W, 3], true frames [F, H, W, 3], their landmark pictures, and the portrait
    bent to them [F, H, W, 4], if the model is shown that.
    """

    portrait: NDArray[np.uint8]
    frames: NDArray[np.uint8]
    drawn: NDArray[np.uint8]
    bent: NDArray[np.uint8] | None


class BatchSource(Protocol):
    """Where a run's batches come from: each is a function of the step's number, whatever came before.

    cell: latents on a side. size: pixels on a side.
    """

    cell: int
    size: int

    def draw(
        self, batch: int, frames: int, step: int, rank: int = 0, *, clips: bool, part: slice = slice(None)
    ) -> Batch:
        """Rows `part` of a step's batch of `batch` samples: a reference each and `frames` targets.

        clips False (phase I): single pictures; True (phase II): consecutive frames.
        """
        ...

    def examples(self, count: int, shown: int) -> Iterator[Example]:
        """What sample sheets show."""
        ...


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    """Scaled posterior means. [B, F, 3, H, W] in [-1, 1] -> [B, F, C, h, w]."""
    parts = pixels.flatten(0, 1).split(ENCODED_TOGETHER)
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in parts])
    return (mean * vae.config["scaling_factor"]).unflatten(0, pixels.shape[:2])


def to_tensor(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1


class Conditions:
    """How landmarks and references become what the model is fed.

    size, cell: pixels and latents on a side. style: what the landmark pictures show (Table 4's ablations).
    bent: whether references are also bent to the targets' landmarks.
    """

    def __init__(
        self, feature_extractor: Any, size: int, cell: int, style: Style = "expression", *, bent: bool = False
    ) -> None:
        self.size, self.cell, self.bent = size, cell, bent
        self.style: Style = style
        self.canonical = CanonicalFace.load()
        self.prompt_size = int(feature_extractor.crop_size["height"])
        self.mean = torch.tensor(feature_extractor.image_mean).reshape(1, 3, 1, 1)
        self.std = torch.tensor(feature_extractor.image_std).reshape(1, 3, 1, 1)

    def batch(self, marks: NDArray, references: NDArray[np.uint8], **latents: Tensor | None) -> Batch:
        """Landmarks [B, F, 478, 3] and reference pictures [B, H, W, 3] beside latents or pictures."""
        pictures = np.stack([self.draw(each) for each in marks])  # [B, F, H, W, 3]
        size, cell = self.size, self.cell
        return Batch(
            clean=latents.get("clean"),
            reference=latents.get("reference"),
            pixels=latents.get("pixels"),
            bent_pixels=latents.get("bent_pixels"),
            prompt_pixels=self.prompt(to_tensor(references)),
            landmarks=torch.from_numpy(pictures).permute(0, 4, 1, 2, 3).float() / 255,
            expression=reduce_mask(torch.from_numpy(expression_mask(marks, size, size)), cell, cell),
            face=reduce_mask(torch.from_numpy(facial_mask(marks, size, size)), cell, cell),
        )

    def bend(
        self, references: NDArray[np.uint8], own: NDArray, marks: NDArray, seeds: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """References [B, H, W, 3] with landmarks [B, 478, 3], bent to landmarks [B, F, 478, 3]. -> [B, F, 4, H, W].

        A sample's seed decides how its landmarks tremble, as a detector's do, so that the model does not take the bent
        portrait for the truth to the pixel, and whether it has none at all.
        """
        if not self.bent:
            return None
        rows = []
        for picture, points, targets, seed in zip(references, own, marks, seeds, strict=True):
            rng = np.random.default_rng([8, *seed])
            if rng.random() < NOT_BENT:
                rows.append(np.zeros((len(targets), *picture.shape[:2], 4), np.uint8) + EMPTY)
                continue
            bender = Bender.of(picture, points, self.canonical, size=CUT)
            tremble = np.zeros((len(targets), *points.shape))
            tremble[..., :2] += rng.normal(0, TREMBLE, 2) + rng.normal(0, TREMBLE / 3, (len(targets), 1, 2))
            rows.append(bender.pictures(picture, targets + tremble, self.size))
        bent = to_tensor(np.stack(rows))
        bent[:, :, 3] = bent[:, :, 3] / 2 + 0.5
        return bent

    def example(self, portrait: NDArray[np.uint8], own: NDArray, frames: NDArray[np.uint8], marks: NDArray) -> Example:
        """A portrait with landmarks [478, 3], and true frames with landmarks [F, 478, 3]."""
        bent = (
            Bender.of(portrait, own, self.canonical, size=CUT).pictures(portrait, marks, self.size)
            if self.bent
            else None
        )
        return Example(portrait, frames, self.draw(marks), bent)

    def draw(self, marks: NDArray) -> NDArray[np.uint8]:
        """Landmarks [F, 478, 3] -> landmark pictures, uint8 [F, H, W, 3]."""
        return draw_sequence(marks, self.size, style=self.style)

    def prompt(self, pixels: Tensor) -> Tensor:
        """Pictures in [-1, 1] as the image encoder takes them: reduced and normalised. [B, 3, H, W] -> [B, 3, p, p]."""
        size = (self.prompt_size, self.prompt_size)
        small = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (small.clamp(-1, 1) / 2 + 0.5 - self.mean) / self.std


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

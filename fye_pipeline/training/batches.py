"""What a step is fed, and batches of the rendered heads: latents from disk, landmark pictures and masks drawn anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fye_pipeline.landmarks.drawing import Style, draw_sequence
from fye_pipeline.landmarks.masks import expression_mask, facial_mask, reduce_mask
from fye_pipeline.storage.hashing import weights_hash
from fye_pipeline.training.data import CLIP, PORTRAITS, TAKES, HeadData, to_tensor

ENCODED_TOGETHER = 8  # pictures that the autoencoder sees at once


@dataclass(frozen=True)
class Batch:
    """Everything a step needs but noise.

    clean [B, 4, F, h, w], reference [B, 4, h, w]: scaled latents, or None and pixels [B, 1 + F, 3, H, W] in [-1, 1],
    the reference first, from which the step encodes them; prompt_pixels [B, 3, p, p] for the image encoder;
    landmarks [B, 3, F, H, W] in [0, 1]; expression, face [B, F, h, w]: masks reduced to the latent grid.
    """

    clean: Tensor | None
    reference: Tensor | None
    prompt_pixels: Tensor
    landmarks: Tensor
    expression: Tensor
    face: Tensor
    pixels: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: value if value is None else value.to(device) for name, value in values.items()}
        return Batch(**moved)

    @torch.no_grad()
    def encoded(self, vae: Any) -> Batch:
        """The batch with latents: as it is where it brings them, else encoded from its pictures, on their device."""
        if self.pixels is None:
            return self
        flat = self.pixels.flatten(0, 1)
        mean = torch.cat([vae.encode(part).latent_dist.mean for part in flat.split(ENCODED_TOGETHER)])
        latents = (mean * vae.config["scaling_factor"]).unflatten(0, self.pixels.shape[:2])
        return replace(self, reference=latents[:, 0], clean=latents[:, 1:].transpose(1, 2), pixels=None)


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

    def examples(self, count: int, shown: int) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """For sample sheets: portraits [H, W, 3], true frames [F, H, W, 3] and their landmark pictures."""
        ...


@torch.no_grad()
def encode_heads(vae: Any, data: HeadData, folder: Path, *, chunk: int = TAKES) -> NDArray[np.float16]:
    """Encode every picture once: scaled posterior means [N, 18, 4, h, w], float16; reused while the VAE is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / "latents.npy", folder / "latents.json"
    key = {"vae": weights_hash(sorted(vae.state_dict().items())), "heads": len(data)}
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == key:
        return np.load(path, mmap_mode="r")
    cell = data.meta.size // 2 ** (len(vae.config["block_out_channels"]) - 1)
    shape = (len(data), TAKES, vae.config["latent_channels"], cell, cell)
    latents = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    scale = vae.config["scaling_factor"]
    for head in range(len(data)):
        for start in range(0, TAKES, chunk):
            part = slice(start, start + chunk)
            mean = vae.encode(to_tensor(data.frames[head, part]).to(vae.device)).latent_dist.mean
            latents[head, part] = (mean * scale).cpu().numpy()
    latents.flush()
    note.write_text(json.dumps(key), encoding="utf-8")
    return np.load(path, mmap_mode="r")


class Conditions:
    """How landmarks and references become what the model is fed.

    size, cell: pixels and latents on a side. style: what the landmark pictures show (Table 4's ablations).
    """

    def __init__(self, feature_extractor: Any, size: int, cell: int, style: Style = "expression") -> None:
        self.size, self.cell = size, cell
        self.style: Style = style
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
            prompt_pixels=self.prompt(to_tensor(references)),
            landmarks=torch.from_numpy(pictures).permute(0, 4, 1, 2, 3).float() / 255,
            expression=reduce_mask(torch.from_numpy(expression_mask(marks, size, size)), cell, cell),
            face=reduce_mask(torch.from_numpy(facial_mask(marks, size, size)), cell, cell),
        )

    def draw(self, marks: NDArray) -> NDArray[np.uint8]:
        """Landmarks [F, 478, 3] -> landmark pictures, uint8 [F, H, W, 3]."""
        return draw_sequence(marks, self.size, style=self.style)

    def prompt(self, pixels: Tensor) -> Tensor:
        """Pictures in [-1, 1] as the image encoder takes them: reduced and normalised. [B, 3, H, W] -> [B, 3, p, p]."""
        size = (self.prompt_size, self.prompt_size)
        small = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (small.clamp(-1, 1) / 2 + 0.5 - self.mean) / self.std


class Batches:
    """Batches of rendered heads: the same seed, phase, step and rank give the same batch, whatever came before."""

    def __init__(
        self,
        data: HeadData,
        latents: NDArray[np.float16],
        feature_extractor: Any,
        seed: int,
        style: Style = "expression",
    ) -> None:
        self.data, self.latents, self.seed = data, latents, seed
        self.size, self.cell = data.meta.size, latents.shape[-1]
        self.conditions = Conditions(feature_extractor, self.size, self.cell, style)

    def draw(
        self, batch: int, frames: int, step: int, rank: int = 0, *, clips: bool, part: slice = slice(None)
    ) -> Batch:
        """For each sample one head: a reference, and `frames` targets that share it.

        clips False (phase I): single pictures of any takes; True (phase II): the first frames of the head's clip.
        Raises ValueError for more frames than there are.
        """
        if not 1 <= frames <= CLIP:
            raise ValueError(f"frames must be 1 to {CLIP}, got {frames}")
        rng = np.random.default_rng([6, self.seed, int(clips), step, rank])
        heads = rng.integers(len(self.data), size=batch)
        references, targets = [], []
        for _ in range(batch):
            reference = int(rng.integers(PORTRAITS if clips or rng.random() < 0.75 else TAKES))
            others = [k for k in range(TAKES) if k != reference]
            references.append(reference)
            chosen = range(PORTRAITS, PORTRAITS + frames) if clips else rng.choice(others, frames, replace=False)
            targets.append(list(chosen))
        return self._collect(heads[part], np.array(references)[part], np.array(targets)[part])

    def examples(self, count: int, shown: int) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """The first heads: portrait, true frames, landmark pictures."""
        part = slice(PORTRAITS, PORTRAITS + shown)
        for head in range(min(count, len(self.data))):
            portrait = np.ascontiguousarray(self.data.frames[head, 0])
            yield portrait, self.data.frames[head, part], self.conditions.draw(self.data.landmarks[head, part])

    def _collect(self, heads: NDArray[np.int64], references: NDArray[np.int64], targets: NDArray[np.int64]) -> Batch:
        pairs = list(zip(heads, targets, strict=True))
        marks = np.stack([self.data.landmarks[head, takes] for head, takes in pairs])  # [B, F, 478, 3]
        clean = np.stack([self.latents[head, takes] for head, takes in pairs]).astype(np.float32)
        pictures = np.stack([self.data.frames[h, r] for h, r in zip(heads, references, strict=True)])
        return self.conditions.batch(
            marks,
            pictures,
            clean=torch.from_numpy(clean).transpose(1, 2),
            reference=torch.from_numpy(self.latents[heads, references].astype(np.float32)),
        )

"""Batches for both phases: latents encoded once to disk, landmark pictures and masks drawn on the fly."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.regions import expression_mask, facial_mask, reduce_mask
from fye_pipeline.training.data import CLIP, PORTRAITS, TAKES, HeadData, to_tensor


@dataclass(frozen=True)
class Batch:
    """Everything a step needs but noise.

    clean [B, 4, F, h, w], reference [B, 4, h, w]: scaled latents; prompt_pixels [B, 3, p, p] for the image encoder;
    landmarks [B, 3, F, H, W] in [0, 1]; expression, face [B, F, h, w]: masks reduced to the latent grid.
    """

    clean: Tensor
    reference: Tensor
    prompt_pixels: Tensor
    landmarks: Tensor
    expression: Tensor
    face: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def weights_hash(model: torch.nn.Module) -> str:
    """A short name for a model's exact weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_heads(vae: Any, data: HeadData, folder: Path, *, chunk: int = TAKES) -> NDArray[np.float16]:
    """Encode every picture once: scaled posterior means [N, 18, 4, h, w], float16; reused while the VAE is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / "latents.npy", folder / "latents.json"
    key = {"vae": weights_hash(vae), "heads": len(data)}
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == key:
        return np.load(path, mmap_mode="r")
    cell = data.meta.size // 2 ** (len(vae.config["block_out_channels"]) - 1)
    shape = (len(data), TAKES, vae.config["latent_channels"], cell, cell)
    latents = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    scale = vae.config["scaling_factor"]
    for head in range(len(data)):
        for start in range(0, TAKES, chunk):
            part = slice(start, start + chunk)
            mean = vae.encode(to_tensor(data.frames[head, part])).latent_dist.mean
            latents[head, part] = (mean * scale).numpy()
    latents.flush()
    note.write_text(json.dumps(key), encoding="utf-8")
    return np.load(path, mmap_mode="r")


class Batches:
    """Deterministic batches: the same seed, phase, step and rank give the same batch, whatever came before."""

    def __init__(self, data: HeadData, latents: NDArray[np.float16], feature_extractor: Any, seed: int) -> None:
        self.data, self.latents, self.seed = data, latents, seed
        self.prompt_size = int(feature_extractor.crop_size["height"])
        self.mean = torch.tensor(feature_extractor.image_mean).reshape(1, 3, 1, 1)
        self.std = torch.tensor(feature_extractor.image_std).reshape(1, 3, 1, 1)

    def draw(self, batch: int, frames: int, step: int, rank: int = 0, *, clips: bool) -> Batch:
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
        return self._collect(heads, np.array(references), np.array(targets))

    def _collect(self, heads: NDArray[np.int64], references: NDArray[np.int64], targets: NDArray[np.int64]) -> Batch:
        size, cell = self.data.meta.size, self.latents.shape[-1]
        marks = np.stack([self.data.landmarks[h, t] for h, t in zip(heads, targets, strict=True)])  # [B, F, 478, 3]
        clean = np.stack([self.latents[h, t] for h, t in zip(heads, targets, strict=True)]).astype(np.float32)
        pictures = np.stack([draw_sequence(each, size) for each in marks])  # [B, F, H, W, 3]
        pixels = to_tensor(np.stack([self.data.frames[h, r] for h, r in zip(heads, references, strict=True)]))
        return Batch(
            clean=torch.from_numpy(clean).transpose(1, 2),
            reference=torch.from_numpy(self.latents[heads, references].astype(np.float32)),
            prompt_pixels=self.prompt(pixels),
            landmarks=torch.from_numpy(pictures).permute(0, 4, 1, 2, 3).float() / 255,
            expression=reduce_mask(torch.from_numpy(expression_mask(marks, size, size)), cell, cell),
            face=reduce_mask(torch.from_numpy(facial_mask(marks, size, size)), cell, cell),
        )

    def prompt(self, pixels: Tensor) -> Tensor:
        """Pictures in [-1, 1] as the image encoder takes them: reduced and normalised. [B, 3, H, W] -> [B, 3, p, p]."""
        size = (self.prompt_size, self.prompt_size)
        small = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        return (small.clamp(-1, 1) / 2 + 0.5 - self.mean) / self.std

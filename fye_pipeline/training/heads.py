"""Rendered heads: many short takes on disk, read as memory maps, encoded once, and batches of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.batch.pool import run_parts
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import Style
from fye_pipeline.storage.files import weights_hash
from fye_pipeline.training.batches import Batch, Conditions, Example, to_tensor
from fye_pipeline.world import World

PORTRAITS = 2
CLIP = 16
TAKES = PORTRAITS + CLIP  # pictures of each head: portraits first, then one clip in order of time
CLIP_RATES = (6, 8, 10, 12, 16)
META = "meta.json"


@dataclass(frozen=True)
class Meta:
    """What a rendered folder holds; a folder that differs is rendered anew."""

    world_version: int
    seed: int
    split: str
    size: int
    identities: int


class HeadData:
    """Heads in a folder: frames [N, 18, size, size, 3] uint8 and landmarks [N, 18, 478, 3] float32."""

    def __init__(self, folder: Path) -> None:
        if not (folder / META).exists():
            raise UserError(f"{folder} holds no finished training data: expected {META}; render it first.")
        self.meta = Meta(**json.loads((folder / META).read_text(encoding="utf-8")))
        self.frames: NDArray[np.uint8] = np.load(folder / "frames.npy", mmap_mode="r")[: self.meta.identities]
        self.landmarks: NDArray[np.float32] = np.load(folder / "landmarks.npy", mmap_mode="r")[: self.meta.identities]

    def __len__(self) -> int:
        return self.meta.identities


def render_heads(world: World, folder: Path, identities: int, *, split: str = "train", jobs: int = 1) -> HeadData:
    """Render `identities` heads of a split into a folder, by `jobs` processes, or reuse what is there already."""
    meta = Meta(world.version, world.seed, split, world.size, identities)
    path = folder / META
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) == asdict(meta):
        return HeadData(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # what it tells of is about to be overwritten
    shape = (identities, TAKES)
    open_file = np.lib.format.open_memmap
    for name, kind, rest in (("frames", np.uint8, (world.size, world.size, 3)), ("landmarks", np.float32, (478, 3))):
        open_file(folder / f"{name}.npy", "w+", kind, (*shape, *rest)).flush()
    jobs = max(min(jobs, os.cpu_count() or 1), 1)
    edges = np.linspace(0, identities, jobs + 1).astype(int).tolist()
    render = partial(nullcontext, partial(_render_range, world, folder, split))  # no tools to open
    for _ in run_parts(render, list(pairwise(edges)), jobs):
        pass
    path.write_text(json.dumps(asdict(meta)), encoding="utf-8")
    return HeadData(folder)


def _render_range(world: World, folder: Path, split: str, heads: tuple[int, int]) -> None:
    """Render heads from a number to before another into the folder's arrays; each depends on its number alone."""
    frames = np.load(folder / "frames.npy", mmap_mode="r+")
    landmarks = np.load(folder / "landmarks.npy", mmap_mode="r+")
    for index in range(*heads):
        fps = CLIP_RATES[index % len(CLIP_RATES)]
        strength = 1.35 if index % 6 == 5 else 1.0
        takes = [world.portrait(split, index, take=k) for k in range(PORTRAITS)]
        takes.append(world.clip(split, index, frames=CLIP, fps=fps, strength=strength))
        frames[index] = np.concatenate([take.frames for take in takes])
        landmarks[index] = np.concatenate([take.sequence.landmarks for take in takes])
    frames.flush()
    landmarks.flush()


@torch.no_grad()
def encode_heads(vae: Any, data: HeadData, folder: Path, *, chunk: int = TAKES) -> NDArray[np.float16]:
    """Encode each picture once: scaled posterior means [N, 18, C, h, w], float16; kept for the same VAE and heads."""
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / "latents.npy", folder / "latents.json"
    key = {"vae": weights_hash(sorted(vae.state_dict().items())), "heads": asdict(data.meta)}
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == key:
        return np.load(path, mmap_mode="r")
    note.unlink(missing_ok=True)  # as in `render_heads`
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


class HeadBatches:
    """Batches of rendered heads: the same seed, phase, step and rank give the same batch, whatever came before."""

    def __init__(
        self,
        data: HeadData,
        latents: NDArray[np.float16],
        feature_extractor: Any,
        seed: int,
        style: Style = "expression",
        *,
        bent: bool = False,
    ) -> None:
        self.data, self.latents, self.seed = data, latents, seed
        self.size, self.cell = data.meta.size, latents.shape[-1]
        self.conditions = Conditions(feature_extractor, self.size, self.cell, style, bent=bent)

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
        seeds = [(self.seed, int(clips), step, rank, row) for row in range(batch)][part]
        heads, references, targets = heads[part], np.array(references)[part], np.array(targets)[part]
        pairs = list(zip(heads, targets, strict=True))
        marks = np.stack([self.data.landmarks[head, takes] for head, takes in pairs])  # [B, F, 478, 3]
        clean = np.stack([self.latents[head, takes] for head, takes in pairs]).astype(np.float32)
        pictures = np.stack([self.data.frames[h, r] for h, r in zip(heads, references, strict=True)])
        own = np.stack([self.data.landmarks[h, r] for h, r in zip(heads, references, strict=True)])
        return self.conditions.batch(
            marks,
            pictures,
            clean=torch.from_numpy(clean).transpose(1, 2),
            reference=torch.from_numpy(self.latents[heads, references].astype(np.float32)),
            bent_pixels=self.conditions.bend(pictures, own, marks, seeds),
        )

    def examples(self, count: int, shown: int) -> Iterator[Example]:
        """The first heads."""
        part = slice(PORTRAITS, PORTRAITS + shown)
        for head in range(min(count, len(self.data))):
            portrait, marks = np.ascontiguousarray(self.data.frames[head, 0]), self.data.landmarks[head]
            yield self.conditions.example(portrait, marks[0], self.data.frames[head, part], marks[part])

"""Training data: many short takes of many heads, rendered once to disk and read as memory maps."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.world import WORLD_VERSION, World

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
    meta = Meta(WORLD_VERSION, world.seed, split, world.size, identities)
    path = folder / META
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) == asdict(meta):
        return HeadData(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (identities, TAKES)
    open_file = np.lib.format.open_memmap
    for name, kind, rest in (("frames", np.uint8, (world.size, world.size, 3)), ("landmarks", np.float32, (478, 3))):
        open_file(folder / f"{name}.npy", "w+", kind, (*shape, *rest)).flush()
    jobs = max(min(jobs, os.cpu_count() or 1), 1)
    edges = np.linspace(0, identities, jobs + 1).astype(int).tolist()
    if jobs == 1:
        _render_range(world, folder, split, 0, identities)
    else:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            ranges = [pool.submit(_render_range, world, folder, split, *edge) for edge in pairwise(edges)]
            for done in ranges:
                done.result()
    path.write_text(json.dumps(asdict(meta)), encoding="utf-8")
    return HeadData(folder)


def _render_range(world: World, folder: Path, split: str, start: int, stop: int) -> None:
    """Render heads `start` to `stop` into the folder's arrays; each head depends on its number alone."""
    frames = np.load(folder / "frames.npy", mmap_mode="r+")
    landmarks = np.load(folder / "landmarks.npy", mmap_mode="r+")
    for index in range(start, stop):
        fps = CLIP_RATES[index % len(CLIP_RATES)]
        strength = 1.35 if index % 6 == 5 else 1.0
        takes = [world.portrait(split, index, take=k) for k in range(PORTRAITS)]
        takes.append(world.clip(split, index, frames=CLIP, fps=fps, strength=strength))
        frames[index] = np.concatenate([take.frames for take in takes])
        landmarks[index] = np.concatenate([take.sequence.landmarks for take in takes])
    frames.flush()
    landmarks.flush()


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless passes over range(count), each in an order of its own."""
    epoch = 0
    while True:
        yield from np.random.default_rng([4, seed, epoch]).permutation(count)
        epoch += 1


def to_tensor(frames: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1

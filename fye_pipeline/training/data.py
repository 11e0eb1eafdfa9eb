"""Training data: many short takes of many heads, rendered once to disk and read as memory maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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


def render_heads(world: World, folder: Path, identities: int, *, split: str = "train") -> HeadData:
    """Render `identities` heads of a split into a folder, or reuse what is there already."""
    meta = Meta(WORLD_VERSION, world.seed, split, world.size, identities)
    path = folder / META
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) == asdict(meta):
        return HeadData(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (identities, TAKES)
    open_file = np.lib.format.open_memmap
    frames = open_file(folder / "frames.npy", "w+", np.uint8, (*shape, world.size, world.size, 3))
    landmarks = open_file(folder / "landmarks.npy", "w+", np.float32, (*shape, 478, 3))
    for index in range(identities):
        fps = CLIP_RATES[index % len(CLIP_RATES)]
        strength = 1.35 if index % 6 == 5 else 1.0
        takes = [world.portrait(split, index, take=k) for k in range(PORTRAITS)]
        takes.append(world.clip(split, index, frames=CLIP, fps=fps, strength=strength))
        frames[index] = np.concatenate([take.frames for take in takes])
        landmarks[index] = np.concatenate([take.sequence.landmarks for take in takes])
    frames.flush()
    landmarks.flush()
    path.write_text(json.dumps(asdict(meta)), encoding="utf-8")
    return HeadData(folder)


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless passes over range(count), each in an order of its own."""
    epoch = 0
    while True:
        yield from np.random.default_rng([4, seed, epoch]).permutation(count)
        epoch += 1


def to_tensor(frames: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1

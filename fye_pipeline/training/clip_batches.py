"""Batches of people's own videos: clips of a prepared dataset, their latents cached once or encoded in every step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import Style
from fye_pipeline.storage.files import atomic_target, digest_of_text, weights_hash
from fye_pipeline.training.batches import ENCODED_TOGETHER, Batch, Conditions, Example, to_tensor
from fye_pipeline.training.dataset import Dataset

_OPEN_MAPS = 32


class Order:
    """Which sample comes at which place of an endless sequence of epochs, for clips that lie in shards.

    Every epoch has each clip once. Shards come in a random order, and clips are shuffled within windows of `window`
    shards, as a reader with a shuffle buffer would: so a large dataset is read a few shards at a time. Unlike such a
    buffer this is a function of the seed and the place alone; a resumed run has nothing to restore.
    """

    def __init__(self, shard_of: Sequence[int], *, seed: tuple[int, ...], window: int = 16) -> None:
        if not shard_of:
            raise ValueError("there must be at least one clip")
        self._seed, self._window = seed, window
        self._shards = np.asarray(shard_of)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __getstate__(self) -> dict[str, object]:
        return {"_seed": self._seed, "_window": self._window, "_shards": self._shards}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, place: int) -> int:
        """The clip at a place, 0 or more."""
        epoch, number = divmod(place, len(self._shards))
        return int(self._epoch(epoch)[number])

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([8, *self._seed, epoch])
        shards = rng.permutation(int(self._shards.max()) + 1)
        rank = np.empty_like(shards)
        rank[shards] = np.arange(len(shards))
        window = rank[self._shards] // self._window
        return np.lexsort((rng.random(len(self._shards)), window))


class LatentCache:
    """Scaled latents of every frame of a dataset, one array a shard, float16, for one autoencoder and one index."""

    def __init__(self, dataset: Dataset, vae: Any, folder: Path) -> None:
        clips = digest_of_text(repr([[shard.name for shard in dataset.shards], dataset.clips]))[:16]
        self.folder = folder / f"latents-{weights_hash(sorted(vae.state_dict().items()))}-{clips}"
        self.dataset = dataset
        self._row = np.zeros(len(dataset), np.int64)  # a clip's first row in its shard's array
        rows = np.zeros(len(dataset.shards), np.int64)
        for clip, shard in enumerate(dataset.shard_of):
            self._row[clip] = rows[shard]
            rows[shard] += dataset.clips[clip].frames
        self._maps: OrderedDict[int, NDArray[np.float16]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": OrderedDict()}

    @torch.no_grad()
    def fill(self, vae: Any, *, rank: int, processes: int, report: Callable[[str], None]) -> None:
        """Encode the shards that fall to this process and are not there yet; each appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for shard in range(rank, len(self.dataset.shards), processes):
            if self._path(shard).is_file():
                continue
            clips = [clip for clip, home in enumerate(self.dataset.shard_of) if home == shard]
            report(f"latents: shard {shard + 1} of {len(self.dataset.shards)}")
            rows = [self._encode(vae, clip) for clip in clips]
            with atomic_target(self._path(shard)) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(rows))

    def _encode(self, vae: Any, clip: int) -> NDArray[np.float16]:
        numbers, parts = range(self.dataset.clips[clip].frames), []
        for start in range(0, len(numbers), ENCODED_TOGETHER):
            pictures = to_tensor(self.dataset.frames(clip, numbers[start : start + ENCODED_TOGETHER]))
            mean = vae.encode(pictures.to(vae.device)).latent_dist.mean
            parts.append((mean * vae.config["scaling_factor"]).cpu().numpy().astype(np.float16))
        return np.concatenate(parts)

    def rows(self, clip: int, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Latents of some frames of a clip. -> [F, C, h, w]."""
        shard = self.dataset.shard_of[clip]
        if shard not in self._maps:
            self._maps[shard] = np.load(self._path(shard), mmap_mode="r")
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return self._maps[shard][self._row[clip] + numbers].astype(np.float32)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{self.dataset.shards[shard].stem}.npy"


class ClipBatches:
    """Batches as a function of seed, phase, step and rank; processes divide every epoch's clips between them.

    latents None: pictures go into the batch, and the step encodes them. max_stride: neighbouring frames of a training
    clip are 1 to this many apart, as far as the clip is long enough. window: see `Order`.
    """

    def __init__(
        self,
        dataset: Dataset,
        latents: LatentCache | None,
        feature_extractor: Any,
        seed: int,
        *,
        cell: int,
        processes: int = 1,
        style: Style = "expression",
        max_stride: int = 4,
        window: int = 16,
        bent: bool = False,
    ) -> None:
        self.dataset, self.latents, self.seed = dataset, latents, seed
        self.size, self.cell, self.processes = dataset.size, cell, processes
        self.max_stride, self.window = max_stride, window
        self.conditions = Conditions(feature_extractor, self.size, cell, style, bent=bent)
        self._orders: dict[tuple[int, bool], tuple[list[int], Order]] = {}

    def draw(
        self, batch: int, frames: int, step: int, rank: int = 0, *, clips: bool, part: slice = slice(None)
    ) -> Batch:
        """For each sample a clip: a reference and `frames` targets from anywhere in it (clips False), or a reference
        and consecutive frames (clips True).

        Raises `UserError` where no clip is long enough.
        """
        usable, order = self._order(frames, clips)
        chosen, references, targets, seeds = [], [], [], []
        for row in range(batch)[part]:
            place = (step * self.processes + rank) * batch + row
            clip = usable[order[place]]
            rng = np.random.default_rng([9, self.seed, int(clips), step, rank, row])
            reference, numbers = self._frames(self.dataset.clips[clip].frames, frames, clips, rng)
            chosen.append(clip)
            references.append(reference)
            targets.append(numbers)
            seeds.append((self.seed, int(clips), step, rank, row))
        return self._collect(chosen, references, targets, seeds)

    def examples(self, count: int, shown: int) -> Iterator[Example]:
        """Clips spread over the dataset: the first frame, and frames spread over the clip."""
        for clip in np.unique(np.linspace(0, len(self.dataset) - 1, count).astype(int)).tolist():
            numbers = np.linspace(0, self.dataset.clips[clip].frames - 1, shown).astype(int).tolist()
            portrait, frames = self.dataset.frame(clip, 0), self.dataset.frames(clip, numbers)
            own, marks = self.dataset.landmarks(clip, [0])[0], self.dataset.landmarks(clip, numbers)
            yield self.conditions.example(portrait, own, frames, marks)

    def _order(self, frames: int, clips: bool) -> tuple[list[int], Order]:
        """The clips that are long enough, and the order they come in."""
        if (frames, clips) not in self._orders:
            least = frames if clips else frames + 1
            usable = [number for number, clip in enumerate(self.dataset.clips) if clip.frames >= least]
            if not usable:
                longest = max(clip.frames for clip in self.dataset.clips)
                raise UserError(
                    f"{self.dataset.folder} has no clip of {least} frames or more; the longest has {longest}."
                )
            shard_of = [self.dataset.shard_of[number] for number in usable]
            order = Order(shard_of, seed=(self.seed, int(clips)), window=self.window)
            self._orders[frames, clips] = usable, order
        return self._orders[frames, clips]

    def _frames(self, length: int, frames: int, clips: bool, rng: np.random.Generator) -> tuple[int, NDArray[np.int64]]:
        """Which frames of a clip of `length` are the reference and the targets."""
        if not clips:
            picked = rng.choice(length, frames + 1, replace=False)
            return int(picked[0]), picked[1:]
        reference = int(rng.integers(length))
        gaps = frames - 1
        longest = min(self.max_stride, (length - 1) // gaps) if gaps else 1
        stride = int(rng.integers(1, longest + 1))
        start = int(rng.integers(length - gaps * stride))
        return reference, start + stride * np.arange(frames)

    def _collect(
        self, clips: list[int], references: list[int], targets: list[NDArray[np.int64]], seeds: list[tuple[int, ...]]
    ) -> Batch:
        pairs = list(zip(clips, targets, strict=True))
        marks = np.stack([self.dataset.landmarks(clip, numbers.tolist()) for clip, numbers in pairs])
        pictures = np.stack([self.dataset.frame(c, r) for c, r in zip(clips, references, strict=True)])
        own = np.stack([self.dataset.landmarks(c, [r])[0] for c, r in zip(clips, references, strict=True)])
        bent = self.conditions.bend(pictures, own, marks, seeds)
        if self.latents is None:
            frames = np.stack([self.dataset.frames(clip, numbers.tolist()) for clip, numbers in pairs])
            pixels = to_tensor(np.concatenate([pictures[:, None], frames], axis=1))
            return self.conditions.batch(marks, pictures, pixels=pixels, bent_pixels=bent)
        clean = np.stack([self.latents.rows(clip, numbers) for clip, numbers in pairs])
        first = [self.latents.rows(c, np.array([r]))[0] for c, r in zip(clips, references, strict=True)]
        return self.conditions.batch(
            marks,
            pictures,
            clean=torch.from_numpy(clean).transpose(1, 2),
            reference=torch.from_numpy(np.stack(first)),
            bent_pixels=bent,
        )

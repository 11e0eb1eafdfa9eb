"""Reading a prepared dataset: any frame of any clip by its place, and an order of clips that follows from a seed."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from io import FileIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.training.shards import SHARDS, ClipEntry, index_of, read_dataset_note

_SHAPES: dict[str, tuple[int, ...]] = {
    "landmarks": (478, 3),
    "mesh": (468, 3),
    "poses": (4, 4),
    "blendshapes": (52,),
}
_OPEN_FILES = 32


class Dataset:
    """A folder made by `fye prepare`. Memory holds the index alone (16 bytes a frame); pixels stay in the shards.

    Several processes may share one, threads may not. Raises `UserError` where the folder is not such a dataset, or a
    shard is absent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        note = read_dataset_note(self.folder)
        self.size = int(note["size"])
        self.shards = [self.folder / SHARDS / name for name in note["shards"]]
        self.clips: list[ClipEntry] = []
        self.shard_of: list[int] = []
        places = []
        for number, shard in enumerate(self.shards):
            for path in (shard, index_of(shard)):
                if not path.is_file():
                    raise UserError(f"{self.folder} lacks {path.name}; copy the whole dataset again.")
            for entry in json.loads(index_of(shard).read_text(encoding="utf-8"))["clips"]:
                clip = ClipEntry.from_json(entry)
                places.append(np.array(clip.jpegs, np.int64))
                self.clips.append(ClipEntry(clip.key, clip.video, clip.frames, clip.fps, (), clip.arrays))
                self.shard_of.append(number)
        self._jpegs = places
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.clips)

    def __getstate__(self) -> dict[str, object]:
        """Without open files, so that worker processes open their own."""
        return {**self.__dict__, "_files": OrderedDict()}

    def close(self) -> None:
        """Close the shards; they are opened again when they are needed."""
        while self._files:
            self._files.popitem()[1].close()

    def __del__(self) -> None:
        if "_files" in self.__dict__:
            self.close()

    def frame(self, clip: int, number: int) -> NDArray[np.uint8]:
        """One picture, uint8 RGB [size, size, 3]. Raises `UserError` where its bytes are damaged."""
        offset, length = self._jpegs[clip][number]
        content = self._read(self.shard_of[clip], int(offset), int(length))
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if picture is None or picture.shape != (self.size, self.size, 3):
            shard = self.shards[self.shard_of[clip]]
            raise UserError(f"{shard}: frame {number} of {self.clips[clip].key} is damaged; copy the shard again.")
        return np.ascontiguousarray(picture[..., ::-1], np.uint8)

    def frames(self, clip: int, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Several pictures of a clip. -> [F, size, size, 3]."""
        return np.stack([self.frame(clip, number) for number in numbers])

    def array(self, name: str, clip: int, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Rows of a clip's `landmarks`, `mesh`, `poses` or `blendshapes`. -> [F, ...]."""
        shape = _SHAPES[name]
        row = 4 * int(np.prod(shape))
        start = self.clips[clip].arrays[name]
        rows = [self._read(self.shard_of[clip], start + row * number, row) for number in numbers]
        return np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), *shape).astype(np.float32)

    def landmarks(self, clip: int, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Landmarks in the square's coordinates. -> [F, 478, 3]."""
        return self.array("landmarks", clip, numbers)

    def _read(self, shard: int, offset: int, length: int) -> bytes:
        if self._process != os.getpid():  # a fork shares the parent's places in its files
            self.close()
            self._process = os.getpid()
        if shard not in self._files:
            self._files[shard] = FileIO(self.shards[shard])
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        file = self._files[shard]
        file.seek(offset)
        content = file.read(length)
        if len(content) != length:
            raise UserError(f"{self.shards[shard]} is cut short; copy it again.")
        return content


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

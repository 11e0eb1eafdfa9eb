"""An array in a file, of which only the part that is asked for is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DiskArray:
    """An array [F, ...] in a file of raw numbers: only the frames that are asked for are read, and none are held."""

    def __init__(self, path: Path, item: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path, self._item, self.dtype = path, item, dtype
        self._bytes = int(np.prod(item, dtype=np.int64)) * dtype.itemsize
        self._frames = path.stat().st_size // self._bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """[F, ...]."""
        return (self._frames, *self._item)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Frames by number, slice of step 1, or list of numbers, as numpy gives them."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self._frames)
            return self._read(start, max(stop - start, 0))[::step]
        if isinstance(index, int | np.integer):
            return self._read(range(self._frames)[index], 1)[0]
        return np.stack([self[int(each)] for each in index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole array, in memory."""
        return np.asarray(self[:], dtype)

    def _read(self, start: int, count: int) -> NDArray[Any]:
        # Read, not mapped: pages of a mapped file count as memory until something else needs it.
        items = int(np.prod(self._item, dtype=np.int64))
        data = np.fromfile(self._path, self.dtype, count * items, offset=start * self._bytes)
        return data.reshape(count, *self._item)

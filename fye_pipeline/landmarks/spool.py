"""Landmark arrays that grow frame by frame: in memory, or in files from which a killed detection goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks.sequence import ARRAYS
from fye_pipeline.storage.files import DiskArray

_TYPES = {name: np.dtype(np.float32) for name in ARRAYS} | {
    "transforms": np.dtype(np.float64),
    "found": np.dtype(np.bool_),
}
_BLOCK = 1 << 16  # bytes, of a file's buffer


class Spool:
    """The arrays of a `LandmarkSequence`, one frame after the other. This one keeps them in memory."""

    def __init__(self) -> None:
        self._lists: dict[str, list[NDArray[Any]]] = {name: [] for name in ARRAYS}

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def __len__(self) -> int:
        return len(self._lists["found"])

    def append(self, frame: Mapping[str, NDArray[Any]] | None) -> None:
        """One frame's arrays but `found`; None where there is no face: zeros, until `put` fills them."""
        for name, values in _rows(frame).items():
            self._lists[name].append(values)

    def put(self, start: int, frames: Mapping[str, NDArray[Any]]) -> None:
        """Fill frames from `start` on, arrays [n, ...]; `found` stays as it is."""
        for name, values in frames.items():
            self._lists[name][start : start + len(values)] = list(values.astype(_TYPES[name]))

    def frame(self, number: int) -> dict[str, NDArray[Any]]:
        """One frame's arrays but `found`."""
        return {name: self._lists[name][number] for name in ARRAYS if name != "found"}

    def found(self) -> NDArray[np.bool_]:
        """[F]: in which frames there was a face."""
        return np.array(self._lists["found"], bool)

    def arrays(self) -> dict[str, Any]:
        """All arrays [F, ...]."""
        return {name: np.array(self._lists[name], _TYPES[name]).reshape(-1, *ARRAYS[name]) for name in ARRAYS}


class DiskSpool(Spool):
    """Arrays in files of a folder; memory does not grow with them. What a killed process has written is found again.

    Used in a `with` block; its arrays can be read afterwards for as long as the folder is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._sizes = {name: int(np.prod(ARRAYS[name], dtype=np.int64)) * _TYPES[name].itemsize for name in ARRAYS}
        for name in ARRAYS:
            self._path(name).touch()
        self._count = min(self._path(name).stat().st_size // size for name, size in self._sizes.items())
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> DiskSpool:
        for name, size in self._sizes.items():
            os.truncate(self._path(name), self._count * size)  # what of a frame a kill has cut off
            file = self._stack.enter_context(open(self._path(name), "r+b", buffering=_BLOCK))
            file.seek(0, os.SEEK_END)
            self._files[name] = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files = {}
        self._stack.close()

    def __len__(self) -> int:
        return self._count

    def append(self, frame: Mapping[str, NDArray[Any]] | None) -> None:
        for name, values in _rows(frame).items():
            self._files[name].write(values.tobytes())
        self._count += 1

    def put(self, start: int, frames: Mapping[str, NDArray[Any]]) -> None:
        for name, values in frames.items():
            file = self._files[name]
            file.seek(start * self._sizes[name])
            file.write(values.astype(_TYPES[name]).tobytes())
            file.seek(0, os.SEEK_END)

    def frame(self, number: int) -> dict[str, NDArray[Any]]:
        return {name: self._array(name)[number] for name in ARRAYS if name != "found"}

    def found(self) -> NDArray[np.bool_]:
        return self._array("found")[:]

    def arrays(self) -> dict[str, Any]:
        return {name: self.found() if name == "found" else self._array(name) for name in ARRAYS}

    def _array(self, name: str) -> DiskArray:
        if self._files:
            self._files[name].flush()
        return DiskArray(self._path(name), ARRAYS[name], _TYPES[name])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.raw"


def _rows(frame: Mapping[str, NDArray[Any]] | None) -> dict[str, NDArray[Any]]:
    """One frame of every array, of its kind of numbers; zeros where there is no face."""
    if frame is None:
        return {name: np.zeros(ARRAYS[name], kind) for name, kind in _TYPES.items()}
    rows = {name: np.asarray(frame[name], _TYPES[name]) for name in ARRAYS if name != "found"}
    return rows | {"found": np.array(True)}

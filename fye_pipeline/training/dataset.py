"""A prepared dataset, written and read: tar shards in the WebDataset layout, each beside an index of its clips.

A sample is a clip: members `KEY.00000.jpg` ..., `KEY.landmarks.npy`, `KEY.mesh.npy`, `KEY.poses.npy`,
`KEY.blendshapes.npy` and `KEY.json`. Any WebDataset reader takes the shards as they are; ours goes by the index, so
that a batch is a function of its step's number and a resumed run has nothing to read again.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.storage.files import atomic_target, write_json

INDEX = "dataset.json"
KIND, VERSION = "fye.dataset", 1
SHARDS = "shards"
_BLOCK = tarfile.BLOCKSIZE
_END = b"\0" * (2 * _BLOCK)
_SHAPES: dict[str, tuple[int, ...]] = {
    "landmarks": (478, 3),
    "mesh": (468, 3),
    "poses": (4, 4),
    "blendshapes": (52,),
}
_OPEN_FILES = 32


@dataclass(frozen=True)
class ClipEntry:
    """Where a clip lies in its shard. jpegs: (offset, bytes) of every frame; arrays: offset of each array's values
    (float32, [frames, ...], no header). fps as a fraction.
    """

    key: str
    video: str
    frames: int
    fps: str
    jpegs: tuple[tuple[int, int], ...]
    arrays: dict[str, int]

    def moved(self, by: int) -> ClipEntry:
        """The same clip where its bytes stand `by` further on."""
        jpegs = tuple((offset + by, length) for offset, length in self.jpegs)
        return replace(self, jpegs=jpegs, arrays={name: offset + by for name, offset in self.arrays.items()})

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> ClipEntry:
        """From a parsed index."""
        return cls(**{**entry, "jpegs": tuple((int(offset), int(length)) for offset, length in entry["jpegs"])})


class ShardWriter:
    """Clips into a tar file that is open for writing; `entries` says where each one lies, `size` how long the tar is
    without the zeros at its end.
    """

    def __init__(self, path: Path, *, quality: int = 95) -> None:
        self._file = path.open("wb")
        self._quality = quality
        self.entries: list[ClipEntry] = []

    @property
    def size(self) -> int:
        """Bytes so far, a multiple of the tar block."""
        return self._file.tell()

    def begin(self, key: str, video: str, fps: str) -> ClipWriter:
        """A clip, whose frames are then added one at a time. Keys have no dots (WebDataset's rule)."""
        if "." in key or "/" in key:
            raise ValueError(f"a key must have no dot and no slash, got {key!r}")
        return ClipWriter(self, key, video, fps)

    def add_member(self, name: str, content: bytes) -> int:
        """Append a file. -> the offset of its content."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._file.tell()
        self._file.write(content)
        self._file.write(b"\0" * (-len(content) % _BLOCK))
        return offset

    def close(self) -> None:
        """Write the tar's end."""
        self._file.write(_END)
        self._file.close()

    def encode(self, frame: NDArray[np.uint8]) -> bytes:
        """uint8 RGB [S, S, 3] -> JPEG with colour at full resolution."""
        options = [cv2.IMWRITE_JPEG_QUALITY, self._quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        done, content = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), options)
        if not done:
            raise ValueError(f"OpenCV cannot encode a picture of {frame.dtype} {list(frame.shape)} as JPEG")
        return content.tobytes()


class ClipWriter:
    """One clip on its way into a shard."""

    def __init__(self, shard: ShardWriter, key: str, video: str, fps: str) -> None:
        self._shard, self._key, self._video, self._fps = shard, key, video, fps
        self._jpegs: list[tuple[int, int]] = []

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 RGB [S, S, 3]."""
        content = self._shard.encode(frame)
        offset = self._shard.add_member(f"{self._key}.{len(self._jpegs):05d}.jpg", content)
        self._jpegs.append((offset, len(content)))

    def finish(self, arrays: dict[str, NDArray[np.floating]], note: dict[str, Any]) -> ClipEntry:
        """Append the arrays [frames, ...] and what is known of the clip, and enter it into the shard's index."""
        offsets = {}
        for name, values in arrays.items():
            if len(values) != len(self._jpegs):
                raise ValueError(f"{name} must have {len(self._jpegs)} rows, one a frame, got {len(values)}")
            held = io.BytesIO()
            np.lib.format.write_array(held, np.ascontiguousarray(values, np.float32), allow_pickle=False)
            header = len(held.getvalue()) - 4 * values.size
            offsets[name] = self._shard.add_member(f"{self._key}.{name}.npy", held.getvalue()) + header
        whole = {"video": self._video, "fps": self._fps, "frames": len(self._jpegs), **note}
        self._shard.add_member(f"{self._key}.json", json.dumps(whole).encode())
        entry = ClipEntry(self._key, self._video, len(self._jpegs), self._fps, tuple(self._jpegs), offsets)
        self._shard.entries.append(entry)
        return entry


def join_parts(parts: Sequence[tuple[Path, int, Sequence[ClipEntry]]], target: Path) -> list[ClipEntry]:
    """Join tar files (path, size without the end, clips) into one, and its index beside it, which is written last.

    Both appear whole or not at all. Returns the clips with their new places.
    """
    joined: list[ClipEntry] = []
    with atomic_target(target) as temporary, temporary.open("wb") as output:
        for path, size, entries in parts:
            base = output.tell()
            with path.open("rb") as part:
                _copy(part, output, size)
            joined += [entry.moved(base) for entry in entries]
        output.write(_END)
    index = {"clips": [asdict(entry) for entry in joined]}
    write_json(index_of(target), index, indent=None)
    return joined


def _copy(source: BinaryIO, output: BinaryIO, size: int) -> None:
    """The first `size` bytes. Raises `UserError` where there are fewer."""
    left = size
    while left:
        chunk = source.read(min(left, 1 << 20))
        if not chunk:
            raise UserError(f"{source.name} is cut short: expected {size} bytes, got {size - left}.")
        output.write(chunk)
        left -= len(chunk)


def index_of(shard: Path) -> Path:
    """The index that belongs to a shard."""
    return shard.with_suffix(".json")


def read_dataset_note(folder: Path) -> dict[str, Any]:
    """What `dataset.json` says. Raises `UserError` where it is absent or of another kind."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder} is not a prepared dataset: it has no {INDEX}; make one with `fye prepare VIDEOS -o {folder}`."
        )
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["kind"] != KIND or note["version"] != VERSION:
            raise UserError(
                f"{path} is {note['kind']} of version {note['version']}; this program reads {KIND} {VERSION}."
            )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a dataset's index ({error}); run `fye prepare` again.") from error
    return note


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

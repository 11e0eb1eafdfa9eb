"""Files: checked before long work begins, complete when they appear, locked by a run at work, known by hashes."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fye_pipeline.errors import UserError

if TYPE_CHECKING:  # a download needs a hash and no torch
    from torch import Tensor, nn

LOCK = ".lock"
_PATIENCE = 0.2  # seconds: a lock file that a run which ended deletes meanwhile is made anew
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # the disk, the largest file allowed, the user's quota
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # file systems that know no hard links
_POINTER = b"version https://git-lfs"  # the first bytes of a Git-LFS pointer file


def existing_file(path: str | Path, what: str) -> Path:
    """The path of a readable, non-empty file; `what` names its role in the error ("the driving video").

    Raises:
        UserError: absent (with the nearest name in that folder), a folder, or empty.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; name {what} inside it.")
    if not path.exists():
        raise UserError(f"{path} does not exist ({what}){_nearest(path)}.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read ({what}): check its permissions.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty ({what}): copy it again from its source.")
    return path


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / names[0]}?" if names else ""


def writable_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path of a file that may be written.

    Raises:
        UserError: its folder is absent or not writable, it is a folder, or it exists and `overwrite` is not set.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the output file inside it.")
    if not path.parent.is_dir():
        raise UserError(f"The output folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"The output folder {path.parent} is read-only; choose another.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; pass --overwrite to replace it.")
    return path


@contextmanager
def atomic_target(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name on success and vanishes on any error or Ctrl-C.

    Two programs that write the same output never mix: each has its own temporary file. Without `overwrite` the first to
    finish wins.

    Raises:
        UserError: the disk is full, or, without `overwrite`, `path` has come into being meanwhile.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.part{path.suffix}")
    try:
        yield temporary
        _publish(temporary, path, overwrite=overwrite)
    except Exception as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise UserError(
                f"{path} cannot be written: the disk is full (or the file too large); free space."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8; the file takes its name when it is complete."""
    with atomic_target(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write plain values as JSON; the file takes its name when it is complete."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def _publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, this fails where the name is taken
    except FileExistsError as error:
        raise UserError(f"{path} was written by another program meanwhile; pass --overwrite to replace it.") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(temporary, path)


class FolderLock:
    """Makes a folder and holds it until `release`, or until the process ends, however that ends.

    Raises:
        UserError: another process, or another part of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(folder / LOCK, timeout=_PATIENCE, thread_local=False)
        while not self._lock.is_locked:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with suppress(FileNotFoundError):  # deleted since the line above by a run that ended
                    self._lock.acquire()
            except Timeout:
                raise UserError(
                    f"Another run is at work in {folder}; wait until it ends, or name another place."
                ) from None

    def release(self) -> None:
        """Let others in; twice is fine."""
        self._lock.release()


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git-LFS pointer, which stands where a large file was not fetched."""
    with open(path, "rb") as file:
        return file.read(len(_POINTER)) == _POINTER


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


def digest_of_file(path: Path) -> str:
    """Of a file's contents, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_path(path: Path) -> str:
    """Of a file's contents, or of the names and contents of a folder's files; "absent" where there is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file())
        return digest_of_text("".join(f"{file.name} {digest_of_path(file)}\n" for file in files))
    return digest_of_file(path) if path.is_file() else "absent"


def digest_of_text(text: str) -> str:
    """Of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def remembered_digest(path: Path) -> str:
    """As `digest_of_path`; a file is read once while its size, its times and its place on the disk stay the same."""
    path = Path(path).expanduser()
    if not path.is_file():
        return digest_of_path(path)
    status = path.stat()
    return _digest_of_version(path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=1024)
def _digest_of_version(path: Path, version: tuple[int, ...]) -> str:
    """Of a file as it is while its status is `version`."""
    return digest_of_file(path)


def digest_of_folder(folder: Path, *, but: Collection[str] = ()) -> str:
    """Of the names and contents of a folder's files and those of its folders, without the files named in `but`."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in but]
    lines = (f"{file.relative_to(folder).as_posix()} {remembered_digest(file)}\n" for file in files)
    return digest_of_text("".join(lines))


def digest_of(*values: np.ndarray | Tensor | None) -> str:
    """Of shapes, types and contents."""
    total = hashlib.sha256()
    for value in values:
        array: Any = None if value is None else np.ascontiguousarray(value)
        total.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A short name for exact weights: named tensors, in the order in which they come."""
    total = hashlib.sha256()
    for name, value in weights:
        total.update(name.encode())
        total.update(value.detach().cpu().float().numpy().tobytes())
    return total.hexdigest()[:16]


def sampled_weights_hash(networks: Mapping[str, nn.Module], samples: int = 64) -> str:
    """Of every tensor's name, shape and some of its values: quick, and other weights give another."""
    total = hashlib.sha256()
    for part, network in networks.items():
        for name, tensor in network.state_dict().items():
            total.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
            if not tensor.is_meta:  # offloaded weights are told by name and shape alone
                some = tensor.detach().flatten()[:: max(1, tensor.numel() // samples)]
                total.update(some.cpu().float().numpy().tobytes())
    return total.hexdigest()

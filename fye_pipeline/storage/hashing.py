"""What tells contents apart: hashes (SHA-256) of files, folders, texts, arrays and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a download needs a hash and no torch
    from torch import Tensor, nn


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

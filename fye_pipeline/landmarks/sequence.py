"""A sequence of landmarks, one entry a frame, and its file: a plain `.npz` (docs/landmark-sequence.md)."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.official_npy import read_template
from fye_pipeline.landmarks.topology import N_BLENDSHAPES, N_MESH, N_POINTS
from fye_pipeline.storage.files import DiskArray, atomic_target, existing_file

SCHEMA = "fye.landmarks"
VERSION = 1
_BLOCK = 1 << 20  # bytes that are unpacked at once
ARRAYS = {
    "landmarks": (N_POINTS, 3),
    "mesh": (N_MESH, 3),
    "transforms": (4, 4),
    "blendshapes": (N_BLENDSHAPES,),
    "found": (),
}


@dataclass(frozen=True, eq=False)
class LandmarkSequence:
    """What a detector knows of a face in F frames of width x height pixels.

    landmarks [F, 478, 3]: x, y in 0..1 of the frame, z on x's scale; mesh [F, 468, 3]: cm, without the pose;
    transforms [F, 4, 4]: canonical face -> camera, translation in the last column; blendshapes [F, 52]: the first is
    `_neutral`; found [F] bool: False where the face was not seen and the entry is interpolated or held; fps None for
    a single picture. Raises `UserError` where a shape does not fit.

    The arrays of a long video are `DiskArray`: frames are read when they are asked for, slices are in memory.
    """

    landmarks: NDArray[np.floating]
    mesh: NDArray[np.floating]
    transforms: NDArray[np.floating]
    blendshapes: NDArray[np.floating]
    found: NDArray[np.bool_]
    width: int
    height: int
    fps: Fraction | None = None

    def __post_init__(self) -> None:
        frames = len(self.landmarks)
        for name, shape in ARRAYS.items():
            got = getattr(self, name).shape
            if got != (frames, *shape):
                raise UserError(f"Landmark sequence: {name} must have shape {(frames, *shape)}, got {got}.")
        if self.width < 1 or self.height < 1:
            raise UserError(f"Landmark sequence: the frame size must be positive, got {self.width}x{self.height}.")

    def __len__(self) -> int:
        return len(self.landmarks)

    def __getitem__(self, index: int | slice) -> LandmarkSequence:
        """Frames as a sequence of their own; an int gives one frame."""
        if isinstance(index, slice):
            part = index
        else:
            at = range(len(self))[index]
            part = slice(at, at + 1)
        arrays = {name: getattr(self, name)[part] for name in ARRAYS}
        return LandmarkSequence(**arrays, width=self.width, height=self.height, fps=self.fps)

    def gaps(self) -> list[tuple[int, int]]:
        """The runs of frames without a face, as (first, one past the last)."""
        return runs_of(~self.found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the `.npz`; no half file stays behind. Raises `UserError` where it cannot be written."""
        path = Path(path)
        fps = None if self.fps is None else f"{self.fps.numerator}/{self.fps.denominator}"
        header = {
            "schema": SCHEMA,
            "version": VERSION,
            "frames": len(self),
            "points": N_POINTS,
            "width": self.width,
            "height": self.height,
            "fps": fps,
        }
        arrays = {name: getattr(self, name) for name in ARRAYS}
        try:
            with atomic_target(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, folder: Path | None = None) -> LandmarkSequence:
        """Read a `.npz` written by `save`; nothing in it is unpickled.

        folder: where the arrays are unpacked to, so that they need not be held; None holds them.
        Raises `UserError` for a file that is absent, not an `.npz`, cut short, of another version or point count.
        """
        path = Path(path)
        content = _read_arrays(path, folder)
        if "header" not in content:
            raise UserError(f"{path} is an .npz file but not a landmark sequence: it has no header.")
        try:
            header = json.loads(str(content["header"]))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not a landmark sequence: its header is not JSON ({error}).") from error
        return cls(**_check_header(path, header, content))


def join(first: LandmarkSequence, *more: LandmarkSequence) -> LandmarkSequence:
    """Sequences one after the other; size and rate are the first's."""
    arrays = {name: np.concatenate([getattr(part, name) for part in (first, *more)]) for name in ARRAYS}
    return LandmarkSequence(**arrays, width=first.width, height=first.height, fps=first.fps)


def load_official_npy(path: str | os.PathLike[str], *, fps: Fraction | None = None) -> LandmarkSequence:
    """Import an official pickled `.npy` template without running anything that is in it.

    The file has no frame rate: give `fps`. Its 51 blendshapes become 52 with a `_neutral` of 0. Raises `UserError` for
    a file that is not such a template, that has other point counts, or that names anything but arrays.
    """
    template = read_template(existing_file(Path(path), "the landmark template"))
    scores = template.blendshapes
    return LandmarkSequence(
        landmarks=template.landmarks,
        mesh=template.mesh,
        transforms=template.transforms,
        blendshapes=np.concatenate([np.zeros_like(scores[:, :1]), scores], axis=1),
        found=np.ones(len(scores), bool),
        width=template.width,
        height=template.height,
        fps=fps,
    )


def runs_of(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of True in a [F] array, as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _read_arrays(path: Path, folder: Path | None) -> dict[str, Any]:
    """Every array of an `.npz`, each failure told as what it is: judged from the file, not from an error's wording."""
    path = existing_file(path, "the landmark sequence")
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] != b"PK":
        hint = "; an official .npy template is read by the importer" if start == b"\x93NUM" else ""
        raise UserError(f"{path} is not an .npz landmark sequence (its first bytes are {start!r}){hint}.")
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if folder is None:
                return {name: archive[name] for name in archive.files}
            return {name: _unpack(archive, name, folder) if name in ARRAYS else archive[name] for name in archive.files}
    except Exception as error:  # a damaged zip or array header fails in whatever way its bytes lead to
        raise UserError(
            f"{path} is cut short or damaged ({type(error).__name__}: {error}); make it again with `fye landmarks`."
        ) from error


def _unpack(archive: Any, name: str, folder: Path) -> NDArray | DiskArray:
    """One array of an open `.npz` as a file of raw numbers, copied piece by piece; in memory where it is no such."""
    with archive.zip.open(f"{name}.npy") as packed:
        version = np.lib.format.read_magic(packed)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
        shape, by_column, kind = read_header(packed)
        if by_column or kind.hasobject or shape[1:] != ARRAYS[name] or name == "found":
            return archive[name]
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{name}.raw"
        with open(target, "wb") as file:
            shutil.copyfileobj(packed, file, _BLOCK)
    return DiskArray(target, ARRAYS[name], kind)


def _all_finite(array: NDArray | DiskArray) -> bool:
    frames = 4096
    return all(np.isfinite(array[at : at + frames]).all() for at in range(0, len(array), frames))


def _check_header(path: Path, header: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a `LandmarkSequence`, or a `UserError` that names what does not fit."""
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a landmark sequence: expected the schema {SCHEMA!r} in its header.")
    if header.get("version") != VERSION:
        raise UserError(
            f"{path} is a landmark sequence of version {header.get('version')!r}; this program reads version {VERSION}."
        )
    if header.get("points") != N_POINTS:
        raise UserError(f"{path} has {header.get('points')!r} landmarks a frame; {N_POINTS} are needed.")
    missing = [name for name in ARRAYS if name not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; make it again with `fye landmarks`.")
    for name, shape in ARRAYS.items():
        array, expected = content[name], (header.get("frames"), *shape)
        kind_fits = array.dtype.kind == ("b" if name == "found" else "f")
        if array.shape != expected or not kind_fits:
            got = f"{array.dtype} {array.shape}"
            raise UserError(f"{path}: {name} must have shape {expected} of its kind of numbers, got {got}.")
        if not _all_finite(array):
            raise UserError(f"{path}: {name} has values that are not finite.")
    try:
        fps = None if header["fps"] is None else Fraction(header["fps"])
        size = {"width": int(header["width"]), "height": int(header["height"])}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: its header has no usable width, height and fps ({error}).") from error
    return {**{name: content[name] for name in ARRAYS}, **size, "fps": fps}

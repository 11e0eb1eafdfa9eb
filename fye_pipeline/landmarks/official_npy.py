"""Import of the official pickled `.npy` templates by an unpickler that builds arrays and plain containers only."""

from __future__ import annotations

import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import N_BLENDSHAPES, N_MESH, N_POINTS

# What numpy's own pickles of plain arrays and numbers name. Builtin containers need no name: they have opcodes.
_ADMITTED = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        (f"{core}.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )
}
_FIELDS = {"lmks": (N_POINTS, 3), "lmks3d": (N_MESH, 3), "trans_mat": (4, 4)}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays, numpy numbers and builtin containers; every other name is refused before it is imported."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _ADMITTED:
            return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def load_official_npy(path: str | os.PathLike[str], *, fps: Fraction | None = None) -> LandmarkSequence:
    """Read an official template (an object array of one dict a frame) without running anything in it.

    The file has no frame rate: give `fps`. Its 51 blendshapes become 52 with a `_neutral` of 0. Raises `UserError` for
    a file that is not such a template, that has other point counts, or that names anything but arrays.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _read_object_array(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it holds more than arrays and plain containers, {error}.") from error
    # A damaged pickle fails in whatever way its bytes lead to; none of its code has run.
    except Exception as error:
        raise UserError(f"{path} is not an official landmark template ({type(error).__name__}: {error}).") from error
    frames = list(content.flat) if isinstance(content, np.ndarray) else content
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} is not an official landmark template: expected a list with one dict a frame.")
    return _sequence(path, frames, fps)


def _read_object_array(file: BinaryIO) -> Any:
    """The pickled content behind an `.npy` header (any header version)."""
    version = npy_format.read_magic(file)
    if version == (1, 0):
        header = npy_format.read_array_header_1_0(file)
    else:
        header = npy_format.read_array_header_2_0(file)
    if not header[2].hasobject:
        raise ValueError(f"an array of {header[2]}, not of dicts")
    return _ArrayUnpickler(file, encoding="latin1").load()


def _sequence(path: Path, frames: list[dict], fps: Fraction | None) -> LandmarkSequence:
    first = frames[0]
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in (*_FIELDS, "bs")}
    for index, frame in enumerate(frames):
        for name, shape in (*_FIELDS.items(), ("bs", (N_BLENDSHAPES - 1,))):
            value = _numbers(frame.get(name))
            if value is None or value.shape != shape:
                got = "nothing" if value is None else value.shape
                raise UserError(f"{path}: frame {index} must have {name} of shape {shape}, got {got}.")
            arrays[name].append(value)
        if any(frame.get(side) != first.get(side) for side in ("width", "height")):
            raise UserError(f"{path}: frame {index} has another picture size than frame 0.")
    if not all(isinstance(first.get(side), (int, np.integer)) for side in ("width", "height")):
        raise UserError(f"{path}: its frames have no width and height.")
    blendshapes = np.zeros((len(frames), N_BLENDSHAPES))
    blendshapes[:, 1:] = arrays["bs"]
    return LandmarkSequence(
        landmarks=np.stack(arrays["lmks"]),
        mesh=np.stack(arrays["lmks3d"]),
        transforms=np.stack(arrays["trans_mat"]),
        blendshapes=blendshapes,
        found=np.ones(len(frames), bool),
        width=int(first["width"]),
        height=int(first["height"]),
        fps=fps,
    )


def _numbers(value: Any) -> np.ndarray | None:
    """`value` as a float array, or None where it is not finite numbers of one shape."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return array if np.isfinite(array).all() else None

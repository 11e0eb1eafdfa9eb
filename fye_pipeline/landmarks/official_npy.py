"""The official pickled `.npy` templates, read by an unpickler that builds arrays and plain containers only."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.topology import N_BLENDSHAPES, N_MESH, N_POINTS

_NUMBERS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
_FIELDS = {"lmks": (N_POINTS, 3), "lmks3d": (N_MESH, 3), "trans_mat": (4, 4), "bs": (N_BLENDSHAPES - 1,)}


class _Type:
    """Stands for `numpy.dtype`: a kind of number, or objects."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS and code != "O8":
            raise pickle.UnpicklingError(f"it holds values of type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def values(self, content: bytes) -> NDArray:
        """The numbers in these bytes; raises `ValueError` where they are no whole count of them."""
        return np.frombuffer(content, f"{self.order}{self.code}")


class _Array:
    """Stands for `numpy.ndarray`: its state is checked here, because numpy itself trusts what a pickle says."""

    value: NDArray

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_column, content = state
        self.value = _array(kind, shape, "F" if by_column else "C", content)


def _array(kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"], content: Any) -> NDArray:
    if kind.code == "O8":
        array = np.empty(len(content), object)
        array[:] = content
        return array
    if isinstance(content, str):  # how Python 2 pickles bytes
        content = content.encode("latin1")
    return kind.values(content).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, by which pickle's protocols 0 to 2 write bytes, without its search for codecs."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


def _buffer_array(content: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> _Array:
    array = _Array()
    array.value = _array(kind, shape, order, content)
    return array


_STAND_INS: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): lambda *_: _Array(),
    ("multiarray", "scalar"): lambda kind, content: _array(kind, (), "C", content).item(),
    ("numeric", "_frombuffer"): _buffer_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds stand-ins for numpy's arrays, and builtin containers; imports nothing, and refuses every other name."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        module = module_name.removeprefix("numpy.core.").removeprefix("numpy._core.")
        stand_in = _STAND_INS.get((module, global_name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return stand_in


@dataclass(frozen=True, eq=False)
class OfficialTemplate:
    """landmarks [F, 478, 3], mesh [F, 468, 3] cm, transforms [F, 4, 4], blendshapes [F, 51], picture size in pixels."""

    landmarks: NDArray[np.float64]
    mesh: NDArray[np.float64]
    transforms: NDArray[np.float64]
    blendshapes: NDArray[np.float64]
    width: int
    height: int


def read_template(path: Path) -> OfficialTemplate:
    """Read a template (an object array of one dict a frame); `UserError` for anything else, before any of it runs."""
    try:
        with open(path, "rb") as file:
            content = _read_object_array(file)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused as a landmark template: {error}.") from error
    # A damaged pickle fails in whatever way its bytes lead to; none of its code has run.
    except Exception as error:
        raise UserError(f"{path} is not an official landmark template ({type(error).__name__}: {error}).") from error
    frames = list(content.value) if isinstance(content, _Array) else content
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} is not an official landmark template: expected a list with one dict a frame.")
    return _template(path, frames)


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


def _template(path: Path, frames: list[dict]) -> OfficialTemplate:
    first = frames[0]
    width, height = first.get("width"), first.get("height")
    if not isinstance(width, (int, np.integer)) or not isinstance(height, (int, np.integer)):
        raise UserError(f"{path}: its frames have no width and height.")
    arrays: dict[str, list[NDArray]] = {name: [] for name in _FIELDS}
    for index, frame in enumerate(frames):
        for name, shape in _FIELDS.items():
            value = _numbers(frame.get(name))
            if value is None or value.shape != shape:
                got = "nothing usable" if value is None else value.shape
                raise UserError(f"{path}: frame {index} must have {name} of shape {shape}, got {got}.")
            arrays[name].append(value)
        if (frame.get("width"), frame.get("height")) != (width, height):
            raise UserError(f"{path}: frame {index} has another picture size than frame 0.")
    stacked = [np.stack(arrays[name]) for name in _FIELDS]
    return OfficialTemplate(*stacked, width=int(width), height=int(height))


def _numbers(value: Any) -> NDArray[np.float64] | None:
    """`value` as a float array, or None where it is not finite numbers of one shape."""
    try:
        array = np.asarray(value.value if isinstance(value, _Array) else value, np.float64)
    except (TypeError, ValueError):
        return None
    return array if np.isfinite(array).all() else None

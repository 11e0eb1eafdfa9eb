"""Where finished clips are kept: in memory, or in a folder from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.files import atomic_target
from fye_pipeline.generation.keyframes import PlannedClip

SETTINGS = "settings.json"


class ClipStore:
    """Latents of finished clips, by frame. This one keeps them in memory."""

    resumable = False

    def __init__(self, plan: Sequence[PlannedClip]) -> None:
        self._place = {frame: (clip.number, row) for clip in plan for row, frame in enumerate(clip.made)}
        self._clips: dict[int, Tensor] = {}

    def holds(self, clip: PlannedClip, digest: str) -> bool:
        """Is the clip finished? `digest` stands for what it is made from."""
        return clip.number in self._clips

    def write(self, clip: PlannedClip, latents: Tensor, digest: str) -> None:
        """Keep the latents of the frames that the clip made. [n, 4, h, w]"""
        self._clips[clip.number] = latents

    def read(self, frames: Sequence[int]) -> Tensor:
        """Latents of finished frames. -> [1, 4, len(frames), h, w]."""
        return torch.stack([self._row(*self._place[frame]) for frame in frames], dim=1)[None]

    def _row(self, number: int, row: int) -> Tensor:
        """One frame's latents. -> [4, h, w]."""
        return self._clips[number][row]


class WorkFolder(ClipStore):
    """Finished clips on disk, one safetensors file each, which appears only when it is complete.

    settings: everything else that decides the result; a folder that was begun with others is refused.
    Raises UserError for such a folder, and for one that holds other files.
    """

    resumable = True

    def __init__(self, folder: str | Path, plan: Sequence[PlannedClip], settings: dict[str, Any]) -> None:
        super().__init__(plan)
        self.folder = Path(folder)
        _claim(self.folder, json.loads(json.dumps(settings, default=str)))

    def holds(self, clip: PlannedClip, digest: str) -> bool:
        """Is the clip's file there and whole? Raises UserError where it was made from other landmarks or regions."""
        path = self._path(clip.number)
        try:
            with safe_open(path, framework="pt") as file:
                known = (file.metadata() or {}).get("inputs")
        except (FileNotFoundError, SafetensorError):  # absent, or cut off by a crash of the machine
            return False
        if known != digest:
            raise UserError(
                f"{path} was made from other landmarks or regions of frames {clip.frames[0]} to {clip.frames[-1]}; "
                f"use another work folder, or delete this one."
            )
        return True

    def write(self, clip: PlannedClip, latents: Tensor, digest: str) -> None:
        """Write the clip's file under its name when it is complete."""
        with atomic_target(self._path(clip.number)) as path:
            save_file({"latents": latents.contiguous().cpu()}, path, metadata={"inputs": digest})

    def _row(self, number: int, row: int) -> Tensor:
        with safe_open(self._path(number), framework="pt") as file:
            return file.get_slice("latents")[row]

    def _path(self, number: int) -> Path:
        return self.folder / f"clip-{number:06d}.safetensors"


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a work folder, or check that it was begun with the same settings."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the work that is in progress.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UserError(f"{folder} holds other files and no {SETTINGS}; name an empty folder, or a new one.")
        with atomic_target(path) as partial:
            partial.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        return
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} cannot be read; delete {folder}, or name another work folder.") from None
    changed = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    if changed:
        differences = ", ".join(_difference(name, known.get(name), settings.get(name)) for name in changed)
        raise UserError(f"{folder} holds another run ({differences}); use another work folder, or delete this one.")


def _difference(name: str, there: Any, here: Any) -> str:
    short = max(len(str(there)), len(str(here))) <= 24
    return f"{name} was {there} and is {here}" if short else f"another {name}"


def digest_of(*values: np.ndarray | Tensor | None) -> str:
    """A hash of shapes, types and contents."""
    total = hashlib.sha256()
    for value in values:
        array = None if value is None else np.ascontiguousarray(value)
        total.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def digest_of_weights(networks: dict[str, torch.nn.Module], samples: int = 64) -> str:
    """A hash of every tensor's name, shape and some of its values: quick, and other weights give another."""
    total = hashlib.sha256()
    for part, network in networks.items():
        for name, tensor in network.state_dict().items():
            total.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
            if not tensor.is_meta:  # offloaded weights are told by name and shape alone
                some = tensor.detach().flatten()[:: max(1, tensor.numel() // samples)]
                total.update(some.to("cpu", torch.float32).numpy().tobytes())
    return total.hexdigest()

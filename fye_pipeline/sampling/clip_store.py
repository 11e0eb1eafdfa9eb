"""Where finished clips are kept: in memory, or in a folder from which a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.sampling.clip_plan import PlannedClip
from fye_pipeline.sampling.denoise import Components
from fye_pipeline.storage.files import FolderLock, atomic_target, digest_of, sampled_weights_hash, write_json

FORMAT = 2  # of work folders; another one's clips are not used
_NETWORKS = ("vae", "image_encoder", "appearance_net", "unet", "landmark_encoder")
SETTINGS = "settings.json"
CLIPS = "clip-*.safetensors"

Record = dict[str, Any]


class ClipStore:
    """Latents of finished clips, by frame. This one keeps them in memory.

    A frame that several clips make is given to others as the first of them made it, and shown as the last did.
    """

    resumable = False

    def __init__(self, plan: Sequence[PlannedClip]) -> None:
        frames = 1 + max((clip.frames[-1] for clip in plan), default=-1)
        self._first = np.full((frames, 2), -1, np.int32)  # number of the clip, row in it
        self._last = np.full((frames, 2), -1, np.int32)
        for clip in plan:
            for row, frame in enumerate(clip.made):
                self._last[frame] = clip.number, row
                if self._first[frame, 0] < 0:
                    self._first[frame] = clip.number, row
        self._clips: dict[int, Tensor] = {}
        self._records: dict[int, Record] = {}

    def holds(self, clip: PlannedClip, digest: str) -> bool:
        """Is the clip finished? `digest` stands for what it is made from."""
        return clip.number in self._clips

    def write(self, clip: PlannedClip, latents: Tensor, digest: str, record: Record | None = None) -> None:
        """Keep the latents [n, C, h, w] of the frames that the clip made, and a note of how it was made."""
        self._clips[clip.number] = latents
        self._records[clip.number] = record or {}

    def record(self, clip: PlannedClip) -> Record:
        """The note that was kept with a finished clip."""
        return self._records[clip.number]

    def given(self, frames: Sequence[int]) -> Tensor:
        """Latents of finished frames for clips that are given them. -> [1, C, len(frames), h, w]."""
        return torch.stack([self._row(*self._first[frame].tolist()) for frame in frames], dim=1)[None]

    def read(self, frames: Sequence[int]) -> Tensor:
        """Latents of finished frames as they are shown. -> [1, C, len(frames), h, w]."""
        return torch.stack([self._row(*self._last[frame].tolist()) for frame in frames], dim=1)[None]

    def read_clip(self, clip: PlannedClip) -> Tensor:
        """What a clip made. -> [1, C, n, h, w]."""
        return self._whole(clip.number).transpose(0, 1)[None]

    def mark(self, name: str) -> None:
        """Note something that holds for all clips that come."""

    def marked(self, name: str) -> bool:
        """Whether that was noted, also by an earlier process."""
        return False

    def close(self) -> None:
        """Let others use it."""

    def _row(self, number: int, row: int) -> Tensor:
        """One frame's latents. -> [C, h, w]."""
        return self._clips[number][row]

    def _whole(self, number: int) -> Tensor:
        """A clip's latents. -> [n, C, h, w]."""
        return self._clips[number]


class WorkFolder(ClipStore):
    """Finished clips on disk, one safetensors file each, which appears only when it is complete; for one run at a time.

    settings: everything else that decides the result; a folder that was begun with others is refused.
    Raises UserError for such a folder, for one that holds other files, and while another run uses it.
    """

    resumable = True

    def __init__(self, folder: str | Path, plan: Sequence[PlannedClip], settings: dict[str, Any]) -> None:
        super().__init__(plan)
        self.folder = Path(folder)
        self._lock = claim(self.folder, settings)

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

    def write(self, clip: PlannedClip, latents: Tensor, digest: str, record: Record | None = None) -> None:
        """Write the clip's file under its name when it is complete."""
        metadata = {"inputs": digest, "record": json.dumps(record or {})}
        with atomic_target(self._path(clip.number)) as path:
            save_file({"latents": latents.contiguous().cpu()}, path, metadata=metadata)

    def record(self, clip: PlannedClip) -> Record:
        with safe_open(self._path(clip.number), framework="pt") as file:
            return json.loads((file.metadata() or {}).get("record", "{}"))

    def mark(self, name: str) -> None:
        (self.folder / name).touch()

    def marked(self, name: str) -> bool:
        return (self.folder / name).exists()

    def close(self) -> None:
        self._lock.release()

    def _row(self, number: int, row: int) -> Tensor:
        with safe_open(self._path(number), framework="pt") as file:
            return file.get_slice("latents")[row]

    def _whole(self, number: int) -> Tensor:
        with safe_open(self._path(number), framework="pt") as file:
            return file.get_tensor("latents")

    def _path(self, number: int) -> Path:
        return self.folder / f"clip-{number:06d}.safetensors"


def claim(folder: Path, settings: dict[str, Any]) -> FolderLock:
    """Lock a work folder and begin it, or check that it was begun with the same settings.

    Raises:
        UserError: it is a file, holds other things, was begun with other settings, or is in use.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the work that is in progress.")
    plain = json.loads(json.dumps(settings, default=str))
    if folder.exists():
        _check(folder, plain)  # before anything is written into a folder that may be another's
    lock = FolderLock(folder)
    try:
        if not _check(folder, plain):
            write_json(folder / SETTINGS, plain)
    except BaseException:
        lock.release()
        raise
    return lock


def _check(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder was begun with these settings; False where it is empty, and UserError for anything else."""
    path = folder / SETTINGS
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UserError(f"{folder} holds other files and no {SETTINGS}; name an empty folder, or a new one.")
        return False
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} cannot be read; delete {folder}, or name another work folder.") from None
    changed = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    if changed:
        differences = ", ".join(difference(name, known.get(name), settings.get(name)) for name in changed)
        raise UserError(f"{folder} holds another run ({differences}); use another work folder, or delete this one.")
    return True


def difference(name: str, there: Any, here: Any) -> str:
    """One setting that is not as it was, in a few words."""
    short = max(len(str(there)), len(str(here))) <= 24
    return f"{name} was {there} and is {here}" if short else f"another {name}"


def describe(
    pipe: Components,
    portrait: Image.Image,
    image_tokens: Tensor | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Everything beside the frames' own inputs that decides the result, as JSON takes it; `more` as it is."""
    session = pipe.session
    return {
        "format": FORMAT,
        **more,
        "size": f"{portrait.width} x {portrait.height}",
        "portrait": digest_of(np.asarray(portrait)),
        "image_tokens": None if image_tokens is None else digest_of(image_tokens.detach().float().cpu()),
        "model": sampled_weights_hash({name: pipe.components[name] for name in _NETWORKS}),
        "scheduler": f"{type(pipe.scheduler).__name__} {dict(pipe.scheduler.config)}",
        "noise_scale": pipe.noise_scale,
        "dtype": f"{pipe.unet.dtype}, {pipe.vae.dtype}",
        "device": torch.device(pipe._execution_device).type,
        "cache": more["cache"]
        if "cache" in more
        else str(session.config)
        if session is not None and session.active
        else None,
    }

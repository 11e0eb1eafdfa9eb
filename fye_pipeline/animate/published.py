"""A published model is fetched and converted once, into a pipeline folder that takes its name when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fye_pipeline.errors import UserError
from fye_pipeline.models.files import weight_digests
from fye_pipeline.models.published import PublishedModel
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import DISK_FULL, FolderLock
from fye_pipeline.storage.hub import HubFile, cache_place, fetch_all, list_repository, missing_bytes

StoredAs = Literal["float16", "float32"]
_OVERHEAD = 1.02  # of a disk: what beside the weights lies in a folder
_NETWORKS = ("lmk_guider", "referencenet", "unet")
_FULL = ("os error 28", "os error 27", "No space left", "File too large")  # safetensors has no errno


@dataclass(frozen=True)
class Plan:
    """What fetching a model takes. files: role -> file; licences: repository -> licence."""

    model: PublishedModel
    files: dict[str, HubFile]
    licences: dict[str, str]
    stored_as: StoredAs

    @property
    def missing(self) -> int:
        """Bytes that are yet to be fetched."""
        return sum(missing_bytes(file) for file in self.files.values())

    @property
    def converted(self) -> int:
        """Bytes of the pipeline folder, about: the published files are float32."""
        share = {"float16": 0.5, "float32": 1.0}[self.stored_as]
        return round(share * _OVERHEAD * sum(file.bytes for file in self.files.values()))

    def __str__(self) -> str:
        lines = [
            f"{self.model.name}: to fetch {_size(self.missing)}, then {_size(self.converted)} as a pipeline folder"
        ]
        for repository, licence in self.licences.items():
            own = sum(file.bytes for file in self.files.values() if file.repository == repository)
            lines.append(f"  {_size(own):>9}  {repository} (licence: {licence})")
        for what, place in (("downloads", cache_place()), ("the model", self.model.folder)):
            lines.append(f"  {_size(_free(place)):>9}  free for {what} at {place}")
        return "\n".join(lines)

    def check_room(self) -> None:
        """Raise `UserError` where a disk has not the room."""
        needs: dict[int, int] = {}
        places: dict[int, Path] = {}
        for place, size in ((cache_place(), self.missing), (self.model.folder, self.converted)):
            disk = os.stat(_existing(place)).st_dev
            needs[disk] = needs.get(disk, 0) + size
            places[disk] = place
        for disk, needed in needs.items():
            if _free(places[disk]) < needed:
                raise UserError(
                    f"{self.model.name} needs {_size(needed)} and the disk of {places[disk]} has "
                    f"{_size(_free(places[disk]))} left: free space, or set HF_HUB_CACHE or XDG_CACHE_HOME elsewhere."
                )


def plan_fetch(model: PublishedModel, stored_as: StoredAs = "float16") -> Plan:
    """Look up what is to be fetched. Raises `UserError` where the hub is out of reach and the cache lacks files."""
    files, licences = {}, {}
    for source in model.sources:
        listing = list_repository(source.repository)
        files |= {role: listing.choose(*names) for role, names in source.files.items()}
        licences[source.repository] = listing.licence or source.licence
    return Plan(model, files, licences, stored_as)


def fetch_model(plan: Plan, on_progress: OnProgress = silent) -> Path:
    """Fetch what is missing, convert it, and return the pipeline folder; one that is there stays as it is.

    Pickled weights (.pth, .bin) are read as tensors alone: no code in them is run.

    Raises:
        UserError: a fault of network, disk or files, in one sentence; nothing then lies under the model's name.
    """
    model = plan.model
    plan.check_room()
    paths = fetch_all(plan.files, on_progress)
    work = model.folder.with_name(f".{model.name}.work")
    lock = FolderLock(work)
    try:
        if not model.is_there:
            part = work / model.name
            shutil.rmtree(part, ignore_errors=True)
            on_progress("converting", 0, None)
            with _told_when_full(model.folder):
                _convert(paths, part, getattr(torch, plan.stored_as))
                _note_origin(part, plan)
                os.rename(part, model.folder)
    finally:
        shutil.rmtree(work / model.name, ignore_errors=True)
        lock.release()
        shutil.rmtree(work, ignore_errors=True)
    return model.folder


def _convert(paths: dict[str, Path], target: Path, dtype: torch.dtype) -> None:
    """Write the pipeline that the published files make."""
    folders = {paths[name].parent for name in _NETWORKS}
    if len(folders) > 1:
        raise UserError(f"The three networks lie in several folders: {', '.join(sorted(map(str, folders)))}.")
    pipe = FollowYourEmojiPipeline.from_official(
        folders.pop(), vae=paths["vae"].parent, image_encoder=paths["image encoder"].parent, dtype=dtype
    )
    pipe.save_pretrained(target)


def _note_origin(folder: Path, plan: Plan) -> None:
    """Write recipe.json: where the weights are from, and their hashes, by which `fye models check` knows them."""
    recipe: dict[str, Any] = {
        "name": plan.model.name,
        "sources": {role: file.to_dict() for role, file in plan.files.items()},
        "licences": plan.licences,
        "stored_as": plan.stored_as,
        "files": weight_digests(folder),
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _told_when_full(place: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in DISK_FULL or any(sign in str(error) for sign in _FULL)
        if not full:
            raise
        raise UserError(
            f"{place} could not be written: the disk is full; the same command goes on when there is room."
        ) from error


def _existing(place: Path) -> Path:
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _free(place: Path) -> int:
    return shutil.disk_usage(_existing(place)).free


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"

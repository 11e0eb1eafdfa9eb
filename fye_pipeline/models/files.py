"""The model files that `fye` knows: where each is expected, how large it is, and whether what lies there is right."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.model_file import BYTES, FILE_NAME, SHA256, VARIABLE, cache_folder, find_face_landmarker
from fye_pipeline.models.published import PUBLISHED, PublishedModel
from fye_pipeline.storage.files import digest_of_file, is_pointer

SHIPPED_MODEL = Path(__file__).parent.parent / "assets" / "tiny"
WEIGHTS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True)
class ModelFile:
    """A model: `files` maps names within `path` to their size in bytes and SHA-256, as they should be where that is
    known, else as they are. state: ok, missing, or what is wrong. optional: nothing needs it unless it is named.
    """

    name: str
    licence: str
    path: Path
    files: dict[str, dict[str, Any]]
    state: str
    optional: bool = False

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        described = {"name": self.name, "licence": self.licence, "path": str(self.path)}
        return described | {"bytes": self.bytes, "files": self.files, "state": self.state}

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:.1f} MB" if self.files else "-"
        return f"{self.name:<17} {size:>11}  {self.licence:<37} {self.path}: {self.state}"

    def details(self) -> str:
        """The model and, a line each, its files."""
        lines = [
            f"  {entry['sha256']}  {entry['bytes']:>13,} bytes  {name}" for name, entry in sorted(self.files.items())
        ]
        return "\n".join([str(self), *lines])


def known_files() -> list[ModelFile]:
    """The detector's file, the model that ships, and the published ones."""
    landmarker = Path(os.environ.get(VARIABLE) or cache_folder() / FILE_NAME)
    task = {FILE_NAME: {"bytes": BYTES, "sha256": SHA256}}
    return [
        ModelFile("face-landmarker", "Apache-2.0 (Google)", landmarker, task, _landmarker_state(landmarker)),
        describe_folder(SHIPPED_MODEL, "tiny", "Apache-2.0 (ships with this package)"),
        *map(_describe_published, PUBLISHED.values()),
    ]


def _describe_published(model: PublishedModel) -> ModelFile:
    licence = f"see {model.sources[0].repository}"
    if model.is_there:
        return describe_folder(model.folder, model.name, licence)
    state = f"not fetched (`fye models get {model.name}`, about {model.bytes / 1e9:.0f} GB)"
    return ModelFile(model.name, licence, model.folder, {}, state, optional=True)


def describe_folder(folder: Path, name: str | None = None, licence: str = "see its publisher") -> ModelFile:
    """A folder with weights: its files against the hashes in its recipe.json, else as they are.

    Raises:
        UserError: it is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder with a model; `fye models list` names those that are known.")
    expected = _recorded(folder)
    files = dict(expected)
    faults = []
    for place, found in weight_digests(folder).items():
        path = folder / place
        wanted = files.setdefault(place, found)
        if is_pointer(path):
            faults.append(f"{place} is a Git-LFS pointer file, not the weights: run `git lfs pull`")
        elif wanted != found:
            faults.append(
                f"{place} should have {wanted['bytes']:,} bytes and SHA-256 {wanted['sha256']}, "
                f"and has {found['bytes']:,} and {found['sha256']}: copy it again"
            )
    faults += [f"{place} is missing" for place in expected if not (folder / place).is_file()]
    if not files:
        faults.append("missing")
    return ModelFile(name or folder.name, licence, folder, files, "; ".join(faults) or "ok")


def weight_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Name within the folder -> size in bytes and SHA-256, of every file with weights."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS and path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_of_file(path)}
        for path in paths
    }


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and hashes that a model's recipe.json keeps of its files; none where there is no such record."""
    try:
        recorded = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["files"]
        return {str(name): {"bytes": int(each["bytes"]), "sha256": each["sha256"]} for name, each in recorded.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _landmarker_state(path: Path) -> str:
    if not path.is_file():
        return "missing"
    try:
        find_face_landmarker(path)
    except UserError as error:
        return str(error)
    return "ok"

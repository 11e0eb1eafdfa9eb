"""What a pipeline folder holds, checked before anything is loaded, and what its recipe recommends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fye_pipeline.errors import UserError

PAPER_GUIDANCE = 3.5
# What a part's folder must hold: one file of each group.
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_MODEL_FILES = (("config.json",), _WEIGHTS)
_PART_FILES = {
    "scheduler": (("scheduler_config.json",),),
    "feature_extractor": (("preprocessor_config.json", "processor_config.json"),),
}


def check_folder(folder: Path, parts: Iterable[str]) -> None:
    """Raise UserError unless `folder` has an index and every one of `parts` with the files that it needs."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no model_index.json; give one that save_pretrained wrote"
        )
    try:
        entries = json.loads(index.read_text())
    except ValueError as error:
        raise UserError(f"{index} is not valid JSON: {error}") from error
    faults = [fault for part in parts if (fault := _fault(folder, part, entries))]
    if faults:
        raise UserError(f"{folder} lacks {'; '.join(faults)}; copy the whole model folder again")


def _fault(folder: Path, part: str, entries: dict[str, Any]) -> str | None:
    """Say what is absent of one part, or None."""
    if not entries.get(part) or entries[part][0] is None:
        return f"the part {part} in model_index.json"
    if not (folder / part).is_dir():
        return f"the part {part}"
    for group in _PART_FILES.get(part, _MODEL_FILES):
        if not any(path for pattern in group for path in (folder / part).glob(pattern)):
            return f"{' or '.join(group)} in {part}"
    return None


def load_part(kind: Any, places: Sequence[str | Path], dtype: torch.dtype) -> Any:
    """Load a model (`kind.from_pretrained`) from the first of `places` that is a folder. Raises UserError."""
    for place in places:
        if Path(place).is_dir():
            try:
                return kind.from_pretrained(str(place), dtype=dtype).eval()
            except Exception as error:
                raise UserError(f"{place} cannot be loaded as {kind.__name__}: {error}") from error
    raise UserError(f"no {kind.__name__} found at {' or '.join(map(str, places))}; put its folder there, or pass it")


def recommended_guidance(folder: str | Path) -> float:
    """The guidance scale that a model was tuned for: `guidance` of its recipe.json, else the paper's 3.5.

    Raises UserError if the file is there and cannot be read.
    """
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        return PAPER_GUIDANCE
    try:
        return float(json.loads(path.read_text(encoding="utf-8")).get("guidance", PAPER_GUIDANCE))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}") from error

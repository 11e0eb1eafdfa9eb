"""Tuned presets that lie beside a model, and what `fye animate --preset` gives the cache for it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fye_pipeline.errors import UserError
from fye_pipeline.storage.files import atomic_target, remembered_digest

logger = logging.getLogger("fye")

FILE = "presets.json"
NAMES = ("fast", "balanced", "faithful")
_WEIGHTS = (".safetensors", ".bin", ".pth")


def resolve(options: Mapping[str, Any], model: Path | None) -> tuple[str | None, dict[str, Any]]:
    """The tuned config, as JSON, that options of `ticache.apply` with a preset mean for a model folder, and the rest.

    None, and the options as they are, where the preset is ticache's generic one: the folder has no own one, or one for
    other weights, or there is no folder (a note in the log says which), or an explicit N asks for another schedule.
    """
    tuned, why_not = _find(options, model)
    if tuned is None:
        if why_not:
            _tell_once(f"preset {options['preset']} is the generic one of ticache: {why_not}")
        return None, dict(options)
    return json.dumps(tuned), {key: value for key, value in options.items() if key != "preset"}


def tuned_config(options: Mapping[str, Any], model: Path | None) -> dict[str, Any] | None:
    """The tuned config that `resolve` would find, as plain values, without a word."""
    return _find(options, model)[0]


def read(model: Path) -> dict[str, Any] | None:
    """The presets file of a model folder; None where there is none. Raises `UserError` where it cannot be read."""
    path = model / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["presets"], dict) or not isinstance(content["files"], dict):
            raise TypeError("no presets")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of presets: delete it, or write it anew with fye tune.") from error
    return content


def write(model: Path, presets: Mapping[str, Mapping[str, Any]], conditions: Mapping[str, Any]) -> Path:
    """Add presets (plain values of tuned configs, by name) to a model folder; those for other weights are dropped."""
    files = weight_files(model)
    before = read(model)
    kept = before["presets"] if before is not None and before["files"] == files else {}
    content = {"files": files, "conditions": dict(conditions), "presets": {**kept, **presets}}
    path = model / FILE
    with atomic_target(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def weight_files(model: Path) -> dict[str, str]:
    """SHA-256 of the files that hold the UNet's weights, by name: which model the presets are for."""
    files = sorted(file for file in (model / "unet").glob("*") if file.suffix in _WEIGHTS)
    return {file.name: remembered_digest(file) for file in files}


@lru_cache
def _tell_once(note: str) -> None:
    logger.warning("%s", note)


def _find(options: Mapping[str, Any], model: Path | None) -> tuple[dict[str, Any] | None, str]:
    """A tuned config, or why a preset that was asked for has none."""
    name = options.get("preset")
    if name not in NAMES or "N" in options or "schedule" in options:
        return None, ""
    if model is None:
        return None, "the model was not loaded from a folder"
    content = read(model)
    if content is None or name not in content["presets"]:
        return None, f"the model {model.name} has none of its own"
    if content["files"] != weight_files(model):
        return None, f"that of the model {model.name} was tuned on other weights"
    return content["presets"][name], ""

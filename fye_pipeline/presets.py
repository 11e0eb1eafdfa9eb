"""Tuned presets and the calibration that lie beside a model, and what they give the cache for it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fye_pipeline.errors import UserError
from fye_pipeline.models.files import WEIGHTS
from fye_pipeline.storage.files import remembered_digest, write_json

logger = logging.getLogger("fye")

FILE = "presets.json"
NAMES = ("fast", "balanced", "faithful")
_OTHER_SCHEDULE = ("schedule", "forecaster", "axis", "warmup", "boundary", "calibration")


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


def calibration(options: Mapping[str, Any], model: Path | None) -> dict[str, Any] | None:
    """The model's own recordings (`Calibration.to_dict`) that options of `ticache.apply` leave room for.

    None where they ask for a schedule of their own, or the folder has no recordings; also where those are of other
    weights, which a note in the log says.
    """
    found, why_not = _find_calibration(options, model)
    if why_not:
        _tell_once(why_not)
    return found


def own_schedule(options: Mapping[str, Any] | None, model: Path | None) -> dict[str, Any] | None:
    """What of a model folder decides the full steps, without a word: a tuned config, or a digest of the recordings."""
    if options is None:
        return None
    tuned, recordings = _find(options, model)[0], _find_calibration(options, model)[0]
    if tuned is not None or recordings is None:
        return tuned
    return {"calibration": hashlib.sha256(json.dumps(recordings, sort_keys=True).encode()).hexdigest()[:16]}


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
    kept = before if before is not None and before["files"] == files else {"presets": {}}
    content = {**kept, "files": files, "conditions": dict(conditions), "presets": {**kept["presets"], **presets}}
    return _write(model, content)


def write_calibration(model: Path, recordings: Mapping[str, Any], conditions: Mapping[str, Any]) -> Path:
    """Keep recordings (`Calibration.to_dict`), and what they were made on, in a model folder, in place of earlier ones.

    Presets for other weights are dropped.
    """
    files = weight_files(model)
    before = read(model)
    kept = before if before is not None and before["files"] == files else {"conditions": {}, "presets": {}}
    return _write(model, {**kept, "files": files, "calibration": {**recordings, "conditions": dict(conditions)}})


def _write(model: Path, content: Mapping[str, Any]) -> Path:
    path = model / FILE
    write_json(path, content, indent=1)
    return path


def weight_files(model: Path) -> dict[str, str]:
    """SHA-256 of the files that hold the UNet's weights, by name: which model the presets are for."""
    files = sorted(file for file in (model / "unet").glob("*") if file.suffix in WEIGHTS)
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


def _find_calibration(options: Mapping[str, Any], model: Path | None) -> tuple[dict[str, Any] | None, str]:
    """The recordings of a model folder that may be used, or why those that it has are not."""
    wanted = options.get("schedule") == "auto" and options.get("calibration") is None
    elsewhere = any(name in options for name in _OTHER_SCHEDULE) or options.get("preset") == "paper"
    if model is None or not (wanted or (not elsewhere and options.get("order", 2) == 2)):
        return None, ""
    content = read(model)
    if content is None or "calibration" not in content:
        return None, ""
    if content["files"] != weight_files(model):
        return None, f"the calibration of the model {model.name} was recorded on other weights and is not used"
    return {key: value for key, value in content["calibration"].items() if key != "conditions"}, ""

"""What the flags of `fye animate` mean as settings, beside a settings file and a manifest's row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import typer

from fye_pipeline.animate.config import DEMO_PORTRAIT_LANDMARKS, AnimationSettings, read_settings
from fye_pipeline.errors import UserError

CheckCache = Callable[[dict[str, Any]], None]

# Flags that are settings under the same name; the others are translated in `_changes`.
_SAME = (
    *("reference", "driving", "model", "steps", "guidance", "seed", "frames", "fps", "size", "long", "crop_scale"),
    *("crop_shift", "face", "min_face", "reference_frame", "background", "max_pixels", "regions", "intensity", "pose"),
    *("neutral_frame", "compare", "no_face", "max_gap", "allow_partial", "unaligned", "reference_landmarks", "dtype"),
    *("chunk", "alpha", "vae_tiling"),
)


def common_settings(context: typer.Context, config: Path | None) -> dict[str, Any]:
    """The settings of a file, if any, changed by the flags that were given, as plain values."""
    values = read_settings(config) if config is not None else {}
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    }
    if "reference" in given:
        values.pop("reference_landmarks", None)  # those in the file belong to the portrait in the file
    return values | _changes(given, values.get("cache"))


def row_settings(
    base: dict[str, Any], row: Mapping[str, Any], name: str, check_cache: CheckCache | None
) -> AnimationSettings:
    """The settings of one animation: a manifest's row, if any, over what all have in common."""
    values = base | {key: value for key, value in row.items() if key not in _CACHE.values()}
    if "reference" in row and "reference_landmarks" not in row:
        values.pop("reference_landmarks", None)
    elif "reference" not in values and values.get("framing") in (None, "whole"):
        values.setdefault("reference_landmarks", str(DEMO_PORTRAIT_LANDMARKS))
    if asked := {key: row[key] for key in _CACHE.values() if key in row}:
        try:
            numbers = {key: int(asked[key]) for key in ("N", "order") if key in asked}
        except (TypeError, ValueError):
            raise UserError(f"{name}: N and order are whole numbers, got {asked}.") from None
        values["cache"] = _cache_options(asked | numbers, values.get("cache"))
    settings = AnimationSettings.from_dict(values, source=name)
    if settings.cache is not None and check_cache is not None:
        check_cache(settings.cache)
    return settings


def _changes(given: dict[str, Any], cache: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that flags change, as plain values."""
    values = {name: _plain(given[name]) for name in _SAME if name in given}
    if given.get("crop_only") and given.get("whole"):
        raise UserError("--crop-only and --whole exclude each other.")
    for flag, name, value in (
        ("crop_only", "framing", "crop"),
        ("whole", "framing", "whole"),
        ("no_audio", "audio", False),
        ("no_watermark", "watermark", False),
        ("no_cache", "cache", None),
    ):
        if given.get(flag):
            values[name] = value
    asked = {name: _plain(given[flag]) for flag, name in _CACHE.items() if given.get(flag) is not None}
    if asked and not given.get("no_cache"):
        values["cache"] = _cache_options(asked, cache)
    return values


_CACHE = {"interval": "N", "order": "order", "cut": "cut", "preset": "preset"}


def _cache_options(asked: dict[str, Any], saved: dict[str, Any] | None) -> dict[str, Any]:
    """What `ticache.apply` is given: what was asked for, over the saved options, or the defaults without a preset."""
    defaults = {"N": 3, "order": 2, "cut": "outer"} if asked.get("preset") in (None, "paper") else {}
    return (saved or defaults) | asked if "preset" not in asked else defaults | asked


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    return str(value) if isinstance(value, Path | Fraction) else value

"""From the figures of single clips and pairs to those of a run: means, sets, thresholds, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fye_pipeline.evaluation.distances import frechet_distance, kernel_distance
from fye_pipeline.evaluation.tables import Column, Table
from fye_pipeline.storage.run_log import Entry

PICTURE = (
    Column("l1", "L1", ".4f", "down"),
    Column("psnr", "PSNR", ".2f", "up"),
    Column("psnr_face", "face PSNR", ".2f", "up"),
    Column("ssim", "SSIM", ".3f", "up"),
)
SHAPE = (
    Column("exp", "Exp", ".2f", "down"),
    Column("lms", "LMS", ".3f", "down"),
    Column("lmd", "LMD", ".1f", "down"),
)
POSE = (
    Column("aed", "AED", ".3f", "down"),
    Column("apd_rotation", "APD rad", ".3f", "down"),
    Column("apd_translation", "APD cm", ".2f", "down"),
)
NO_FACE = Column("frames_without_face", "no face", "d", "down")
CROSS_COLUMNS = (
    Column("landmark_error", "landmarks", ".4f", "down"),
    Column("identity", "identity", ".2f", "down"),
    *SHAPE,
    Column("gaze", "gaze", ".1f", "down"),
    *POSE,
    Column("jitter", "jitter", ".4f", ""),
    NO_FACE,
)
COLUMNS = (*PICTURE, *CROSS_COLUMNS)
EXPRESSION = (
    Column("landmark_accuracy", "landmarks", ".4f", "down"),
    *SHAPE,
    Column("gaze", "gaze °", ".1f", "down"),
    *POSE,
    NO_FACE,
)
SELF = (
    *PICTURE,
    Column("lpips", "LPIPS", ".4f", "down"),
    Column("fid", "FID", ".1f", "down"),
    Column("kid", "KID", ".4f", "down"),
    Column("fvd", "FVD", ".1f", "down"),
    *EXPRESSION,
)
CROSS = (Column("arcface", "identity", ".3f", "up"), Column("hyperiqa", "quality", ".1f", "up"), *EXPRESSION)
TITLES = {"self": "Self-reenactment", "cross": "Cross-reenactment"}
STILL = "still portrait"


def summarise(clips: Sequence[Entry]) -> dict[str, Any]:
    """Means over clips of every figure of every row; counts are summed, None where nothing could be measured."""
    result: dict[str, Any] = {name: mean_of([c["rows"][name] for c in clips]) for name in clips[0]["rows"]}
    if "cross" in clips[0]:
        result["cross"] = {name: mean_of([c["cross"][name] for c in clips]) for name in clips[0]["cross"]}
    return result


def mean_of(rows: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Means over rows; those without a figure (None or nan) are left out. `frames_without_face` is summed."""
    result: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([np.nan if row.get(name) is None else row[name] for row in rows], np.float64)
        known = values[np.isfinite(values)]
        if name == "frames_without_face":
            result[name] = int(known.sum())
        else:
            result[name] = float(known.mean()) if len(known) else None
    return result


def leak_of(means: Mapping[str, Any]) -> dict[str, Any]:
    """The means of `leak_pixels` and `leak_landmarks` as the object that results have."""
    return {part: means.get(f"leak_{part}") for part in ("pixels", "landmarks")}


def check_thresholds(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a model must reach on held-out heads. -> what, value, limit, met (None where it was not measured)."""
    ours, still = result["ours"], result["repeat_reference"]
    wrong, shuffled, cached = result["wrong_reference"], result["shuffled_landmarks"], result.get("cached")

    def ratio(one: float | None, two: float | None) -> float | None:
        return None if one is None or not two else one / two

    error = ours["landmark_error"]
    checks = [
        ("L1 over that of the still portrait", ratio(ours["l1"], still["l1"]), "<=", 0.40),
        ("SSIM", ours["ssim"], ">=", 0.90),
        ("landmark error over that of the still portrait", ratio(error, still["landmark_error"]), "<=", 0.15),
        ("landmark error with shuffled landmarks over ours", ratio(shuffled["landmark_error"], error), ">=", 5.0),
        ("L1 with a wrong reference over ours", ratio(wrong["l1"], ours["l1"]), ">=", 1.5),
    ]
    if cached is not None:
        checks.append(("L1 moved by the cache", abs(cached["l1"] - ours["l1"]), "<=", 0.001))
        checks.append(("SSIM moved by the cache", abs(cached["ssim"] - ours["ssim"]), "<=", 0.003))
    rows = []
    for what, value, relation, limit in checks:
        met = None if value is None else bool(value <= limit if relation == "<=" else value >= limit)
        rows.append({"what": what, "value": value, "relation": relation, "limit": limit, "met": met})
    return rows


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Self- and cross-reenactment as tables."""
    rows = {name: row for name, row in result.items() if name not in ("conditions", "thresholds", "cross")}
    found = [Table("Self-reenactment on the rendered world", COLUMNS, rows)]
    if "cross" in result:
        found.append(Table("Cross-reenactment: one head's portrait, another's clip", CROSS_COLUMNS, result["cross"]))
    return found


def describe(result: Mapping[str, Any]) -> str:
    """The tables and the thresholds, as text."""
    parts = [str(table) for table in tables(result)]
    cached = result.get("cached") or {}
    if cached.get("psnr_uncached") is not None:
        parts.append(
            f"cached against uncached: {cached['psnr_uncached']:.2f} dB, {cached['time_ratio']:.2f} times as fast"
        )
    told = result.get("conditions", {}).get("identity")
    if told:
        parts.append(
            f"identity: {told['same']:.2f} between clip and portrait of one head, {told['other']:.2f} of two heads; "
            f"{told['told_apart']:.0%} of the clips are nearest to their own portrait"
        )
    lines = [_threshold_line(row) for row in result.get("thresholds", [])]
    return "\n\n".join([*parts, "\n".join(lines)]).strip()


def _threshold_line(row: Mapping[str, Any]) -> str:
    word = {True: "met", False: "missed", None: "not measured"}[row["met"]]
    value = "n/a" if row["value"] is None else f"{row['value']:.4g}"
    return f"{word:>12}  {row['what']}: {value} ({row['relation']} {row['limit']:.4g})"


def summarise_pairs(
    entries: Mapping[str, Entry], method: str, features: Mapping[str, Path], needs: Mapping[str, str]
) -> dict[str, Any]:
    """Means over pairs, of the method and of the portrait shown still, also by group."""
    rows = {name: entry for name, entry in entries.items() if "error" not in entry}
    result: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for kind in TITLES:
        own = {name: row for name, row in rows.items() if row["kind"] == kind}
        if not own:
            continue
        result[kind] = {
            method: mean_of([row["method"] for row in own.values()]) | _set_figures([features[name] for name in own]),
            STILL: mean_of([row["still"] for row in own.values()]),
        }
        for group in sorted({row["group"] for row in own.values() if row["group"] is not None}):
            inside = [row["method"] for row in own.values() if row["group"] == group]
            groups.setdefault(kind, {})[group] = mean_of(inside)
    failed = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    return result | {"groups": groups, "rows": rows, "failed": failed, "needs": dict(needs)}


def _set_figures(files: Sequence[Path]) -> dict[str, float | None]:
    """FID and KID over all frames, FVD over all videos that have features; None where they are fewer than two."""
    sets: dict[str, list[np.ndarray]] = {}
    for file in files:
        if file.is_file():
            with np.load(file, allow_pickle=False) as found:
                for name in found.files:
                    sets.setdefault(name, []).append(found[name])
    figures: dict[str, float | None] = {}
    for figure, name, measure in (
        ("fid", "fid", frechet_distance),
        ("kid", "fid", kernel_distance),
        ("fvd", "fvd", frechet_distance),
    ):
        pair = [np.concatenate(sets.get(key, [np.empty((0, 1))])) for key in (name, f"{name}_truth")]
        figures[figure] = measure(*pair) if min(map(len, pair)) >= 2 else None
    return figures


def pair_tables(result: Mapping[str, Any]) -> list[Table]:
    """Table-1-shaped: self- and cross-reenactment, and their groups."""
    found = []
    for kind, columns in (("self", SELF), ("cross", CROSS)):
        if kind in result:
            groups = result["groups"].get(kind, {})
            rows = result[kind] | {f"  {name}": row for name, row in groups.items()}
            found.append(Table(TITLES[kind], columns, rows, result["needs"]))
    return found


def describe_pairs(result: Mapping[str, Any]) -> str:
    """The tables and the rows that failed, as text."""
    failed = [f"{name}: {reason}" for name, reason in result["failed"].items()]
    counts = f"{len(result['rows'])} measured, {len(failed)} failed"
    return "\n\n".join([*map(str, pair_tables(result)), "\n".join([*failed, counts])])

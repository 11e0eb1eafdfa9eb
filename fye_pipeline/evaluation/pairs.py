"""A whole run over pairs of portrait and driver: shared among processes, resumed, averaged, written as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fye_pipeline.evaluation.distances import frechet_distance, kernel_distance
from fye_pipeline.evaluation.pair_evaluator import Gallery, Instruments
from fye_pipeline.evaluation.summary import mean_of
from fye_pipeline.evaluation.tables import Column, Table
from fye_pipeline.evaluation.work import Estimate, work_off
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import atomic_target
from fye_pipeline.storage.hashing import digest_of_text
from fye_pipeline.storage.run_log import Entry, Journal, finished_result, journal_path, write_result

EXPRESSION = (
    Column("landmark_accuracy", "landmarks", ".4f", "down"),
    Column("exp", "Exp", ".2f", "down"),
    Column("lms", "LMS", ".3f", "down"),
    Column("lmd", "LMD", ".1f", "down"),
    Column("gaze", "gaze °", ".1f", "down"),
    Column("aed", "AED", ".3f", "down"),
    Column("apd_rotation", "APD rad", ".3f", "down"),
    Column("apd_translation", "APD cm", ".2f", "down"),
    Column("frames_without_face", "no face", "d", "down"),
)
SELF = (
    Column("l1", "L1", ".4f", "down"),
    Column("psnr", "PSNR", ".2f", "up"),
    Column("psnr_face", "face PSNR", ".2f", "up"),
    Column("ssim", "SSIM", ".3f", "up"),
    Column("lpips", "LPIPS", ".4f", "down"),
    Column("fid", "FID", ".1f", "down"),
    Column("kid", "KID", ".4f", "down"),
    Column("fvd", "FVD", ".1f", "down"),
    *EXPRESSION,
)
CROSS = (
    Column("arcface", "identity", ".3f", "up"),
    Column("hyperiqa", "quality", ".1f", "up"),
    *EXPRESSION,
)
TITLES = {"self": "Self-reenactment", "cross": "Cross-reenactment"}
STILL = "still portrait"


@dataclass(frozen=True)
class Run:
    """How a run is kept and shown. target: the JSON to write; the tables stand beside it as Markdown.

    method: what the measured method is called in the tables. jobs: processes. resume: keep what was measured before;
    overwrite: begin anew.
    """

    target: Path
    method: str = "this model"
    jobs: int = 1
    resume: bool = False
    overwrite: bool = False


def evaluate_listing(
    gallery: Gallery,
    run: Run,
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure every pair. -> `self` and `cross` (means, where there are such pairs), `groups`, `rows`, `failed`.

    A pair that fails is named in `failed` with its reason, and the others are measured; with `run.resume` it is tried
    again. FID, KID and FVD are of the whole set.

    Raises:
        UserError: weights that cannot be read, or what `Journal` refuses.
    """
    Instruments.load(gallery.weights)  # a wrong file is told before any long work
    markdown = run.target.with_suffix(".md")
    conditions = _conditions(gallery, run.method)
    before = finished_result(run.target, conditions) if run.resume and not run.overwrite else None
    kept = {} if before is None else gallery.still_valid(before["rows"])
    if before is not None and not before["failed"] and len(kept) == len(gallery.pairs):
        logger.info(f"{run.target} was made under the same conditions; nothing to do.")
        return before
    journal = Journal(journal_path(run.target), conditions, resume=run.resume, overwrite=run.overwrite)
    for name, row in kept.items():
        journal.add(name, row)
    journal.entries = gallery.still_valid(journal.entries)
    gallery.folder.mkdir(parents=True, exist_ok=True)
    names = [pair.name for pair in gallery.pairs]
    estimate = Estimate(len(names) - len(journal.entries), run.jobs)
    on_progress("rows", len(journal.entries), len(names))

    def done(name: str, entry: Entry) -> None:
        on_progress("rows", len(journal.entries), len(names))
        estimate.advance()
        if "error" in entry:
            logger.info(f"{name} failed: {entry['error']}")

    entries = work_off(gallery, names, journal, jobs=run.jobs, on_done=done)
    result = summarise(entries, gallery, run.method) | {"conditions": conditions}
    write_result(run.target, result)
    with atomic_target(markdown) as temporary:
        temporary.write_text("\n".join(table.markdown() for table in tables(result)), encoding="utf-8")
    journal.close()
    return result


def summarise(entries: Mapping[str, Entry], gallery: Gallery, method: str) -> dict[str, Any]:
    """Means over pairs, of the method and of the portrait shown still, also by group."""
    rows = {name: entry for name, entry in entries.items() if "error" not in entry}
    result: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for kind in TITLES:
        own = {name: row for name, row in rows.items() if row["kind"] == kind}
        if not own:
            continue
        files = [gallery.features_of(pair) for pair in gallery.pairs if pair.name in own]
        result[kind] = {
            method: mean_of([row["method"] for row in own.values()]) | _set_figures(files),
            STILL: mean_of([row["still"] for row in own.values()]),
        }
        for group in sorted({row["group"] for row in own.values() if row["group"] is not None}):
            inside = [row["method"] for row in own.values() if row["group"] == group]
            groups.setdefault(kind, {})[group] = mean_of(inside)
    failed = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    return result | {"groups": groups, "rows": rows, "failed": failed, "needs": _needs(gallery)}


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


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Table-1-shaped: self- and cross-reenactment, and their groups."""
    found = []
    for kind, columns in (("self", SELF), ("cross", CROSS)):
        if kind in result:
            groups = result["groups"].get(kind, {})
            rows = result[kind] | {f"  {name}": row for name, row in groups.items()}
            found.append(Table(TITLES[kind], columns, rows, result["needs"]))
    return found


def describe(result: Mapping[str, Any]) -> str:
    """The tables and the rows that failed, as text."""
    failed = [f"{name}: {reason}" for name, reason in result["failed"].items()]
    counts = f"{len(result['rows'])} measured, {len(failed)} failed"
    return "\n\n".join([*map(str, tables(result)), "\n".join([*failed, counts])])


def _needs(gallery: Gallery) -> dict[str, str]:
    needs = gallery.weights.needs()
    return needs | ({"kid": needs["fid"]} if "fid" in needs else {})


def _conditions(gallery: Gallery, method: str) -> dict[str, Any]:
    """What decides the figures of all pairs; what decides those of one is kept with it."""
    pairs = [[p.name, str(p.portrait), str(p.driving), str(p.truth), p.group, p.error] for p in gallery.pairs]
    return {
        "method": method,
        "pairs": len(pairs),
        "pairs_hash": digest_of_text(json.dumps(pairs))[:16],
        "outputs": None if gallery.outputs is None else str(gallery.outputs),
        **gallery.made_with(),
    }

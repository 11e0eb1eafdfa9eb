"""What a cache skipped, saved and held: as plain text, as a dict, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ticache.config import CacheConfig
from ticache.records import Records


@dataclass(frozen=True)
class Report:
    """The last run in figures. `str()` is plain text, `to_dict()` and `to_json()` the same for programs.

    seconds are of UNet calls alone; bytes are of cached tensors; FLOP = 2 MAC.
    """

    values: dict[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Every figure by name."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Every figure as JSON text."""
        return json.dumps(self.values)

    def __str__(self) -> str:
        v = self.values
        calls = v["full_calls"] + v["predicted_calls"]
        lines = [f"ticache {v['recipe']}"]
        lines += [f"note      {note}" for note in v["notes"]]
        if not calls:
            return "\n".join([*lines, "calls     none yet"])
        lines.append(f"calls     {calls}: {v['full_calls']} full, {v['predicted_calls']} predicted")
        for stream in v["streams"]:
            of = stream["num_steps"] if stream["num_steps"] is not None else "an unknown number"
            lines.append(
                f"stream {stream['stream']}  {len(stream['full'])} full, {len(stream['predicted'])} predicted of {of} "
                f"steps; full: {', '.join(map(str, stream['full']))}"
            )
        if v["flops_full"]:
            lines.append(
                f"FLOPs     {v['flops_run'] / 1e12:.4g} T of {v['flops_full'] / 1e12:.4g} T uncached "
                f"({v['flops_ratio']:.2f}x fewer; {v['macs_saved'] / 1e12:.4g} T MACs saved)"
            )
        if v["seconds_predicted"] is not None and v["seconds_full"]:
            lines.append(
                f"time      {v['seconds_full'] * 1e3:.3g} ms per full call, {v['seconds_predicted'] * 1e3:.3g} ms per "
                f"predicted call: UNet {v['speedup']:.2f}x faster"
            )
        lines.append(f"memory    {_bytes(v['peak_bytes'])} held at most, {_bytes(v['held_bytes'])} now")
        lines += [f"fallback  {count} calls ran in full: {why}" for why, count in v["fallbacks"].items()]
        lines += [f"unknown   {count} calls ran in full: {why}" for why, count in v["unattributed"].items()]
        lines += [_reference_line(entry) for entry in v.get("reference", [])]
        return "\n".join(lines)


def build_report(
    records: Records, config: CacheConfig, recipe: str, backend: str, notes: Sequence[str], held_bytes: int
) -> Report:
    """Gather the figures of the last run."""
    run = records.run
    flops_full, flops_run = records.flops_of_run()
    full, predicted = run.seconds(True), run.seconds(False)
    # The first full call warms up allocators and kernels; it would flatter the cache.
    mean_full = _mean(full[1:] or full)
    speedup = None
    if mean_full and predicted:
        spent = mean_full * len(full) + sum(predicted)
        speedup = mean_full * (len(full) + len(predicted)) / spent
    return Report(
        {
            "recipe": recipe,
            "N": config.N,
            "order": config.order,
            "cut": config.cut,
            "backend": backend,
            "runs": records.runs,
            "full_calls": run.count(True),
            "predicted_calls": run.count(False),
            "total_full_calls": records.total(True),
            "total_predicted_calls": records.total(False),
            "total_unattributed": records.total_unattributed,
            "streams": run.streams(),
            "flops_full": flops_full,
            "flops_run": flops_run,
            "flops_saved": flops_full - flops_run,
            "macs_saved": (flops_full - flops_run) // 2,
            "flops_ratio": flops_full / flops_run if flops_run else None,
            "seconds_full": mean_full,
            "seconds_predicted": _mean(predicted),
            "seconds_run": sum(full) + sum(predicted),
            "speedup": speedup,
            "peak_bytes": run.peak_bytes,
            "held_bytes": held_bytes,
            "fallbacks": dict(run.fallbacks),
            "unattributed": dict(run.unattributed),
            "notes": list(notes),
        }
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def _reference_line(entry: dict[str, Any]) -> str:
    where = "".join(f", {name} {entry[name]:.3g}" for name in ("inside", "outside") if entry.get(name) is not None)
    return f"error     step {entry['step']}, {entry['site']}: {entry['error']:.3g} relative{where}"

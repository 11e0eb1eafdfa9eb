"""How rows of `benchmarks.acceleration` belong together: by model and base, and by method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by model and base, which alone may be compared, in the order of the file."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["base"]), []).append(row)
    return found


def uncached(rows: Sequence[Row]) -> Row | None:
    """The row that the others of its group are compared with."""
    return next((row for row in rows if row["name"] == "uncached"), None)


def ours(name: str) -> bool:
    return name.startswith("ticache")


def family(name: str) -> str:
    """A row's method without its settings.

    "DDIM 14 (equal FLOPs, N=3)" -> "DDIM", "DeepCache N=3 branch 0" -> "DeepCache branch 0",
    "threshold reuse, about 10 calls" -> "threshold reuse".
    """
    plain = re.split(r",| \(", name)[0]
    without = re.sub(r"\s+N=\d+", "", plain)
    return without if without != plain else re.sub(r"\s+[\d.]+$", "", plain)


def flops_ratio(row: Row, base: Row | None) -> float | None:
    """How many times fewer operations than the uncached run; None where either was not counted."""
    return base["flops"] / row["flops"] if base and base.get("flops") and row.get("flops") else None


def slug(model: str, base: str) -> str:
    """The name of a group's picture, without theme and ending."""
    return "quality_speed-" + re.sub(r"[^a-z0-9]+", "-", f"{model} {base}".lower()).strip("-")

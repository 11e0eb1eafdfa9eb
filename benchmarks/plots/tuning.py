"""The picture of docs/tune.md: trials against the best so far, and PSNR against full steps for late and tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.plots.style import Theme, draw, label_right

Row = dict[str, Any]

# Name and cut of the rows, label, colour, marker, dashes.
CURVES = (
    ("tuned", "outer", "tuned, outer", "vermillion", "o", "-"),
    ("late", "outer", "late, outer", "blue", "s", "--"),
    ("tuned", "output", "tuned, output", "orange", "^", "-"),
    ("late", "output", "late, output", "sky", "D", ":"),
)


def draw_tuning(path: Path, rows: Sequence[Row], *, preview: bool = False) -> list[Path]:
    """Write PATH-light.svg and PATH-dark.svg. -> the files."""
    return draw(path, lambda theme: paint(theme, rows), list(rows), preview=preview)


def paint(theme: Theme, rows: Sequence[Row]) -> Figure:
    """Trials on the left, full steps on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2), width_ratios=(1, 1.15))
    figure.subplots_adjust(left=0.08, right=0.865, top=0.89, bottom=0.13, wspace=0.22)
    trials = next(row for row in rows if row["name"] == "trials")
    best = trials["best"]
    colour = theme.colours["vermillion"]
    left.step(range(1, len(best) + 1), best, where="post", color=colour, linewidth=1.8)
    left.axhline(best[0], color=theme.colours["blue"], linestyle="--", linewidth=1.4)
    left.annotate("late", (len(best), best[0]), color=theme.colours["blue"], fontsize=9, va="bottom", ha="right")
    left.annotate("best so far", (len(best), best[-1]), color=colour, fontsize=9, va="bottom", ha="right")
    left.margins(y=0.12)
    left.set_xlabel("trial")
    left.set_ylabel("PSNR in dB, calibration clips")
    left.set_title(f"A search at {trials['full_steps']} of 30 full steps", fontweight="bold")
    labels = []
    for name, cut, label, look, marker, dashes in CURVES:
        seen = sorted((r["full_steps"], r["check"]) for r in rows if r["name"] == name and r.get("cut") == cut)
        if seen:
            look = theme.colours[look]
            right.plot(
                *zip(*seen, strict=True), color=look, marker=marker, linestyle=dashes, linewidth=1.8, markersize=5
            )
            labels.append((*seen[-1], label, look))
    right.set_xlabel("full steps of 30")
    right.set_ylabel("PSNR in dB, unseen clips")
    right.set_title("Late and tuned schedules", fontweight="bold")
    label_right(right, labels)
    return figure

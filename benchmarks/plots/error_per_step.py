"""Where the error comes from: the latents' mean squared error after every step, as curves, from `benchmarks.ablation`.

    python -m benchmarks.error_per_step [--json benchmarks/results/ablation.json] [--preview]

The logarithm of the error against the uncached run; a dot where the step was full. The steps before the first
prediction are exact and have no place on the axis.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.common import ROOT
from benchmarks.plots.style import Theme, draw, label_right

Row = dict[str, Any]

# Row, what it is called in the picture, colour, dashes: ours solid, Eq. 4 dashed.
CURVES = (
    ("ticache N=3 order=2", "default, N=3", "vermillion", "-"),
    ("ticache N=5 order=2", "default, N=5", "orange", "-"),
    ("ticache N=3 order=0", "default, order 0", "grey", "-"),
    ("ticache paper N=3 order=2", "Eq. 4, N=3", "blue", "--"),
    ("ticache paper N=3 order=2 region G=0.72", "Eq. 4, N=3, region", "sky", "-."),
    ("ticache paper N=3 order=0", "reuse, N=3", "purple", ":"),
)


def curves(rows: Sequence[Row]) -> list[tuple[Row, str, str, str]]:
    """The rows that are drawn, with their looks; rows that are absent are left out."""
    found = {row["name"]: row for row in rows if row.get("mse")}
    return [(found[name], label, colour, dashes) for name, label, colour, dashes in CURVES if name in found]


def paint(theme: Theme, rows: Sequence[Row]) -> Figure:
    """All curves on one logarithmic axis."""
    figure, axes = plt.subplots(figsize=(9.2, 4.6))
    figure.subplots_adjust(left=0.085, right=0.78, top=0.92, bottom=0.12)
    axes.set_yscale("log")
    labels = []
    for row, label, name, dashes in curves(rows):
        colour = theme.colours[name]
        seen = [(step, error) for step, error in enumerate(row["mse"]) if error > 0]
        axes.plot(*zip(*seen, strict=True), color=colour, linestyle=dashes, linewidth=1.8)
        full = set(row["full_steps"])
        dots = [(step, error) for step, error in seen if step in full]
        axes.plot(*zip(*dots, strict=True), color=colour, linestyle="", marker="o", markersize=4)
        labels.append((*seen[-1], label, colour))
    axes.set_xlabel("step, from the noisiest")
    axes.set_ylabel("mean squared error of the latents")
    axes.set_title("Error against the uncached run; dots: full steps", fontweight="bold")
    label_right(axes, labels)
    return figure


def draw_curves(data: dict[str, Any], path: Path, **options: bool) -> list[Path]:
    """PATH-light.svg and PATH-dark.svg, nothing where no row has curves; options as for `draw`. -> the files written"""
    drawn = [row for row, *_ in curves(data["rows"])]
    return draw(path, lambda theme: paint(theme, drawn), drawn, **options) if drawn else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/ablation.json", metavar="FILE")
    parser.add_argument("--preview", action="store_true", help="also write PNGs on the page's background")
    options = parser.parse_args()
    if not options.json.is_file():
        sys.exit(f"{options.json} is absent: python -m benchmarks.ablation --quick --json {options.json} makes it")
    for path in draw_curves(
        json.loads(options.json.read_text(encoding="utf-8")), options.json.with_suffix(""), preview=options.preview
    ):
        print(path)

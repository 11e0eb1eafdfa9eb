"""How much fidelity does a speed-up cost? Every row of `benchmarks.acceleration` as a point, a picture per model.

    python -m benchmarks.quality_speed [--json benchmarks/results/acceleration.json] [--output FOLDER] [--preview]

Upwards: PSNR of the face against the uncached run; to the right: how many times less time (upper panel) and how many
times fewer operations (lower panel). The broad line is the front: no row is both faster and nearer to the uncached run
than a row on it. The solvers with fewer steps stand beside the caches. `--preview` also writes PNGs to look at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.common import ROOT
from benchmarks.grouping import family, flops_ratio, groups, ours, slug, uncached
from benchmarks.plots.style import LOOKS, OURS, Look, Theme, draw, label_right

RESULTS = ROOT / "benchmarks" / "results"
EQUAL = 99.0  # dB; from here on the two runs are the same and have no place on the axis
PANELS = (("time_ratio", "times less time"), ("flops_ratio", "times fewer operations"))


@dataclass(frozen=True)
class Point:
    """One row: how many times cheaper by each measure, and PSNR in the face in dB."""

    name: str
    family: str
    ratios: dict[str, float | None]
    psnr: float

    @property
    def ours(self) -> bool:
        return ours(self.name)


def points(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """The rows of one group that have figures, but for the uncached run and what equals it."""
    base = uncached(rows)
    return [
        Point(
            row["name"],
            family(row["name"]),
            {"time_ratio": row["time_ratio"], "flops_ratio": flops_ratio(row, base)},
            row["psnr_region"],
        )
        for row in rows
        if not row["error"] and row is not base and row["psnr_region"] is not None and row["psnr_region"] < EQUAL
    ]


def front(found: Sequence[Point], ratio: str) -> list[Point]:
    """The points that no other beats in both, from the slowest to the fastest."""
    best: list[Point] = []
    placed = [(value, p) for p in found if (value := p.ratios[ratio]) is not None]
    for _, point in sorted(placed, key=lambda pair: (-pair[0], -pair[1].psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best[::-1]


def looks(found: Sequence[Point]) -> dict[str, Look]:
    """A look for every rival family; the same in both panels."""
    rivals = dict.fromkeys(point.family for point in found if not point.ours)
    return {name: LOOKS[index % len(LOOKS)] for index, name in enumerate(rivals)}


def paint(theme: Theme, title: str, found: Sequence[Point]) -> Figure:
    """Both panels of one model and base."""
    panels = [(ratio, label) for ratio, label in PANELS if any(p.ratios[ratio] is not None for p in found)]
    figure, axes = plt.subplots(len(panels), 1, figsize=(9.2, 4.3 * len(panels)), squeeze=False, layout=None)
    figure.subplots_adjust(left=0.075, right=0.74, top=1 - 0.35 / len(panels) / 4.3, bottom=0.12 / len(panels))
    figure.subplots_adjust(hspace=0.24)
    axes[0, 0].set_title(title, fontweight="bold")
    for (ratio, label), place in zip(panels, axes[:, 0], strict=True):
        _panel(place, theme, [p for p in found if p.ratios[ratio] is not None], ratio, looks(found))
        place.set_xlabel(f"{label} than the uncached run")
        place.set_ylabel("face PSNR, dB")
    return figure


def _panel(axes: Axes, theme: Theme, found: Sequence[Point], ratio: str, rivals: dict[str, Look]) -> None:
    """Rivals as families, ours as points, and the front."""
    at = {id(p): (float(p.ratios[ratio] or 0), p.psnr) for p in found}
    labels = []
    for name, look in rivals.items():
        members = sorted(at[id(p)] for p in found if p.family == name)
        if not members:
            continue
        colour = theme.colours[look.colour]
        axes.plot(*zip(*members, strict=True), color=colour, linestyle=look.dashes, linewidth=1.1, alpha=0.8)
        axes.plot(*zip(*members, strict=True), color=colour, linestyle="", marker=look.marker, markersize=5.5)
        labels.append((*members[-1], name, colour))
    mine, colour = [p for p in found if p.ours], theme.colours[OURS]
    best = front(found, ratio)
    if best:
        axes.plot(*zip(*(at[id(p)] for p in best), strict=True), color=theme.faint, linewidth=5, alpha=0.35, zorder=1)
    if mine:
        axes.plot(*zip(*(at[id(p)] for p in mine), strict=True), color=colour, linestyle="", marker="o", markersize=5)
    axes.margins(x=0.06, y=0.12)
    label_right(axes, labels)
    told = sorted((p for p in mine if p in best or "paper" in p.name), key=lambda p: (p not in best, at[id(p)][0]))
    texts = [p.name if p is told[0] else p.name.removeprefix("ticache").strip() for p in told]
    _label_points(axes, [(*at[id(p)], text) for p, text in zip(told, texts, strict=True)], list(at.values()), colour)


_OFFSETS = ((6, 6), (-6, 6), (6, -8), (-6, -8), (0, 12), (0, -14), (14, 16), (-14, 16), (14, -18), (-14, -18))


def _label_points(
    axes: Axes, labels: Sequence[tuple[float, float, str]], taken: Sequence[tuple[float, float]], colour: str
) -> None:
    """Short texts beside their points, where they cover neither a point nor another text; else left out."""
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    pixels = [axes.transData.transform(point) for point in taken]
    boxes = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in pixels]
    frame = axes.get_window_extent(renderer)
    for x, y, text in labels:
        for dx, dy in _OFFSETS:
            across = "left" if dx > 0 else "right" if dx < 0 else "center"
            note = axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", ha=across, va="center", fontsize=9, color=colour
            )
            box = note.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 10 and frame.y0 <= box.y0 and box.y1 <= frame.y1 + 12
            if inside and not any(box.overlaps(other) for other in boxes):
                boxes.append(box)
                break
            note.remove()


def draw_all(data: dict[str, Any], folder: Path, **options: bool) -> list[Path]:
    """A picture for every model and base that has something to show, none for others. -> the files written

    options: as for `draw`.
    """
    written, shown = [], set()
    for (model, base), rows in groups(data["rows"]).items():
        found = points(rows)
        if found:
            name = slug(model, base)
            shown.add(name)
            written += draw(folder / name, partial(paint, title=f"{model}, {base}", found=found), rows, **options)
    for old in folder.glob("quality_speed-*.svg"):
        if old.stem.rpartition("-")[0] not in shown:
            old.unlink()
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "acceleration.json", metavar="FILE")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: beside FILE")
    parser.add_argument("--preview", action="store_true", help="also write PNGs on the page's background")
    options = parser.parse_args()
    if not options.json.is_file():
        sys.exit(f"{options.json} is absent: python -m benchmarks.acceleration --quick --json {options.json} makes it")
    folder = options.output or options.json.parent
    data = json.loads(options.json.read_text(encoding="utf-8"))
    for path in draw_all(data, folder, preview=options.preview):
        print(path)

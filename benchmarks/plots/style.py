"""How the pictures look: one transparent SVG for light and one for dark pages, labels beside lines instead of legends.

The colours are Okabe and Ito's, told apart with every common colour blindness, lightened for dark pages; markers and
dashes say the same once more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # before pyplot: no window system is needed, and none is asked for

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS = "vermillion"


@dataclass(frozen=True)
class Theme:
    """The colours of one kind of page."""

    name: str
    text: str
    faint: str  # axes, grid, leaders
    colours: dict[str, str]
    background: str  # of the page; only for previews, the picture itself is transparent


LIGHT = Theme(
    "light",
    "#24292f",
    "#8c959f",
    {
        "vermillion": "#d1480d",
        "blue": "#0072b2",
        "sky": "#3a9fd6",
        "green": "#00855f",
        "orange": "#b97a00",
        "purple": "#b0608f",
        "grey": "#6e7781",
    },
    "#ffffff",
)
DARK = Theme(
    "dark",
    "#e6edf3",
    "#7d8590",
    {
        "vermillion": "#ff8a4c",
        "blue": "#5aa9e6",
        "sky": "#8fd0f5",
        "green": "#35c79a",
        "orange": "#e8b33a",
        "purple": "#e09ac4",
        "grey": "#9aa4ae",
    },
    "#0d1117",
)
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Look:
    """How one family of rows is drawn."""

    colour: str
    marker: str = "o"
    dashes: str | tuple[int, tuple[float, ...]] = "-"


# In the order in which families appear; two that share a colour differ in marker and dashes.
LOOKS = tuple(
    Look(colour, marker, dashes)
    for marker, dashes in (("s", "--"), ("^", ":"), ("D", "-."))
    for colour in ("blue", "green", "purple", "orange", "sky", "grey")
)


def digest(rows: Any) -> str:
    """A name for what is drawn, written into the picture: whether it still belongs to its rows can be seen."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def is_drawn(path: Path, rows: Any) -> bool:
    """Do both pictures show these rows?"""
    shown = f"rows {digest(rows)}"
    return all(
        each.is_file() and shown in each.read_text(encoding="utf-8") for each in (_target(path, it) for it in THEMES)
    )


def _target(path: Path, theme: Theme) -> Path:
    return path.with_name(f"{path.name}-{theme.name}.svg")


def draw(
    path: Path, paint: Callable[[Theme], Figure], rows: Any, *, preview: bool = False, only_stale: bool = False
) -> list[Path]:
    """Write PATH-light.svg and PATH-dark.svg; `preview`: a PNG of each on its page beside them. -> the SVG files.

    The same input gives the same bytes with the same version of matplotlib. `rows`: what is drawn, for `digest`.
    only_stale: write nothing where both show these rows already.
    """
    written = []
    if only_stale and is_drawn(path, rows):
        return written
    for theme in THEMES:
        with style(theme):
            figure = paint(theme)
            target = _target(path, theme)
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(
                target,
                transparent=True,
                metadata={"Date": None, "Creator": None, "Description": f"rows {digest(rows)}"},
            )
            if preview:
                figure.savefig(target.with_suffix(".png"), facecolor=theme.background, dpi=110)
            plt.close(figure)
        written.append(target)
    return written


@contextmanager
def style(theme: Theme) -> Iterator[None]:
    """matplotlib's settings for a theme, and as before afterwards."""
    settings: dict[Any, Any] = {
        "svg.hashsalt": "ticache",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.facecolor": "none",
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
        "axes.grid": True,
        "grid.color": theme.faint,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
    }
    with mpl.rc_context(settings):
        yield


def label_right(axes: Axes, labels: Sequence[tuple[float, float, str, str]], *, gap: float = 1.25) -> None:
    """Texts in a column right of the axes, each led to its point. labels: (x, y, text, colour), in data coordinates.

    They keep the order of their points and stand at least `gap` lines apart.
    """
    figure = axes.figure
    figure.canvas.draw()
    box = axes.get_window_extent()
    line = mpl.rcParams["font.size"] * figure.dpi / 72 * gap
    ordered = sorted(labels, key=lambda label: label[1])
    wanted = [float(axes.transData.transform((x, y))[1]) for x, y, _, _ in ordered]
    heights = spread(wanted, line, float(box.y0), float(box.y1))
    for (x, y, text, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.03, (height - box.y0) / box.height),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.45,
                "shrinkA": 1,
                "shrinkB": 5,
            },
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights as near to those wanted as a gap between neighbours allows, within [low, high] if they fit.

    Neighbours that would be too near form a block around the mean of their wishes.
    """
    blocks: list[list[float]] = []  # [sum of (wish - offset in the block), count]
    for wish in wanted:
        blocks.append([wish, 1])
        while len(blocks) > 1 and _start(blocks[-2], gap) + blocks[-2][1] * gap > _start(blocks[-1], gap):
            total, count = blocks.pop()
            blocks[-1][0] += total - count * blocks[-1][1] * gap
            blocks[-1][1] += count
    heights = [_start(block, gap) + k * gap for block in blocks for k in range(int(block[1]))]
    if heights and heights[-1] > high:
        heights = _pushed(heights, gap, high)
    if heights and heights[0] < low:
        heights = [-h for h in _pushed([-h for h in reversed(heights)], gap, -low)][::-1]
    return heights


def _start(block: Sequence[float], gap: float) -> float:
    return block[0] / block[1]


def _pushed(heights: Sequence[float], gap: float, high: float) -> list[float]:
    """The same, none above `high`."""
    pushed = list(heights)
    for index in range(len(pushed) - 1, -1, -1):
        pushed[index] = min(pushed[index], high - (len(pushed) - 1 - index) * gap)
    return pushed

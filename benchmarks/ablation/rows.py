"""Which rows `benchmarks.ablation` has: cache settings, fewer steps instead, and models that are trained otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 30
CONFIGS = Path(__file__).resolve().parent.parent / "configs"

# The tables of the document, each with its title; a row stands in one or more of them.
TABLES = {
    "order": "Order of the highest difference, N=3",
    "interval": "Refresh interval N, order 2",
    "paper": "The paper's Table 5: Eq. 4, uniform schedule",
    "region": "Eq. 4 with and without the region before the boundary G",
    "boundary": "Boundary G, Eq. 4 with the region, N=4",
    "formula": "Forecaster and schedule, N=3, order 2",
    "cut": "Cut, N=3, order 2",
    "losses": "The paper's Table 4: halves of the facial fine-grained loss",
    "landmarks": "The paper's Table 4: what is drawn of the landmarks",
}


@dataclass(frozen=True)
class Recipe:
    """One row. `cache`: options of `ticache.apply`; `steps`: fewer steps instead; `config`: a training config."""

    name: str
    tables: tuple[str, ...]
    cache: dict[str, Any] = field(default_factory=dict)
    steps: int = STEPS
    region: bool = False
    config: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the model of `config` is trained into, relative to the root of the checkout."""
        assert self.config is not None
        return Path("runs/ablation", self.config.stem)

    @property
    def command(self) -> str:
        """What trains the model of `config`."""
        assert self.config is not None
        return f"fye train --config benchmarks/configs/{self.config.name} --output {self.folder}"


def recipes(*, quick: bool) -> list[Recipe]:
    """Every row, each once; `quick` leaves out the cut, the formulas and the boundary at other intervals."""
    merged: dict[str, Recipe] = {}
    for recipe in [UNCACHED, *_fewer_steps(), *_ours(), *_papers(), *([] if quick else _more()), *_trained()]:
        known = merged.get(recipe.name)
        if known is not None:
            tables = tuple(dict.fromkeys((*known.tables, *recipe.tables)))
            recipe = Recipe(**{**vars(recipe), "tables": tables})
        merged[recipe.name] = recipe
    return list(merged.values())


UNCACHED = Recipe("uncached", tuple(TABLES))


def _fewer_steps() -> Iterator[Recipe]:
    """The same calls spent on fewer steps."""
    for steps in (15, 10, 8, 6):
        tables = ("interval", "paper") if steps in (15, 10) else ("interval",)
        yield Recipe(f"DDIM {steps}", tables, steps=steps)


def _ours() -> Iterator[Recipe]:
    """The default recipe: Newton weights, full steps late."""
    for order in (0, 1, 2, 3):
        yield _default(3, order, "order")
    for N in (2, 3, 4, 5, 6):
        yield _default(N, 2, "interval")


def _papers() -> Iterator[Recipe]:
    """Eq. 4 to the letter, at its Table 5's settings and more; the order of (b) and (f) is not printed, 2 is taken."""
    for N, order in ((2, 0), (2, 1), (2, 2), (2, 3), (3, 2)):
        yield _paper(N, order, "paper")
    yield _paper(3, 2, "paper", G=0.72)
    for order in (0, 1, 2, 3):
        yield _paper(3, order, "order")
    for N in (2, 3, 4, 5, 6):
        yield _paper(N, 2, "interval")
    for N in (3, 4):
        yield _paper(N, 2, "region")
        yield _paper(N, 2, "region", G=0.72)
    yield _paper(4, 2, "boundary")
    for G in (0.25, 0.5, 0.72, 1.0):
        yield _paper(4, 2, "boundary", G=G)


def _more() -> Iterator[Recipe]:
    """What only the long form measures."""
    for N in (2, 5):
        yield _paper(N, 2, "region")
        yield _paper(N, 2, "region", G=0.72)
    yield _default(3, 2, "formula")
    yield _paper(3, 2, "formula")
    for name, forecaster, schedule in (
        ("ticache newton uniform", "newton", "uniform"),
        ("ticache taylor late", "taylor", "late"),
        ("chebyshev late", "chebyshev", "late"),
        ("chebyshev uniform", "chebyshev", "uniform"),
        ("reuse late", "reuse", "late"),
        ("reuse uniform", "reuse", "uniform"),
    ):
        options = {"N": 3, "order": 2, "forecaster": forecaster, "schedule": schedule}
        yield Recipe(f"{name} N=3", ("formula",), options)
    yield _default(3, 2, "cut")
    for cut in ("output", "branches"):
        yield Recipe(f"ticache cut={cut} N=3", ("cut",), {"N": 3, "order": 2, "cut": cut})
    options = {"N": 3, "order": 2, "cut": "branches", "resnets": True}
    yield Recipe("ticache cut=branches resnets N=3", ("cut",), options)


def _trained() -> Iterator[Recipe]:
    """Models that the paper's Table 4 compares: one training run each."""
    for table, stems in (
        ("losses", ("no-expression-loss", "no-facial-loss", "no-ffg-loss")),
        ("landmarks", ("landmarks-plain", "landmarks-with-contour", "landmarks-without-pupils")),
    ):
        for stem in stems:
            yield Recipe(stem.replace("-", " "), (table,), config=CONFIGS / f"{stem}.toml")


def _default(N: int, order: int, table: str) -> Recipe:
    return Recipe(f"ticache N={N} order={order}", (table,), {"N": N, "order": order})


def _paper(N: int, order: int, table: str, G: float | None = None) -> Recipe:
    """Without a region the boundary changes nothing: every token is predicted at every step."""
    name, options = f"ticache paper N={N} order={order}", {"preset": "paper", "N": N, "order": order}
    if G is None:
        return Recipe(name, (table,), options)
    return Recipe(f"{name} region G={G:g}", (table,), {**options, "boundary": G}, region=True)

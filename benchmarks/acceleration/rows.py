"""The rows of the acceleration table: every recipe of ours, every rival, and the same time spent on fewer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import ticache
from benchmarks.baselines import Running, packages, schedules
from benchmarks.baselines.sito import sito
from benchmarks.baselines.threshold import threshold_reuse
from ticache.calibration import Calibration
from ticache.forecast import CHEBYSHEV_BLEND, CHEBYSHEV_DEGREE, CHEBYSHEV_RIDGE

Method = Callable[[Any, int], AbstractContextManager[Running]]  # (pipeline, clip) -> the method in place


@dataclass(frozen=True)
class Base:
    """An uncached run that rows are compared with. `name`: "ddim-30", with guidance "ddim-30-g7.5"."""

    sampler: str
    steps: int
    guidance: float = 1.0

    @property
    def name(self) -> str:
        guided = "" if self.guidance == 1 else f"-g{self.guidance:g}"
        return f"{self.sampler}-{self.steps}{guided}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    base: the uncached run that it is compared with. sampler, nfe: what really runs, and for how many steps. settings:
    of the method, in words. quick: part of the short table.
    """

    model: str
    base: Base
    name: str
    sampler: str
    nfe: int
    method: Method
    settings: str = ""
    quick: bool = False

    @property
    def key(self) -> str:
        return f"{self.model} / {self.base.name} / {self.name}"


@dataclass(frozen=True)
class Facts:
    """What rows need to know of a model before they can be written down.

    share: FLOPs of a predicted step with cut="outer", of a full one's. thresholds: by calls wanted, for threshold
    reuse. branch: DeepCache's deepest. regions: of each clip. recorded: what an uncached run of a base, on inputs that
    no row is measured on, tells.
    """

    share: float
    thresholds: dict[int, float]
    branch: int
    regions: list[Any]
    recorded: Callable[[Base], Calibration]


SAMPLER_NAMES = {"ddim": "DDIM", "dpm-solver++": "DPM-Solver++ 2M", "unipc": "UniPC", "euler-a": "Euler ancestral"}
MAIN = Base("ddim", 30)  # where every setting and every rival is measured
# By model, whether each belongs to the short table: where people run, first.
BASES: dict[str, dict[Base, bool]] = {
    "sd-like": {
        Base("ddim", 30, 7.5): True,
        Base("ddim", 30, 3.0): True,
        MAIN: True,
        Base("dpm-solver++", 20, 7.5): True,
        Base("dpm-solver++", 20, 3.0): True,
        Base("dpm-solver++", 20): False,
        Base("euler-a", 30): False,
    },
    "portrait": {
        MAIN: True,
        Base("ddim", 30, 3.5): True,
        Base("dpm-solver++", 20): False,
        Base("euler-a", 30): False,
    },
}


def plain(_pipe: Any, _clip: int) -> AbstractContextManager[Running]:
    """Nothing is put on."""
    return nullcontext(Running())


@contextmanager
def cached(pipe: Any, clip: int, *, regions: list[Any] | None = None, **options: Any) -> Iterator[Running]:
    """`ticache.apply`, with each clip's own region where there are some."""
    region = None if regions is None else regions[clip]
    with ticache.apply(pipe, region=region, **options) as session:
        yield Running(
            full_calls=lambda: session.report().to_dict()["full_calls"],
            bytes_held=lambda: session.report().to_dict()["peak_bytes"],
        )


def fitted(pipe: Any, clip: int, *, recorded: Callable[[], Calibration], N: int) -> AbstractContextManager[Running]:
    """`schedule="auto"`, cached from the first run on."""
    return cached(pipe, clip, N=N, schedule="auto", calibration=recorded())


def rival(context: Callable[..., AbstractContextManager[Running]], **options: Any) -> Method:
    """A rival's context manager as a method."""

    def put_on(pipe: Any, _clip: int) -> AbstractContextManager[Running]:
        return context(pipe, **options)

    return put_on


def rows_of(model: str, facts: Facts) -> Iterator[Row]:
    """Every row of one model."""
    for base, quick in BASES[model].items():
        row = partial(Row, model, base, sampler=base.sampler, nfe=base.steps)
        yield row(name="uncached", method=plain, quick=quick)
        yield from _fewer_steps(row, facts, quick=quick)
        yield from _caches(row, facts, quick=quick)
        yield from _other_methods(row, facts, portrait=model == "portrait")
        yield from _ours(row, facts, portrait=model == "portrait")


def _base_of(row: Any) -> Base:
    return row.args[1]


def _fewer_steps(row: Any, facts: Facts, *, quick: bool) -> Iterator[Row]:
    """The same calls, and the same FLOPs, spent on fewer steps of each solver."""
    base = _base_of(row)
    own = base.sampler == "euler-a"  # the others make another picture of the same noise
    for solver in ("euler-a",) if own else ("ddim", "dpm-solver++", "unipc"):
        for N in (2, 3, 5):
            nfe = math.ceil(base.steps / N)
            yield row(
                name=f"{SAMPLER_NAMES[solver]} {nfe}", sampler=solver, nfe=nfe, method=plain, quick=quick and N > 2
            )
        for N in (3, 5):
            full = math.ceil(base.steps / N)
            nfe = math.ceil(full + (base.steps - full) * facts.share)
            yield row(
                name=f"{SAMPLER_NAMES[solver]} {nfe} (equal FLOPs, N={N})",
                sampler=solver,
                nfe=nfe,
                method=plain,
                settings=f'as many steps as {full} full and {base.steps - full} predicted at "outer" buy, rounded up',
                quick=quick,
            )


def _caches(row: Any, facts: Facts, *, quick: bool) -> Iterator[Row]:
    """On every base: DeepCache, and ours in its recipes for people."""
    for N in (3, 5):
        yield row(name=f"DeepCache N={N} branch 0", method=rival(packages.deepcache, interval=N, branch=0), quick=quick)
        yield row(name=f"ticache N={N}", method=partial(cached, N=N), quick=quick)
        recorded = partial(facts.recorded, _base_of(row))
        yield row(name=f"ticache auto N={N}", method=partial(fitted, recorded=recorded, N=N), quick=quick)
        yield row(name=f"ticache late N={N}", method=partial(cached, N=N, schedule="late"), quick=quick)
        yield row(name=f"ticache paper N={N}", method=partial(cached, N=N, preset="paper"), quick=quick)


def _other_methods(row: Any, facts: Facts, *, portrait: bool) -> Iterator[Row]:
    """Rivals; on other bases than the main one only those that cache."""
    base = _base_of(row)
    main = base == MAIN
    if main:
        yield row(name="DeepCache N=2 branch 0", method=rival(packages.deepcache, interval=2, branch=0))
    for N in (2, 3, 5) if main else (3,):
        method = rival(packages.deepcache, interval=N, branch=facts.branch)
        yield row(name=f"DeepCache N={N} branch {facts.branch}", method=method, quick=main and N == 3)
    yield from _forecasts(row, main=main, portrait=portrait)
    if not main:
        return
    for ratio in (0.5,):
        yield row(name=f"tomesd {ratio}", method=rival(packages.tomesd, ratio=ratio), quick=True)
        settings = (
            f"ratio {ratio} around self-attention at the largest resolution, patches of 2 x 2, no noise on scores"
        )
        yield row(name=f"SiTo {ratio}", method=rival(sito, ratio=ratio), settings=settings, quick=True)
    yield row(name="T-GATE", method=rival(packages.tgate), quick=portrait)
    for calls, threshold in facts.thresholds.items():
        yield row(
            name=f"threshold reuse, about {calls} calls",
            method=rival(threshold_reuse, threshold=threshold, num_steps=base.steps),
            settings=f"EasyCache's rule, threshold {threshold:.4g}, between 15 and 95 % of the run",
            quick=calls == 10,
        )


def _forecasts(row: Any, *, main: bool, portrait: bool) -> Iterator[Row]:
    """Others' forecasting rules, computed from the same features as ours."""
    steps = _base_of(row).steps
    words = f"degree {CHEBYSHEV_DEGREE}, ridge {CHEBYSHEV_RIDGE}, blend {CHEBYSHEV_BLEND} with a line"
    windows: list[tuple[str, dict[str, Any], bool]] = [("published windows", {}, False)]
    if main:
        windows.append(("10 calls", {"warmup": 4}, True))
        windows.append(("6 calls", {"warmup": 2, "window": 4.0, "growth": 2.0}, False))
    for label, options, shown in windows:
        full = schedules.spectrum_steps(steps, **options)
        method = partial(cached, forecaster="chebyshev", cut="output", schedule=full)
        settings = f"{words}; full steps {full}"
        yield row(name=f"Spectrum forecaster, {label}", method=method, settings=settings, quick=shown)
    for interval in (4, 9) if main else (4,):
        full = schedules.taylorseer_steps(steps, interval=interval)
        yield row(
            name=f"TaylorSeer maths, {len(full)} calls",
            method=partial(cached, forecaster="taylor", order=1, schedule=full),
            settings=f"first order, warm-up 3, interval {interval}: full steps {full}",
            quick=main and portrait and interval == 4,
        )
    for N in (3, 5) if main else (3,):
        for cut in ("outer", "output"):
            method = partial(cached, N=N, cut=cut, forecaster="reuse", schedule="uniform")
            yield row(
                name=f"plain reuse {cut} N={N}", method=method, quick=main and portrait and N == 3 and cut == "outer"
            )


def _ours(row: Any, facts: Facts, *, portrait: bool) -> Iterator[Row]:
    """`ticache`, one setting of the default changed at a time."""
    main = _base_of(row) == MAIN

    def recipe(name: str, shown: bool = False, **options: Any) -> Row:
        return row(name=f"ticache {name}", method=partial(cached, **options), quick=main and shown)

    for N in (2, 4, 6) if main else (2,):
        yield recipe(f"N={N}", N=N)
    for N in (3, 5) if main else (3,):
        for order in (0, 1, 3):
            yield recipe(f"order={order} N={N}", N=N, order=order)
        for cut in ("output", "branches"):
            yield recipe(f"{cut} N={N}", cut == "output" and N == 3, N=N, cut=cut)
        yield recipe(f"branches resnets N={N}", N=N, cut="branches", resnets=True)
        yield recipe(f"uniform N={N}", portrait and N == 3, N=N, schedule="uniform")
        yield recipe(f"taylor N={N}", N=N, forecaster="taylor")
        yield recipe(f"chebyshev N={N}", N=N, forecaster="chebyshev")
        for axis in ("timestep", "logsnr"):
            yield recipe(f"axis={axis} N={N}", N=N, axis=axis)
        yield recipe(f"depth=1 N={N}", N=N, depth=1)
        yield recipe(f"paper region N={N}", portrait and N == 3, N=N, preset="paper", regions=facts.regions)
    if main:
        for cut in ("output", "outer"):
            for order in (1, 3):
                yield recipe(f"{cut} uniform order={order} N=3", N=3, cut=cut, order=order, schedule="uniform")
        for N in (2, 4, 6):
            yield recipe(f"output N={N}", N=N, cut="output")

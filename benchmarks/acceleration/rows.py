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
from ticache.forecast import CHEBYSHEV_BLEND, CHEBYSHEV_DEGREE, CHEBYSHEV_RIDGE

Method = Callable[[Any, int], AbstractContextManager[Running]]  # (pipeline, clip) -> the method in place


@dataclass(frozen=True)
class Row:
    """One line of the table.

    base: the uncached run that it is compared with, such as "ddim-30"; steps: the base's. sampler, nfe: what really
    runs, and for how many steps. settings: of the method, in words. quick: part of the short table.
    """

    model: str
    base: str
    name: str
    steps: int
    sampler: str
    nfe: int
    method: Method
    settings: str = ""
    quick: bool = False

    @property
    def key(self) -> str:
        return f"{self.model} / {self.base} / {self.name}"


@dataclass(frozen=True)
class Facts:
    """What rows need to know of a model before they can be written down.

    share: FLOPs of a predicted step with cut="outer", of a full one's. thresholds: by calls wanted, for threshold
    reuse. branch: DeepCache's deepest. regions: of each clip.
    """

    share: float
    thresholds: dict[int, float]
    branch: int
    regions: list[Any]


SAMPLER_NAMES = {"ddim": "DDIM", "dpm-solver++": "DPM-Solver++ 2M", "unipc": "UniPC", "euler-a": "Euler ancestral"}
BASES = (("ddim", 30), ("dpm-solver++", 20), ("euler-a", 30))


def base_name(sampler: str, steps: int) -> str:
    return f"{sampler}-{steps}"


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


def rival(context: Callable[..., AbstractContextManager[Running]], **options: Any) -> Method:
    """A rival's context manager as a method."""

    def put_on(pipe: Any, _clip: int) -> AbstractContextManager[Running]:
        return context(pipe, **options)

    return put_on


def rows_of(model: str, facts: Facts) -> Iterator[Row]:
    """Every row of one model."""
    for sampler, steps in BASES:
        row = partial(Row, model, base_name(sampler, steps), steps=steps, sampler=sampler, nfe=steps)
        main, portrait = (sampler, steps) == BASES[0], model == "portrait"
        quick = main or (portrait and sampler == BASES[1][0])
        yield row(name="uncached", method=plain, quick=quick)
        yield from _fewer_steps(row, facts, main=main, quick=quick, portrait=portrait)
        yield from _rivals(row, facts, main=main, portrait=portrait)
        yield from _ours(row, facts, main=main, quick=quick, portrait=portrait)


def _fewer_steps(row: Any, facts: Facts, *, main: bool, quick: bool, portrait: bool) -> Iterator[Row]:
    """The same calls, and the same FLOPs, spent on fewer steps of each solver."""
    sampler, steps = row.keywords["sampler"], row.keywords["steps"]
    if not main:
        for N in (2, 3) if sampler != "euler-a" else (3,):
            nfe = math.ceil(steps / N)
            yield row(name=f"{SAMPLER_NAMES[sampler]} {nfe}", nfe=nfe, method=plain, quick=quick and N == 3)
        return
    for solver, counts in (("ddim", (15, 10, 6)), ("dpm-solver++", (15, 10, 8, 6)), ("unipc", (15, 10, 8, 6))):
        for nfe in counts:
            yield row(name=f"{SAMPLER_NAMES[solver]} {nfe}", sampler=solver, nfe=nfe, method=plain, quick=nfe == 10)
        for N in (3, 5):
            full = math.ceil(steps / N)
            nfe = math.ceil(full + (steps - full) * facts.share)
            yield row(
                name=f"{SAMPLER_NAMES[solver]} {nfe} (equal FLOPs, N={N})",
                sampler=solver,
                nfe=nfe,
                method=plain,
                settings=f'as many steps, rounded up, as {full} full steps and {steps - full} predicted at "outer" buy',
                quick=N == 3 and (portrait or solver == "dpm-solver++"),
            )


def _rivals(row: Any, facts: Facts, *, main: bool, portrait: bool) -> Iterator[Row]:
    """Other methods; on the second and third sampler only those that cache."""
    steps = row.keywords["steps"]
    for N in (2, 3, 5) if main else (3,):
        for label, branch in (("branch 0", 0), (f"branch {facts.branch}", facts.branch)):
            quick = main and (N == 3 or (N == 5 and branch == 0 and not portrait))
            method = rival(packages.deepcache, interval=N, branch=branch)
            yield row(name=f"DeepCache N={N} {label}", method=method, quick=quick)
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
            method=rival(threshold_reuse, threshold=threshold, num_steps=steps),
            settings=f"EasyCache's rule, threshold {threshold:.4g}, between 15 and 95 % of the run",
            quick=calls == 10,
        )


def _forecasts(row: Any, *, main: bool, portrait: bool) -> Iterator[Row]:
    """Others' forecasting rules, computed from the same features as ours."""
    steps = row.keywords["steps"]
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


def _ours(row: Any, facts: Facts, *, main: bool, quick: bool, portrait: bool) -> Iterator[Row]:
    """`ticache`: the default at each N, then one setting changed at a time."""

    def recipe(name: str, shown: bool = False, **options: Any) -> Row:
        return row(name=f"ticache {name}", method=partial(cached, **options), quick=quick and shown)

    intervals = (2, 3, 4, 5, 6) if main else (2, 3)
    for N in intervals:
        yield recipe(f"N={N}", N == 3 or (main and N == 5), N=N)
    for N in (3, 5) if main else (3,):
        for order in (0, 1, 3):
            yield recipe(f"order={order} N={N}", N=N, order=order)
        for cut in ("output", "branches"):
            shown = main and cut == "output" and N == 3
            yield recipe(f"{cut} N={N}", shown, N=N, cut=cut)
        yield recipe(f"branches resnets N={N}", N=N, cut="branches", resnets=True)
        yield recipe(f"uniform N={N}", main and portrait and N == 3, N=N, schedule="uniform")
        yield recipe(f"taylor N={N}", N=N, forecaster="taylor")
        yield recipe(f"chebyshev N={N}", N=N, forecaster="chebyshev")
        for axis in ("timestep", "logsnr"):
            yield recipe(f"axis={axis} N={N}", N=N, axis=axis)
        yield recipe(f"depth=1 N={N}", N=N, depth=1)
        yield recipe(f"paper N={N}", main and portrait and N == 3, N=N, preset="paper")
        yield recipe(f"paper region N={N}", main and portrait and N == 3, N=N, preset="paper", regions=facts.regions)
    if main:
        for cut in ("output", "outer"):
            for order in (1, 3):
                yield recipe(f"{cut} uniform order={order} N=3", N=3, cut=cut, order=order, schedule="uniform")
        for N in (2, 4, 6):
            yield recipe(f"output N={N}", N=N, cut="output")

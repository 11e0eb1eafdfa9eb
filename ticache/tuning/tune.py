"""`tune`: the fewest full steps that keep the fidelity you ask for, or the best fidelity at a number of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ticache.api import find_unet, remove
from ticache.config import CacheConfig
from ticache.provenance import Provenance, model_identity, scheduler_identity, versions
from ticache.tuning.local_search import Choices, GoalSearch
from ticache.tuning.metrics import Metric, psnr
from ticache.tuning.trials import (
    Budget,
    CallArguments,
    CallRunner,
    CallSet,
    Candidate,
    OnProgress,
    Progress,
    TrialLog,
    Trials,
    UncachedRuns,
    digest_of,
    metric_of,
    quiet,
    settings_of,
    shown_to,
)

logger = logging.getLogger("ticache")

TRIALS = 40  # where neither trials nor minutes is given


def tune(
    target: Any,
    *,
    calls: Sequence[CallArguments],
    target_psnr: float | None = None,
    full_steps: int | None = None,
    run: Callable[..., Any] | None = None,
    check: Sequence[CallArguments] | None = None,
    scheduler: Any = None,
    num_steps: int | None = None,
    region: Any = None,
    metric: Metric = psnr,
    orders: Sequence[int] = (2, 3, 1),
    cuts: Sequence[str] = ("outer", "output"),
    forecasters: Sequence[str] = ("newton",),
    base: CacheConfig | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: bool | OnProgress = True,
) -> CacheConfig:
    """Find, on your own model and calls, which steps to run in full; the config carries its figures and provenance.

    Exactly one of:
    target_psnr: the fewest full steps whose mean fidelity over the calibration calls reaches it (in the metric's unit).
    full_steps: the best fidelity at that many full steps.

    target: a diffusers pipeline with a UNet, or the UNet itself together with
    run: what makes one call, given its arguments, and returns latents, pictures or a pipeline's output; by default the
        pipeline itself. scheduler, num_steps: as for `apply`, for a bare UNet.
    calls: arguments by name, one mapping a call; four to eight that are like what you will run. Half of them, drawn by
        `seed`, calibrate; the others are never seen by the search and give the check. Generators among the arguments
        are wound back after every run; a call without one has the noise of `seed`.
    check: calls for the check instead; then all `calls` calibrate.
    region: where fidelity counts: a mask as for `apply`, or a list with one (or None) for each call, then each of
        `check`.
    metric: `metric(result, uncached)`, more is better, on float tensors [..., C, H, W]; with a region it is the third
        argument. Pixels are in [0, 1]. PSNR against peak 1 by default.
    orders, cuts, forecasters: what may be chosen beside the steps; the search begins with the first of each.
    base: every other setting (axis, dtype, noise_order, ...).
    trials, minutes: the bound, 40 trials if none is given; uncached runs and the check come on top. The uncached runs
        are recorded, and the search begins at what the recording says is best; trials=0 with full_steps returns that.
    journal: a file in which every trial is kept; the same search goes on from it.
    progress: a line on a terminal, or a callable that gets a `ticache.tuning.trials.Progress`.

    Ctrl-C ends the search and returns the best so far, unchecked. The same seed gives the same config. The result
    leaves nothing applied. ValueError or TypeError for arguments that cannot be.
    """
    check_bounds(target_psnr, full_steps, trials, minutes)
    choices = Choices(tuple(orders), tuple(cuts), tuple(forecasters))
    tuning = Tuning(target, calls, run, check, scheduler, num_steps, region, metric, base, seed, journal, progress)
    return tuning.find(target_psnr=target_psnr, full_steps=full_steps, choices=choices, trials=trials, minutes=minutes)


@dataclass
class Tuning:
    """Calls, their uncached runs and what was measured: several searches share them. Arguments as for `tune`."""

    target: Any
    calls: Sequence[CallArguments]
    run: Callable[..., Any] | None = None
    check: Sequence[CallArguments] | None = None
    scheduler: Any = None
    num_steps: int | None = None
    region: Any = None
    metric: Metric = psnr
    base: CacheConfig | None = None
    seed: int = 0
    journal: str | Path | None = None
    progress: bool | OnProgress = True

    def __post_init__(self) -> None:
        self._pipe, _, self._unet = find_unet(self.target)
        run = self.run
        if run is None:
            if self._pipe is None or not callable(self.target):
                raise ValueError(
                    "run= is needed for a bare UNet: a function that makes one call and returns its result"
                )
            run = self.target
        self._given = CallSet(self.calls, self.check, self.region, self.seed)
        options = {"scheduler": self.scheduler, "num_steps": self.num_steps}
        if self.scheduler is None:
            self.scheduler = getattr(self._pipe, "scheduler", None)
        self._base = (self.base or CacheConfig()).replaced(provenance=None)
        self._log = TrialLog(None if self.journal is None else Path(self.journal), self._problem())
        self._run = CallRunner(self.target, run, self._given.calls, self._base, self.seed, self._unet, options)
        self._uncached = UncachedRuns(self._run)

    def find(
        self,
        *,
        target_psnr: float | None = None,
        full_steps: int | None = None,
        choices: Choices | None = None,
        trials: int | None = None,
        minutes: float | None = None,
        hints: Iterable[Sequence[int]] = (),
    ) -> CacheConfig:
        """One search; arguments as for `tune`. hints: full steps worth a trial before others."""
        choices = choices or Choices()
        _check_choices(choices)
        given = self._given
        remove(self.target)
        with shown_to(self.progress) as on_progress, quiet(self._pipe):
            self._run.cut = choices.cuts[0]
            self._uncached.on_run = lambda done: on_progress(Progress("uncached", done, len(given.calls)))
            first = self._uncached[given.calibration[0]]  # the first uncached run tells T
            if trials == 0:
                found = self._recorded(full_steps or 1, choices)
                if found is None:
                    raise ValueError("the uncached runs could not be recorded: allow at least one trial")
                return settings_of(found[0], self._run.num_steps, self._base)
            seen = Trials(
                run=self._run,
                uncached=self._uncached,
                calibration=given.calibration,
                check=given.check,
                metric=metric_of(self.metric, given.regions),
                log=self._log,
                budget=Budget(TRIALS if trials is None and minutes is None else trials, minutes),
                on_progress=on_progress,
            )
            search = GoalSearch(
                seen, choices, self.seed, target_psnr, full_steps, hints, partial(self._recorded, choices=choices)
            )
            search.run()
            figures = search.figures()
        provenance = Provenance(
            model=model_identity(self._unet),
            scheduler=scheduler_identity(self.scheduler),
            num_steps=search.num_steps,
            size=list(first.shape),
            metric=_name(self.metric),
            region=self.region is not None,
            goal={"full_steps": full_steps} if target_psnr is None else {"target_psnr": target_psnr},
            figures=figures,
            trials=seen.budget.made,
            seed=self.seed,
            notes=search.notes,
            versions=versions(),
        )
        for note in search.notes:
            logger.warning("tune: %s", note)
        return settings_of(search.best, search.num_steps, self._base).replaced(provenance=provenance)

    def _recorded(self, full_steps: int, choices: Choices) -> tuple[Candidate, float] | None:
        """What recordings of the uncached calibration calls say is best, and its error; None if they tell nothing."""
        for index in self._given.calibration:
            self._uncached[index]
        orders = [order for order in choices.orders if 1 <= order <= 3]
        forecasters = [name for name in choices.forecasters if name in ("newton", "taylor")]
        choice = self._run.best(full_steps, orders, forecasters) if orders and forecasters else None
        if choice is None or len(choice.steps) != full_steps:
            return None
        return Candidate(choice.steps, choice.order, choices.cuts[0], choice.forecaster), choice.error

    def _problem(self) -> str:
        """A name for everything that a measured figure depends on."""
        given = self._given
        return digest_of(
            {
                "model": model_identity(self._unet),
                "scheduler": scheduler_identity(self.scheduler),
                "calls": [dict(call) for call in given.calls],
                "regions": given.regions,
                "split": [given.calibration, given.check],
                "metric": _name(self.metric),
                "base": self._base.to_json(),
                "noise": self.seed,
            }
        )


def check_bounds(target: float | None, full_steps: int | None, trials: int | None, minutes: float | None) -> None:
    if (target is None) == (full_steps is None):
        raise ValueError("pass one of target_psnr and full_steps")
    if full_steps is not None and (isinstance(full_steps, bool) or not isinstance(full_steps, int) or full_steps < 1):
        raise ValueError(f"full_steps must be an int >= 1, got {full_steps!r}")
    if target is not None and not math.isfinite(target):
        raise ValueError(f"target_psnr must be finite, got {target}")
    if trials is not None and (isinstance(trials, bool) or not isinstance(trials, int) or trials < 0):
        raise ValueError(f"trials must be an int >= 0, got {trials!r}")
    if trials == 0 and full_steps is None:
        raise ValueError("trials=0 goes with full_steps: without a trial no fidelity is known")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes}")


def _check_choices(choices: Choices) -> None:
    """Every setting that may come up must be one; ValueError from `CacheConfig` otherwise."""
    for name, values in (("orders", choices.orders), ("cuts", choices.cuts), ("forecasters", choices.forecasters)):
        if not values:
            raise ValueError(f"{name} must name at least one")
        for value in values:
            CacheConfig().replaced(**{name[:-1]: value})


def _name(metric: Metric) -> str:
    return "psnr" if metric is psnr else str(getattr(metric, "__qualname__", type(metric).__qualname__))

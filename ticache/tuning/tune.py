"""`tune`: the fewest full steps that keep the fidelity you ask for, or the best fidelity at a number of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ticache.api import remove
from ticache.config import CacheConfig
from ticache.provenance import Provenance, model_identity, scheduler_identity, versions
from ticache.tuning.local_search import GoalSearch
from ticache.tuning.metrics import Metric, psnr
from ticache.tuning.trials import CallArguments, Choices, OnProgress, Trials, Tuning, quiet, settings_of, shown_to

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
    return find_config(tuning, choices, target_psnr=target_psnr, full_steps=full_steps, trials=trials, minutes=minutes)


def find_config(
    tuning: Tuning,
    choices: Choices,
    *,
    target_psnr: float | None = None,
    full_steps: int | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    hints: Iterable[Sequence[int]] = (),
) -> CacheConfig:
    """One search; arguments as for `tune`. hints: full steps worth a trial before others."""
    remove(tuning.target)
    with shown_to(tuning.progress) as tuning.on_progress, quiet(tuning.pipe):
        tuning.cut = choices.cuts[0]
        first = tuning.uncached(tuning.calibration[0])  # the first uncached run tells T
        if trials == 0:
            found = tuning.recorded(full_steps or 1, choices)
            if found is None:
                raise ValueError("the uncached runs could not be recorded: allow at least one trial")
            return settings_of(found[0], tuning.run_steps, tuning.settings)
        tried = Trials(tuning, TRIALS if trials is None and minutes is None else trials, minutes)
        search = GoalSearch(tried, choices, target_psnr, full_steps, hints)
        search.run()
        figures = search.figures()
    provenance = Provenance(
        model=model_identity(tuning.unet),
        scheduler=scheduler_identity(tuning.scheduler),
        num_steps=tuning.run_steps,
        size=list(first.shape),
        metric=tuning.metric_name,
        region=tuning.region is not None,
        goal={"full_steps": full_steps} if target_psnr is None else {"target_psnr": target_psnr},
        figures=figures,
        trials=tried.made,
        seed=tuning.seed,
        notes=search.notes,
        versions=versions(),
    )
    for note in search.notes:
        logger.warning("tune: %s", note)
    return settings_of(search.best, tuning.run_steps, tuning.settings).replaced(provenance=provenance)


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

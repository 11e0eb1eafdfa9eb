"""`tune`: the fewest full steps that keep the fidelity you ask for, or the best fidelity at a number of them."""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticache.api import apply, find_unet, remove
from ticache.config import CacheConfig
from ticache.fidelity import Metric, as_tensor, mean, psnr
from ticache.provenance import Provenance, model_identity, scheduler_identity, versions
from ticache.search import Candidate, Choices, Climb, Exhausted, fewest_late, resampled
from ticache.trials import Bound, Call, Journal, Outcome, Progress, References, Trials, digest_of, metric_of, same_noise

logger = logging.getLogger("ticache")

TRIALS = 40  # where neither trials nor minutes is given
OnProgress = Callable[[Progress], None]


def tune(
    target: Any,
    *,
    calls: Sequence[Call],
    target_psnr: float | None = None,
    full_steps: int | None = None,
    run: Callable[..., Any] | None = None,
    check: Sequence[Call] | None = None,
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
    trials, minutes: the bound, 40 trials if none is given; uncached runs and the check come on top.
    journal: a file in which every trial is kept; the same search goes on from it.
    progress: a line on a terminal, or a callable that gets a `ticache.trials.Progress`.

    Ctrl-C ends the search and returns the best so far, unchecked. The same seed gives the same config. The result
    leaves nothing applied. ValueError or TypeError for arguments that cannot be.
    """
    _check_goal(target_psnr, full_steps, trials, minutes)
    pipe, _, unet = find_unet(target)
    if run is None:
        if pipe is None or not callable(target):
            raise ValueError("run= is needed for a bare UNet: a function that makes one call and returns its result")
        run = target
    given = _Calls(calls, check, region, seed)
    scheduler_used = scheduler if scheduler is not None else getattr(pipe, "scheduler", None)
    choices = Choices(tuple(orders), tuple(cuts), tuple(forecasters))
    _check_choices(choices)
    base = base or CacheConfig()
    problem = digest_of(
        {
            "model": model_identity(unet),
            "scheduler": scheduler_identity(scheduler_used),
            "calls": [{**call} for call in given.calls],
            "regions": given.regions,
            "split": [given.calibration, given.check],
            "metric": _name(metric),
            "base": base.replaced(provenance=None).to_json(),
            "noise": seed,
        }
    )
    remove(target)
    maker = _Maker(target, run, given.calls, base, seed, unet, {"scheduler": scheduler, "num_steps": num_steps})
    with _shown(progress) as on_progress, _quiet(pipe):
        seen = Trials(
            run=maker,
            references=References(maker, lambda done: on_progress(Progress("uncached", done, len(given.calls)))),
            calibration=given.calibration,
            check=given.check,
            metric=metric_of(metric, given.regions),
            journal=Journal(None if journal is None else Path(journal), problem),
            bound=Bound(TRIALS if trials is None and minutes is None else trials, minutes),
            on_progress=on_progress,
        )
        result = seen.references[given.calibration[0]]  # the first uncached run tells T
        search = _Search(seen, choices, seed, target_psnr, full_steps)
        search.run()
        figures = search.figures()
    provenance = Provenance(
        model=model_identity(unet),
        scheduler=scheduler_identity(scheduler_used),
        num_steps=search.num_steps,
        size=list(result.shape),
        metric=_name(metric),
        region=region is not None,
        goal={"full_steps": full_steps} if target_psnr is None else {"target_psnr": target_psnr},
        figures=figures,
        trials=seen.bound.made,
        seed=seed,
        notes=search.notes,
        versions=versions(),
    )
    for note in search.notes:
        logger.warning("tune: %s", note)
    return settings_of(search.best, search.num_steps, base).replaced(provenance=provenance)


def settings_of(candidate: Candidate, num_steps: int, base: CacheConfig) -> CacheConfig:
    """A candidate as settings; N is the mean refresh interval."""
    return base.replaced(
        N=max(1, round(num_steps / len(candidate.steps))),
        steps=candidate.steps,
        order=candidate.order,
        cut=candidate.cut,
        forecaster=candidate.forecaster,
    )


class _Calls:
    """The calls, those of the check last or drawn from them, and the region of each."""

    def __init__(self, calls: Sequence[Call], check: Sequence[Call] | None, region: Any, seed: int):
        if not calls or not all(isinstance(call, Mapping) for call in [*calls, *(check or ())]):
            raise ValueError("calls must be a list of mappings, each the arguments of one call by name")
        self.calls: list[Call] = [*calls, *(check or ())]
        order = list(range(len(calls)))
        if check is None:
            random.Random(seed).shuffle(order)
            half = -(-len(calls) // 2)
            self.calibration, self.check = sorted(order[:half]), sorted(order[half:])
        else:
            self.calibration, self.check = order, list(range(len(calls), len(self.calls)))
        if isinstance(region, list | tuple):
            if len(region) != len(self.calls):
                raise ValueError(
                    f"region must be one mask or one for each of {len(self.calls)} calls, got {len(region)}"
                )
            masks = list(region)
        else:
            masks = [region] * len(self.calls)
        self.regions: list[Tensor | None] = [None if mask is None else torch.as_tensor(mask) for mask in masks]


class _Maker:
    """Makes one call, cached or not, always with the same noise."""

    def __init__(
        self,
        target: Any,
        run: Callable[..., Any],
        calls: Sequence[Call],
        base: CacheConfig,
        seed: int,
        unet: nn.Module,
        options: dict[str, Any],
    ):
        self._target, self._run, self._calls, self._base = target, run, calls, base
        self._seed, self._options = seed, options
        parameter = next(unet.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self.num_steps = 0

    def __call__(self, index: int, candidate: Candidate | None) -> Outcome:
        call = self._calls[index]
        # With every step full the hooks only count, and the result is the uncached one to the last bit.
        config = CacheConfig(N=1, schedule="uniform")
        if candidate is not None:
            config = settings_of(candidate, max(self.num_steps, len(candidate.steps)), self._base)
        with (
            apply(self._target, config, **self._options) as session,
            same_noise(call, self._seed + index, self._device),
        ):
            result = as_tensor(self._run(**call))
            report = session.report().to_dict()
        taken = [len(stream["full"]) + len(stream["predicted"]) for stream in report["streams"]]
        if not taken:
            raise ValueError("run made no call of the UNet that could be told to belong to a denoising loop")
        self.num_steps = max(taken)
        return Outcome(result, self.num_steps, report["flops_ratio"])


class _Search:
    """One tuning: climbs at one number of full steps or at several, until done, bounded or interrupted."""

    def __init__(self, trials: Trials, choices: Choices, seed: int, target: float | None, full_steps: int | None):
        assert trials.references.num_steps is not None
        self.num_steps: int = trials.references.num_steps
        if full_steps is not None and full_steps > self.num_steps:
            raise ValueError(f"full_steps must be at most the run's {self.num_steps} steps, got {full_steps}")
        self.notes: list[str] = []
        self._trials, self._choices, self._seed = trials, choices, seed
        self._target, self._full_steps = target, full_steps
        self._climbs: dict[int, Climb] = {}
        self._interrupted = False

    def run(self) -> None:
        """Search. Ctrl-C ends it; before the first trial there is nothing to return, so it goes on to the caller."""
        try:
            if self._full_steps is not None:
                self._climb(self._full_steps).run()
            else:
                self._find_fewest()
        except Exhausted:
            self.notes.append(f"the bound was reached after {self._trials.bound.made} trials")
        except KeyboardInterrupt:
            self._interrupted = True
        if all(math.isinf(climb.value) for climb in self._climbs.values()):
            if self._interrupted:
                raise KeyboardInterrupt
            raise ValueError("no trial was made: allow at least one in trials= or more minutes=")

    @property
    def best(self) -> Candidate:
        """The fewest full steps that reach the target; where none does (or none is set), the best fidelity."""
        tried = {count: climb for count, climb in self._climbs.items() if not math.isinf(climb.value)}
        if self._target is not None:
            reached = [count for count, climb in tried.items() if climb.value >= self._target]
            if reached:
                return tried[min(reached)].best
            if not self._interrupted:
                return self._choices.start(tuple(range(self.num_steps)))
        return max(tried.values(), key=lambda climb: climb.value).best

    def figures(self) -> dict[str, Any]:
        """Figures of the best, of the late schedule and of one full step fewer; notes what falls short."""
        best = self.best
        count = len(best.steps)
        late = Climb(count, self.num_steps, self._trials, self._choices).best
        rows = {"tuned": best, "late": late}
        fewer = self._climbs.get(count - 1)
        if self._target is not None and fewer is not None and not math.isinf(fewer.value):
            rows["fewer"] = fewer.best
        figures: dict[str, Any] = {name: {"calibration": None, "check": None} for name in rows}
        flops_ratio = None
        try:
            for name, candidate in rows.items():
                score = self._trials.calibrated(candidate)
                figures[name]["calibration"] = round(mean(score.values), 3)
                if name == "tuned":
                    flops_ratio = score.flops_ratio
                if self._trials.check and not self._interrupted:
                    figures[name]["check"] = round(mean(self._trials.checked(candidate).values), 3)
        except KeyboardInterrupt:
            self._interrupted = True
        self._note(figures["tuned"])
        return {
            **figures,
            "full_steps": count,
            "flops_ratio": None if flops_ratio is None else round(flops_ratio, 3),
            "calibration_calls": len(self._trials.calibration),
            "check_calls": len(self._trials.check),
        }

    def _note(self, tuned: dict[str, Any]) -> None:
        if self._interrupted:
            self.notes.append("interrupted: this is the best so far")
        if tuned["check"] is None:
            self.notes.append("not checked on calls that the search did not see")
        elif self._target is not None and tuned["check"] < self._target:
            short = self._target - tuned["check"]
            self.notes.append(f"the check falls {short:.2f} short of the target {self._target:g}")

    def _climb(self, count: int) -> Climb:
        if count not in self._climbs:
            self._climbs[count] = Climb(count, self.num_steps, self._trials, self._choices, seed=self._seed)
        return self._climbs[count]

    def _find_fewest(self) -> None:
        """Bisect on the late schedule, then tune below while that reaches the target; what is left polishes."""
        target, bound = self._target, self._trials.bound
        assert target is not None
        count = fewest_late(self.num_steps, lambda count: self._climb(count).start() >= target)
        if count == self.num_steps:
            self._climb(count).start()
        while count > 1:
            left = math.inf if bound.trials is None else max(3, (bound.trials - bound.made) * 2 // 3)
            hint = resampled(self._climb(count).best.steps, count - 1, self.num_steps)
            if not self._climb(count - 1).run(goal=target, limit=left, hints=[hint]):
                break
            count -= 1
        below = self._climbs.get(count - 1)
        self._climb(count).run(hints=[resampled(below.best.steps, count, self.num_steps)] if below else [])


def _check_goal(target: float | None, full_steps: int | None, trials: int | None, minutes: float | None) -> None:
    if (target is None) == (full_steps is None):
        raise ValueError("pass one of target_psnr and full_steps")
    if full_steps is not None and (isinstance(full_steps, bool) or not isinstance(full_steps, int) or full_steps < 1):
        raise ValueError(f"full_steps must be an int >= 1, got {full_steps!r}")
    if target is not None and not math.isfinite(target):
        raise ValueError(f"target_psnr must be finite, got {target}")
    if trials is not None and (isinstance(trials, bool) or not isinstance(trials, int) or trials < 1):
        raise ValueError(f"trials must be an int >= 1, got {trials!r}")
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


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """No bars of the pipeline's own between ours."""
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**(before | {"disable": True}))
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


@contextmanager
def _shown(progress: bool | OnProgress) -> Iterator[OnProgress]:
    """Who is told how far the search has come: nobody, a callable, or a line on a terminal."""
    if callable(progress):
        yield progress
        return
    shown = progress and sys.stderr.isatty()

    def line(at: Progress) -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[K{described(at)}")
            sys.stderr.flush()

    try:
        yield line
    finally:
        if shown:
            sys.stderr.write("\n")


def described(at: Progress) -> str:
    """One line: what runs, how far it is, the best so far."""
    share = f"{at.done}" if at.total is None else f"{at.done}/{at.total}"
    if at.best is None or at.late is None or at.candidate is None:
        return f"tune: {at.stage} {share}"
    steps = ", ".join(map(str, at.candidate.steps))
    return f"tune: {at.stage} {share}, best {at.best:.2f} with {len(at.candidate.steps)} full steps ({steps})"

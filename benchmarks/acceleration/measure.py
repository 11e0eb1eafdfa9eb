"""How one row of the acceleration table is measured, and what the rows say about what is claimed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import ticache
from benchmarks.acceleration.rows import Base, Facts, Row
from benchmarks.baselines.packages import NotApplicable, deepest_branch
from benchmarks.baselines.threshold import recorded, tune_threshold
from benchmarks.common import timer_of
from benchmarks.models import BenchmarkModel
from ticache.calibration import Calibration

YARDSTICK = 3  # uncached DDIM steps that tell how fast the machine is, before and after each timed run
FIGURES = (
    *("calls", "flops", "flops_ratio", "time_ratio", "time_ratios", "psnr", "psnr_region", "ssim", "lpips"),
    *("l1_truth", "l1_truth_region", "ssim_truth", "landmark_error", "frames_without_face", "bytes_held"),
)


class RowRunner:
    """One model, the uncached runs that its rows are compared with, and the clock."""

    def __init__(self, subject: BenchmarkModel, repeats: int):
        self.subject, self.repeats = subject, repeats
        self.clips = len(subject.masks)
        self._uncached: dict[Base, Uncached] = {}
        self._calibrations: dict[Base, Calibration] = {}

    def facts(self) -> Facts:
        """What the rows depend on: costs, and thresholds from one uncached run."""
        subject = self.subject
        share = self.share_of_a_predicted_step()
        with recorded(subject.pipe) as (inputs, outputs):
            subject.run(0, 30)
        thresholds = {calls: tune_threshold(inputs, outputs, calls) for calls in (10, 6)}
        branch = deepest_branch(subject.pipe.unet)
        return Facts(share, thresholds, branch, subject.regions, self.calibration)

    def share_of_a_predicted_step(self) -> float:
        """FLOPs of a predicted step with cut="outer", of a full one's."""
        subject = self.subject
        subject.renew()
        subject.set_sampler("ddim")
        subject.run(0, 1)  # the first run also makes what all runs of the clip share
        _, full = count_flops(lambda: subject.run(0, 1))

        def cached_run(steps: int) -> int:
            with ticache.apply(subject.pipe, schedule=[0]):
                return count_flops(lambda: subject.run(0, steps))[1]

        return (cached_run(3) - cached_run(2)) / full  # both try out once whether the cut fits

    def calibration(self, base: Base) -> Calibration:
        """What one uncached run of a base tells, on the inputs that no row is measured on."""
        if base not in self._calibrations:
            subject, pipe = self.subject, copy.deepcopy(self.subject.plain)
            subject.set_sampler(base.sampler, pipe)
            with ticache.apply(pipe, schedule="auto") as session:
                subject.run(self.clips, base.steps, pipe, guidance=base.guidance)
                found = session.calibration
            assert found is not None
            self._calibrations[base] = found
        return self._calibrations[base]

    def measure(self, row: Row) -> dict[str, Any]:
        """The row of the table; with `error` in place of figures where the method does not run."""
        told = {"model": row.model, "base": row.base.name, "name": row.name, "steps": row.base.steps}
        told |= {"guidance": row.base.guidance, "sampler": row.sampler, "nfe": row.nfe, "settings": row.settings}
        try:
            return told | dict.fromkeys(FIGURES) | self._figures(row) | {"error": None}
        except NotApplicable as reason:
            error = str(reason)
        except Exception as failure:  # a rival may fail in any way, and its row says how
            error = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return told | dict.fromkeys(FIGURES) | {"error": error}

    def uncached(self, base: Base) -> Uncached:
        """The uncached runs of a base, made when the first row asks."""
        if base not in self._uncached:
            self._uncached[base] = Uncached(self, base)
        return self._uncached[base]

    def _figures(self, row: Row) -> dict[str, Any]:
        subject, base = self.subject, self.uncached(row.base)
        guidance = row.base.guidance
        subject.renew()  # a method that failed, or does not clean up, leaves nothing to the next
        subject.set_sampler(row.sampler)
        measured: dict[int, dict[str, Any]] = {}
        calls: dict[int, int] = {}
        ratios: list[float] = []
        flops = held = 0
        for turn, clip in enumerate(self._turns()):
            with row.method(subject.pipe, clip) as running, counted_calls(subject.pipe) as counter:
                if turn == 0:
                    latents, flops = count_flops(lambda: subject.run(0, row.nfe, guidance=guidance))
                elif turn <= self.repeats:
                    cost, latents = self.cost(lambda clip=clip: subject.run(clip, row.nfe, guidance=guidance))
                    ratios.append(base.cost / cost)
                else:
                    latents = subject.run(clip, row.nfe, guidance=guidance)
                if clip in measured:
                    continue
                calls[clip] = running.full_calls() if running.full_calls else counter[0]
                held = max(held, running.bytes_held())
            measured[clip] = subject.figures(clip, subject.decode(latents), base.videos[clip])
        figures: dict[str, Any] = {name: _mean([each[name] for each in measured.values()]) for name in measured[0]}
        if figures["frames_without_face"] is not None:
            figures["frames_without_face"] = sum(each["frames_without_face"] for each in measured.values())
        mean_calls = _mean(list(calls.values()))
        assert mean_calls is not None
        return figures | {
            "calls": int(mean_calls) if mean_calls == int(mean_calls) else round(mean_calls, 2),
            "flops": flops,
            "flops_ratio": base.flops / flops,
            "time_ratio": statistics.median(ratios),
            "time_ratios": [round(ratio, 3) for ratio in ratios],
            "bytes_held": held,
        }

    def _turns(self) -> list[int]:
        """Which clip each run takes: the first is counted, then as many are timed as asked for, then what is left."""
        timed = [(turn + 1) % self.clips for turn in range(self.repeats)]
        return [0, *timed, *(clip for clip in range(self.clips) if clip not in {0, *timed})]

    def cost(self, call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """How many times as long as a few uncached steps a call takes, timed before and after it; and what it gave."""
        before = self._yardstick()
        seconds, result = self._timed(call)
        return 2 * seconds / (before + self._yardstick()), result

    def _yardstick(self) -> float:
        """Seconds that a few uncached steps take now."""
        self.subject.set_sampler("ddim", self.subject.plain)
        return self._timed(lambda: self.subject.run(0, YARDSTICK, self.subject.plain))[0]

    def _timed(self, call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """Seconds, and what the call gave."""
        device = torch.device(self.subject.plain.device)
        clock = time.process_time if timer_of(device) == "time.process_time" else time.perf_counter
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = clock()
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - started, result


class Uncached:
    """The uncached runs of one base: pictures of each clip, FLOPs, and the cost in yardsticks."""

    def __init__(self, bench: RowRunner, base: Base):
        self._bench, self._base = bench, base
        subject, costs = bench.subject, list[float]()
        self.videos: list[NDArray[np.floating]] = []
        bench.cost(lambda: self._run(0))  # the first run also fills caches, and would make every ratio look better
        for turn in range(max(bench.clips, 2 * bench.repeats + 1)):
            clip = turn % bench.clips
            cost, latents = bench.cost(lambda clip=clip: self._run(clip))
            costs.append(cost)
            if turn < bench.clips:
                self.videos.append(subject.decode(latents))
        self.cost = statistics.median(costs)

    def _run(self, clip: int, steps: int | None = None) -> Tensor:
        subject, base = self._bench.subject, self._base
        subject.set_sampler(base.sampler, subject.plain)
        return subject.run(clip, steps or base.steps, subject.plain, guidance=base.guidance)

    @cached_property
    def flops(self) -> int:
        """Every call costs the same: one is counted."""
        return self._base.steps * count_flops(lambda: self._run(0, 1))[1]


def count_flops(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives, and the floating-point operations that it took."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={on_cpu: _cpu_attention_flops}) as counter:
        result = call()
    return result, counter.get_total_flops()


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The counter knows the CPU's fused attention by no name of its own."""
    return sdpa_flop_count(query, key, value)


@contextmanager
def counted_calls(pipe: Any) -> Iterator[list[int]]:
    """How often the UNet's innermost convolution really ran."""
    count = [0]

    def note(*_: Any) -> None:
        count[0] += 1

    handle = pipe.unet.mid_block.resnets[0].conv1.register_forward_hook(note)
    try:
        yield count
    finally:
        handle.remove()


def _mean(values: list[Any]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


MARGIN, FLOOR = 10.0, 40.0  # dB: above every rival at 10 of 30 calls; in all at 6 of 30


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is claimed of the default, by model, and whether these rows bear it out; nothing where rows are missing."""
    found = []
    base = Base("ddim", 30).name
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["name"]: row for row in rows if row["model"] == model and row["base"] == base and not row["error"]}
        ours = mine.get("ticache N=3")
        if ours is not None:
            groups = {
                "DeepCache (branch 0, N=3)": [r for n, r in mine.items() if n == "DeepCache N=3 branch 0"],
                "Spectrum's forecaster (10 calls)": [
                    r for n, r in mine.items() if n == "Spectrum forecaster, 10 calls"
                ],
                "every solver of 10 steps": [r for r in mine.values() if r["nfe"] == 10 and "FLOPs" not in r["name"]],
                "every solver at equal FLOPs": [r for n, r in mine.items() if n.endswith("(equal FLOPs, N=3)")],
            }
            for group, others in groups.items():
                if others:
                    best = max(others, key=lambda row: row["psnr"])
                    margin = ours["psnr"] - best["psnr"]
                    figures = f"{ours['psnr']:.1f} dB, {margin:+.1f} on {best['name']} ({best['psnr']:.1f} dB)"
                    text = f"10 of 30 calls, at least {MARGIN:.0f} dB above {group}"
                    found.append({"model": model, "claim": text, "figures": figures, "met": margin >= MARGIN})
        six = mine.get("ticache N=5")
        if six is not None:
            text = f"6 of 30 calls, above {FLOOR:.0f} dB"
            found.append(
                {"model": model, "claim": text, "figures": f"{six['psnr']:.1f} dB", "met": six["psnr"] > FLOOR}
            )
    return found

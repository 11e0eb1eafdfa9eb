"""How much faster is a run? UNet (and ControlNet) time of a run, uncached, with our cuts, and with others' caches.

    python -m benchmarks.latency [--quick] [--models sd15 sdxl] [--device cuda] [--json FILE]

Published widths with random weights, which time cannot tell from trained ones; fidelity is another question
(`benchmarks.acceleration`). Full: 30 steps of two samples. Quick, for a CPU: SD 1.5 and AnimateDiff at 128 pixels, 6
steps of one sample, so that N=3 computes a third of the steps in full either way, and the rounds of a model's rows take
turns, so that a machine that others use too is as busy for one row as for the next. The timings are pytest-benchmark's:
this file is also the suite that it runs. A row whose method does not run on that model says why in `error`.
`time_ratio`: the uncached run of the same mode (eager or compiled) over this one, of each turn, then the median;
`time_ratios`: the least and the greatest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import ticache
from benchmarks.common import ROOT, conditions, flags, percentiles, print_table, require_green, timer_of, write_json
from benchmarks.networks import UNETS, TimedUNet

TESTS = ("tests/test_ops.py", "tests/test_forward_context.py")
CUTS = ("outer", "output", "branches")
STEPS = {False: 30, True: 6}  # of a run, for the long form and the quick one
TURNS = 3  # of the quick form: rounds of each row, between those of the others
QUICK_MODELS = ["sd15", "animatediff"]
COLUMNS = ("model", "name", "mode", "calls", "p20", "p50", "p80", "time_ratio", "peak_bytes", "error")


@dataclass(frozen=True)
class Row:
    """One timed run: a model, a method with its settings, and how the UNet is called."""

    model: str
    method: str
    mode: str = "eager"
    N: int | None = None
    cut: str | None = None

    @property
    def name(self) -> str:
        return " ".join([self.method, *([self.cut] if self.cut else []), *([f"N={self.N}"] if self.N else [])])


def rows_of(models: list[str], quick: bool) -> Iterator[Row]:
    """Every row of the table; quick: N=3 and the two cheap cuts only, nothing compiled."""
    for model in models:
        for mode in ("eager",) if quick else ("eager", "compiled"):
            yield Row(model, "uncached", mode)
            for N in (3,) if quick else (2, 3, 4, 5):
                for cut in CUTS[:2] if quick else CUTS:
                    yield Row(model, "ticache", mode, N, cut)
                yield Row(model, "DeepCache 0.1.1", mode, N)
            yield Row(model, "tomesd 0.1.3", mode)


@contextlib.contextmanager
def method(row: Row, subject: TimedUNet) -> Iterator[ticache.Session | None]:
    """The row's method in place, and taken off again; after an error the model is thrown away."""
    subject.function = torch.compile(subject.unet) if row.mode == "compiled" else None
    try:
        if row.method.startswith("ticache"):
            config = ticache.CacheConfig(N=row.N or 1, order=2, cut=row.cut or "outer")
            with ticache.apply(subject, config) as session:
                yield session
        elif row.method.startswith("DeepCache"):
            from DeepCache import DeepCacheSDHelper

            helper: Any = DeepCacheSDHelper(pipe=subject)
            helper.set_params(cache_interval=row.N, cache_branch_id=0)
            helper.enable()
            yield None
            helper.disable()
        elif row.method.startswith("tomesd"):
            import tomesd

            tomesd.apply_patch(subject.unet, ratio=0.5)
            yield None
            tomesd.remove_patch(subject.unet)
        else:
            yield None
    finally:
        subject.function = None


def full_calls(row: Row, steps: int, session: ticache.Session | None) -> int:
    """UNet evaluations in full, of all."""
    if session is not None:
        return session.report().to_dict()["full_calls"]
    return steps if row.N is None else -(-steps // row.N)


class Plan:
    """What is to be timed and on what; holds the model that is being timed, and why rows failed."""

    def __init__(self, models: list[str], *, quick: bool, device: str):
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.quick = quick
        self.steps = STEPS[quick]
        self.turns, self.rounds = (TURNS, 1) if quick else (1, 10)
        self.rows = list(rows_of(models, quick))
        self.errors: dict[str, str] = {}
        self.sizes: dict[str, list[int]] = {}  # of the sample, by model
        self._model: str | None = None
        self._subject: TimedUNet | None = None

    def subject(self, model: str) -> TimedUNet:
        """The model's UNet and inputs; one model at a time is in memory."""
        if self._subject is None or self._model != model:
            self.forget()
            torch.manual_seed(0)
            self._subject, self._model = UNETS[model](self.device, self.dtype, quick=self.quick), model
            self.sizes[model] = list(self._subject.sample.shape)
        return self._subject

    def forget(self) -> None:
        """Let go of the model, also because a method that failed may have left it changed."""
        self._subject = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    plan = metafunc.config.pluginmanager.get_plugin("latency-plan") or Plan(["sd15"], quick=True, device="cpu")
    runs = order_of(plan)
    metafunc.parametrize(
        ("plan", "row"), [(plan, row) for row, _ in runs], ids=[f"{_id(row)}, {turn}" for row, turn in runs]
    )


def order_of(plan: Plan) -> list[tuple[Row, int]]:
    """Rows and turns as they are timed: one model after the other, within it each turn through all of its rows."""
    models = dict.fromkeys(row.model for row in plan.rows)
    return [(row, turn) for model in models for turn in range(plan.turns) for row in plan.rows if row.model == model]


def _id(row: Any) -> str:
    return f"{row.model}, {row.name}, {row.mode}"


def test_run(benchmark: Any, plan: Plan, row: Row) -> None:
    if _id(row) in plan.errors:
        pytest.skip(plan.errors[_id(row)])
    torch.compiler.reset()
    subject = plan.subject(row.model)
    try:
        with method(row, subject) as session:
            subject.run(1 if plan.quick else plan.steps)  # compiles and tunes
            if plan.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(plan.device)
            warmup = 0 if plan.quick else 2
            benchmark.pedantic(subject.run, args=(plan.steps,), rounds=plan.rounds, warmup_rounds=warmup)
            benchmark.extra_info["calls"] = full_calls(row, plan.steps, session)
    except Exception as error:
        plan.errors[_id(row)] = f"{type(error).__name__}: {error}".splitlines()[0]
        plan.forget()
        pytest.skip(plan.errors[_id(row)])
    if plan.device.type == "cuda":
        benchmark.extra_info["peak_bytes"] = torch.cuda.max_memory_allocated(plan.device)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Run the suite, and make one row of the table from each of its."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "benchmark.json")
        # The project's own options skip benchmarks, and make errors of warnings that rivals give.
        settings = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        quiet = ["-q", "--no-header", "--no-summary", "--benchmark-quiet", "--timeout=0"]
        arguments = [
            *settings,
            *quiet,
            f"--benchmark-timer={timer_of(plan.device)}",
            f"--benchmark-json={path}",
            __file__,
        ]
        status = pytest.main(arguments, plugins=[_Named(plan)])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(f"the suite ended with {status!r}")
        entries = json.loads(path.read_text(encoding="utf-8"))["benchmarks"] if path.stat().st_size else []
    timed = {entry["name"].partition("[")[2].rstrip("]"): entry for entry in entries}
    rows = []
    for row in plan.rows:
        turns = [timed[name] for turn in range(plan.turns) if (name := f"{_id(row)}, {turn}") in timed]
        rows.append(_table_row(row, plan.steps, turns, plan.errors.get(_id(row))))
    return _with_ratios(rows)


class _Named:
    """Registers the plan under a name by which the suite finds it."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self._plan, "latency-plan")


def _table_row(row: Row, steps: int, turns: list[dict[str, Any]], error: str | None) -> dict[str, Any]:
    """turns: pytest-benchmark's entries of the row. seconds: the median round of each."""
    found: dict[str, Any] = {"model": row.model, "name": row.name, "mode": row.mode, "steps": steps, **asdict(row)}
    found |= {"calls": None, "p20": None, "p50": None, "p80": None, "time_ratio": None, "time_ratios": None}
    found |= {"peak_bytes": None, "seconds": []}
    if turns and error is None:
        rounds = [turn["stats"]["data"] for turn in turns]
        found |= percentiles([seconds for each in rounds for seconds in each])
        found["seconds"] = [statistics.median(each) for each in rounds]
        found |= turns[-1]["extra_info"]
    return found | {"error": error}


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    base = {(row["model"], row["mode"]): row["seconds"] for row in rows if row["method"] == "uncached"}
    for row in rows:
        uncached = base.get((row["model"], row["mode"]))
        if uncached and row["seconds"]:
            ratios = [full / seconds for full, seconds in zip(uncached, row["seconds"], strict=True)]
            row["time_ratio"] = statistics.median(ratios)
            row["time_ratios"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return rows


TARGETS = {  # N=3 over 30 steps, on a GPU
    ("sd15", "outer"): 2.55,
    ("animatediff", "outer"): 2.6,
    ("sd15", "output"): 2.9,
    ("animatediff", "output"): 2.9,
    ("sdxl", "output"): 2.9,
    ("sd15+controlnet", "outer"): 2.55,
}


def verdict(rows: list[dict[str, Any]], plan: Plan) -> str:
    """Each target beside what was found."""
    if plan.device.type != "cuda":
        return "targets: to be judged on a GPU"
    found = {(row["model"], row["cut"]): row["time_ratio"] for row in rows if row["N"] == 3 and row["mode"] == "eager"}
    lines = [
        f"{model} {cut}: {found[model, cut]:.2f}x of {target}x"
        for (model, cut), target in TARGETS.items()
        if found.get((model, cut)) is not None
    ]
    return "targets, eager, N=3: " + "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[flags()]
    )
    parser.add_argument("--models", nargs="+", choices=UNETS, help="default: all; quick SD 1.5 and AnimateDiff")
    options = parser.parse_args()
    options.models = options.models or (QUICK_MODELS if options.quick else list(UNETS))
    torch.set_num_threads(options.threads)
    require_green(*TESTS)
    plan = Plan(options.models, quick=options.quick, device=options.device)
    rows = measure(plan)
    print_table(rows, COLUMNS)
    print(verdict(rows, plan))
    if options.json:
        more: dict[str, Any] = {"quick": plan.quick, "dtype": str(plan.dtype)}
        more["samples"] = {name: plan.sizes[name] for name in options.models}
        if plan.turns > 1:
            more["rounds"] = f"{plan.turns} of each row, taking turns with those of the model's other rows"
        write_json(options.json, rows, conditions(plan.device, **more))


if __name__ == "__main__":
    main()

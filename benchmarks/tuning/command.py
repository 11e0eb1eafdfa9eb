"""What does tuning the full steps bring? Curves for the shipped model, its presets, and the figures of docs/tune.md.

    python -m benchmarks.tuning [--quick] [--share X] [--journal FILE] [--json FILE] [--ship] [--preview] [--exhaustive]
    python -m benchmarks.tuning --from FILE

Everything comes from one run: the search sees clips of heads of the training split, the check is on held-out heads.
`--share` of the trials: 0.25 allows a quarter. `--ship` writes the presets beside the model, the pictures in
docs/images and the figures in docs/tune.md. `--journal` lets an interrupted run go on. `--exhaustive` also tries every
schedule of a short run, where that can be done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import ticache
from benchmarks.common import ROOT, conditions, flags, print_table, write_json
from fye_pipeline import presets
from fye_pipeline.animate.session import load_model, recommended_guidance
from fye_pipeline.evaluation.rendered import model_hash
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.world import World
from fye_pipeline.world.calls import CHECK_HEADS_FROM, TUNE_HEADS_FROM, rendered_calls
from ticache.provenance import model_identity
from ticache.schedule import late_steps_of
from ticache.tuning.local_search import resampled
from ticache.tuning.metrics import as_tensor, psnr
from ticache.tuning.trials import CallArguments, Choices, Progress, Tuning
from ticache.tuning.tune import find_config

STEPS = 30
TARGET = 45.0  # dB
SHOWN = 6  # full steps whose trials are drawn
COUNTS = {True: (4, 5, 6, 8, 10), False: (3, 4, 5, 6, 7, 8, 10, 12, 15)}  # full steps, for the short form and the long
# Bounds: at the count that is drawn, at the others, at the second cut (which begins with what the first found), target.
TRIALS = {True: (26, 12, 8, 40), False: (40, 24, 16, 60)}
# The least PSNR in calibration of each preset: the cheapest tuned setting that has it.
LEVELS = {"fast": 45.0, "balanced": 50.0, "faithful": 60.0}
DOCUMENT = ROOT / "docs" / "tune.md"
PICTURE = ROOT / "docs" / "images" / "tuning"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
COLUMNS = ("name", "cut", "full_steps", "steps", "order", "flops_ratio", "calibration", "check", "trials")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--journal", type=Path, help="a file in which trials are kept; the run goes on from it")
    parser.add_argument("--ship", action="store_true", help="write presets, pictures and the figures of the document")
    parser.add_argument("--preview", action="store_true", help="with --ship: also PNGs of the pictures")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials: 0.25 allows a quarter of them")
    parser.add_argument("--exhaustive", action="store_true", help="also every schedule of a run of 10 steps")
    for name, what in (("frames", "of a clip"), ("clips", "to search on"), ("check-clips", "for the check")):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument(
        "--from", dest="recorded", type=Path, metavar="FILE", help="ship a recorded run: measure nothing"
    )
    args = parser.parse_args(argv)
    if args.recorded:
        recorded = json.loads(args.recorded.read_text(encoding="utf-8"))
        ship(recorded["rows"], recorded["conditions"], preview=args.preview)
        return
    torch.set_num_threads(args.threads)
    pipe = load_model(SHIPPED_MODEL, torch.device(args.device), torch.float32)
    usual = {"frames": 8 if args.quick else 16, "clips": 4, "check_clips": 8}
    sizes = {name: getattr(args, name) or value for name, value in usual.items()}
    world = World(CanonicalFace.load())
    calls = {steps: clips_of(world, steps, **sizes) for steps in (STEPS, 10)}
    record = conditions(
        args.device,
        quick=args.quick,
        steps=STEPS,
        guidance=recommended_guidance(SHIPPED_MODEL),
        model_hash=model_hash(pipe),
        **sizes,
        seed=0,
        target=TARGET,
        **({} if args.share == 1 else {"share_of_trials": args.share}),
    )
    rows = measure(pipe, *calls[STEPS], args.journal, quick=args.quick, share=args.share)
    if args.exhaustive:
        rows += exhaustive(pipe, calls[10][0][:2])
    print_table([row for row in rows if "check" in row], COLUMNS)
    if args.json:
        write_json(args.json, rows, record)
    if args.ship:
        ship(rows, record, preview=args.preview)


def clips_of(
    world: World, steps: int, *, frames: int, clips: int, check_clips: int
) -> tuple[list[CallArguments], list[CallArguments]]:
    """Calls to search on and calls for the check."""
    made = {"frames": frames, "steps": steps, "guidance": recommended_guidance(SHIPPED_MODEL)}
    first, held = TUNE_HEADS_FROM, CHECK_HEADS_FROM
    search = rendered_calls(world, "train", range(first, first + clips), **made)
    check = rendered_calls(world, "held", range(held, held + check_clips), **made)
    return [each.arguments for each in search], [each.arguments for each in check]


def measure(
    pipe: FollowYourEmojiPipeline,
    search: list[CallArguments],
    check: list[CallArguments],
    journal: Path | None,
    *,
    quick: bool,
    share: float = 1.0,
) -> list[Row]:
    """Late and tuned at several numbers of full steps, for two cuts; the target; the presets. share: of the trials."""
    watch = Watch()
    # What a recording tells is of one cut's features: each cut has uncached runs of its own.
    tuning, cheap = (Tuning(pipe, calls=search, check=check, journal=journal, progress=watch) for _ in range(2))
    shown, others, second, wanted = (math.ceil(share * bound) for bound in TRIALS[quick])
    rows: list[Row] = []
    configs: list[ticache.CacheConfig] = []
    outer, output = (Choices(orders=(2, 3), cuts=(cut,)) for cut in ("outer", "output"))
    steps_of: dict[int, Sequence[int]] = {}
    for count in COUNTS[quick]:
        trials = shown if count == SHOWN else others
        watch.begin(f"outer, {count} full steps")
        hints = [resampled(steps, count, STEPS) for steps in list(steps_of.values())[-1:]]
        config = find_config(tuning, outer, full_steps=count, trials=trials, hints=hints)
        steps_of[count] = config.steps or ()
        configs.append(config)
        rows += rows_of(config, begun=watch.best[0])
        if count == SHOWN:
            rows.append({"name": "trials", "full_steps": count, "best": watch.best})
    for count in COUNTS[quick]:
        watch.begin(f"output, {count} full steps")
        config = find_config(cheap, output, full_steps=count, trials=second, hints=[steps_of[count]])
        configs.append(config)
        rows += rows_of(config, begun=watch.best[0])
    watch.begin(f"target {TARGET:g} dB")
    found = find_config(tuning, outer, target_psnr=TARGET, trials=wanted)
    rows += rows_of(found, f"target {TARGET:g} dB")
    for name, level in LEVELS.items():
        chosen = cheapest(configs, level)
        rows.append({**rows_of(chosen, f"preset {name}")[0], "level": level, "config": json.loads(chosen.to_json())})
    return rows


def rows_of(config: ticache.CacheConfig, name: str = "tuned", begun: float | None = None) -> list[Row]:
    """A tuned config's rows: itself, the late schedule with as many full steps, and one full step fewer.

    begun: what the first trial, which is the recording's choice, keeps in calibration, in dB.
    """
    assert config.provenance is not None
    figures = config.provenance.figures
    count = figures["full_steps"]
    shared = {"cut": config.cut, "trials": config.provenance.trials}
    rows = [
        {
            "name": name,
            **shared,
            "full_steps": count,
            "steps": list(config.steps or ()),
            "order": config.order,
            "flops_ratio": figures["flops_ratio"],
            **figures["tuned"],
        }
    ]
    if begun is not None:
        rows[0]["recording"] = begun
    if name == "tuned":
        steps = list(late_steps_of(count, STEPS))
        rows.append({"name": "late", **shared, "full_steps": count, "steps": steps, "order": 2, **figures["late"]})
    elif "fewer" in figures:
        rows.append({"name": f"{name}, one full step fewer", **shared, "full_steps": count - 1, **figures["fewer"]})
    return rows


def cheapest(configs: Iterable[ticache.CacheConfig], level: float) -> ticache.CacheConfig:
    """The setting with the fewest operations that keeps `level` in calibration; else the one that keeps most."""

    def kept(config: ticache.CacheConfig) -> float:
        assert config.provenance is not None
        return config.provenance.figures["tuned"]["calibration"]

    def saved(config: ticache.CacheConfig) -> float:
        assert config.provenance is not None
        return config.provenance.figures["flops_ratio"]

    configs = list(configs)
    enough = [config for config in configs if kept(config) >= level]
    return max(enough, key=saved) if enough else max(configs, key=kept)


def exhaustive(
    pipe: FollowYourEmojiPipeline, calls: Sequence[CallArguments], count: int = 4, steps: int = 10
) -> list[Row]:
    """Every schedule of `count` full steps in a short run, best first; where the late one stands among them."""
    uncached = [as_tensor(again(pipe, call)) for call in calls]
    found = []
    for others in itertools.combinations(range(1, steps), count - 1):
        with ticache.apply(pipe, schedule=[0, *others], order=2):
            values = [psnr(as_tensor(again(pipe, call)), wanted) for call, wanted in zip(calls, uncached, strict=True)]
        found.append((sum(values) / len(values), [0, *others]))
    found.sort(reverse=True)
    late = list(late_steps_of(count, steps))
    place = [each for _, each in found].index(late)
    return [
        {"name": f"exhaustive, T={steps}", "cut": "outer", "full_steps": count, "tried": len(found)}
        | {"steps": found[0][1], "calibration": round(found[0][0], 3), "check": None},
        {"name": f"late, T={steps}", "cut": "outer", "full_steps": count, "place": place + 1}
        | {"steps": late, "calibration": round(found[place][0], 3), "check": None},
    ]


def again(pipe: FollowYourEmojiPipeline, call: CallArguments) -> Any:
    """One call, its generator wound back."""
    state = call["generator"].get_state()
    try:
        return pipe(**call)
    finally:
        call["generator"].set_state(state)


class Watch:
    """Says on stderr how far the run is, and keeps the best after every trial of the search at hand."""

    def __init__(self) -> None:
        self.best: list[float] = []
        self._what = ""

    def begin(self, what: str) -> None:
        self.best = []
        self._what = what

    def __call__(self, at: Progress) -> None:
        if at.stage == "trial" and at.best is not None:
            self.best.append(round(at.best, 3))
        best = f", best {at.best:.2f} dB" if at.best is not None else ""
        print(f"{self._what}: {at.stage} {at.done}{best}", file=sys.stderr, flush=True)


def ship(rows: list[Row], record: Row, *, preview: bool) -> None:
    """Presets beside the model, pictures, and the figures of the document."""
    found = {row["name"].removeprefix("preset "): row["config"] for row in rows if "config" in row}
    weights = next(iter(found.values()))["provenance"]["model"]["weights"]
    if weights != model_identity(load_model(SHIPPED_MODEL, torch.device("cpu"), torch.float32).unet)["weights"]:
        sys.exit(f"these figures are of other weights than those in {SHIPPED_MODEL}: measure again")
    presets.write(SHIPPED_MODEL, found, {key: record[key] for key in ("model_hash", "frames", "steps", "guidance")})
    from benchmarks.plots.tuning import draw_tuning

    draw_tuning(PICTURE, rows, preview=preview)
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{figures_of(rows, record)}\n\n{END}{after}", encoding="utf-8")


def figures_of(rows: Sequence[Row], record: Row) -> str:
    """The tables of the document."""
    from benchmarks import markdown

    by = {(row["name"], row["cut"], row["full_steps"]): row for row in rows if row["name"] in ("late", "tuned")}
    counts = sorted({row["full_steps"] for row in rows if row["name"] == "tuned"})
    head = ["full steps", "late", "tuned", "gain", "fewer operations", '`"output"`: late', "tuned", "fewer operations"]
    lines = []
    for count in counts:
        late, tuned = by["late", "outer", count], by["tuned", "outer", count]
        cheap_late, cheap = by["late", "output", count], by["tuned", "output", count]
        lines.append(
            [
                str(count),
                f"{late['check']:.1f}",
                f"{tuned['check']:.1f}",
                f"{tuned['check'] - late['check']:.1f}",
                f"{tuned['flops_ratio']:.2f}x",
                f"{cheap_late['check']:.1f}",
                f"{cheap['check']:.1f}",
                f"{cheap['flops_ratio']:.2f}x",
            ]
        )
    ready = [row for row in rows if "config" in row]
    preset_lines = [
        [
            f"`{row['name'].removeprefix('preset ')}`",
            f"{row['level']:g} dB",
            f'`"{row["cut"]}"`',
            ", ".join(map(str, row["steps"])),
            f"{row['flops_ratio']:.2f}x",
            f"{row['check']:.1f} dB",
        ]
        for row in ready
    ]
    target = next(row for row in rows if row["name"].startswith("target") and "fewer" not in row["name"])
    fewer = next((row for row in rows if row["name"].endswith("one full step fewer")), None)
    below = f"; with one full step fewer the best found has {fewer['check']:.1f}" if fewer else ""
    sentence = (
        f"`target_psnr={record['target']:g}` gives {target['full_steps']} full steps "
        f"({', '.join(map(str, target['steps']))}): {target['check']:.1f} dB on unseen clips{below}."
    )
    return "\n\n".join(
        [
            markdown.table(head, lines),
            sentence,
            markdown.table(["preset", "wanted", "cut", "full steps", "fewer operations", "unseen clips"], preset_lines),
            markdown.conditions(record),
        ]
    )

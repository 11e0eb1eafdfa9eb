"""Speed and fidelity of every recipe and every rival, in one run, beside the same time spent on fewer steps.

    python -m benchmarks.acceleration [--quick] [--only REGEX] [--json FILE] [--resume]

Two models: the portrait model that ships, on held-out heads, and a small text-free Stable-Diffusion-like UNet
(`benchmarks.sd_like`). A row is compared with the uncached run of its own model and base (sampler and steps), from the
same noise. The columns:

calls         full evaluations of the UNet (of `steps`; fewer-step rows take `nfe` steps)
flops         of one clip's denoising, by torch's FlopCounterMode (2 per multiply-add), counted while it really ran
time_ratio    denoising time of the uncached run over this one's: the median over repeats; a few uncached steps timed
              before and after each tell how fast the machine is at that moment
psnr, ssim    of the decoded frames against the uncached run; psnr_region within the face
l1_truth ...  against the rendered truth (portrait model); landmark_error in picture widths
bytes_held    between steps; 0 where nothing is kept

A method that is not installed or fails has its error in the row. Ctrl-C writes the rows that are finished; `--resume`
goes on after them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.acceleration.measure import RowRunner, claims
from benchmarks.acceleration.rows import Row, rows_of
from benchmarks.common import conditions, flags, print_table, require_green, write_json
from benchmarks.models import BenchmarkModel, Portrait, SDLike, Sizes
from fye_pipeline.animate.session import obtain_face_landmarker
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation.metric_networks import Lpips
from fye_pipeline.landmarks.detector import FaceLandmarkDetector

TESTS = ("tests/test_acceleration.py", "tests/test_forecast.py", "tests/test_schedule.py")
MODELS: dict[str, Any] = {"portrait": Portrait, "sd-like": SDLike}
COLUMNS = (
    *("name", "nfe", "calls", "flops_ratio", "time_ratio", "psnr", "psnr_region", "ssim"),
    *("l1_truth", "landmark_error", "bytes_held", "error"),
)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acceleration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help='rows whose "model / base / name" has it')
    parser.add_argument("--clips", type=int, help="videos, and batches of pictures; default 4, quick 2")
    parser.add_argument("--frames", type=int, help="of a video; default 16, quick 8")
    parser.add_argument("--pictures", type=int, default=8, help="of a batch")
    parser.add_argument("--repeats", type=int, help="timed runs of each row; default 5, quick 2")
    parser.add_argument("--seed", type=int, default=0, help="which heads and which noise")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="torchvision's AlexNet, a state dict: adds LPIPS")
    parser.add_argument("--resume", action="store_true", help="keep the rows that an interrupted run has finished")
    parser.add_argument(
        "--journal", type=Path, default=Path("runs/acceleration.jsonl"), help="finished rows, as they come"
    )
    options = parser.parse_args(argv)
    for name, quick, whole in (("clips", 2, 4), ("frames", 8, 16), ("repeats", 2, 5)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
    for name in ("clips", "frames", "pictures", "repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(options, name)}")
    return options


class Journal:
    """Finished rows on disk, one a line; the first line says what they were measured under."""

    def __init__(self, path: Path, key: dict[str, Any], *, resume: bool):
        self.path, self.rows = path, list[dict[str, Any]]()
        head = json.dumps(key, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path.exists() else []
        if lines and lines[0] == head:
            self.rows = [json.loads(line) for line in lines[1:]]
        elif lines:
            print(f"{path} was written under other conditions: beginning anew", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in (head, *map(json.dumps, self.rows))), encoding="utf-8")

    def has(self, row: Row) -> bool:
        return any((r["model"], r["base"], r["name"]) == (row.model, row.base.name, row.name) for r in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def wanted(rows: Iterator[Row], options: argparse.Namespace) -> list[Row]:
    """The rows that were asked for; with --only every row of the full table can be named."""
    if options.only is not None:
        return [row for row in rows if options.only.search(row.key)]
    return [row for row in rows if row.quick or not options.quick]


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any], bool]:
    """Every row, its conditions, and whether the table was finished."""
    device = torch.device(options.device)
    sizes = Sizes(options.clips, options.frames, options.pictures, options.seed)
    task = obtain_face_landmarker()
    lpips = None if options.lpips is None else Lpips(options.lpips)
    finished = False
    with FaceLandmarkDetector(task, max_faces=1) as detector:
        subjects: list[BenchmarkModel] = [MODELS[name](sizes, device, detector) for name in options.models]
        for subject in subjects:
            subject.lpips = lpips
        told = {subject.name: subject.conditions() for subject in subjects}
        key = {"models": told, "repeats": options.repeats, "device": options.device, "threads": options.threads}
        key["lpips"] = None if options.lpips is None else options.lpips.name
        journal = Journal(options.journal, key, resume=options.resume)
        try:
            for subject in subjects:
                _measure_subject(RowRunner(subject, options.repeats), journal, options)
            finished = True
        except KeyboardInterrupt:
            print("\ninterrupted: --resume goes on", file=sys.stderr)
    order = {name: position for position, name in enumerate(options.models)}
    rows = sorted(journal.rows, key=lambda row: order.get(row["model"], len(order)))  # bases stay in order
    return rows, told, finished


def _measure_subject(bench: RowRunner, journal: Journal, options: argparse.Namespace) -> None:
    rows = wanted(rows_of(bench.subject.name, bench.facts()), options)
    left = [row for row in rows if not journal.has(row)]
    with tqdm(left, initial=len(rows) - len(left), total=len(rows), desc=bench.subject.name) as bar:
        for row in bar:
            bar.set_postfix_str(f"{row.base.name} {row.name}")
            journal.add(bench.measure(row))


def show(rows: list[dict[str, Any]]) -> None:
    """One table for each model and base."""
    for model, base in dict.fromkeys((row["model"], row["base"]) for row in rows):
        print(f"\n{model}, {base}")
        print_table([row for row in rows if (row["model"], row["base"]) == (model, base)], COLUMNS)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    require_green(*TESTS)
    try:
        rows, told, finished = measure(options)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    show(rows)
    verdict = claims(rows)
    print()
    for claim in verdict:
        print(f"{'met   ' if claim['met'] else 'MISSED'}  {claim['model']}: {claim['claim']}: {claim['figures']}")
    if options.json:
        more = {
            "quick": options.quick,
            "finished": finished,
            "repeats": options.repeats,
            "seed": options.seed,
            "models": told,
            "flops": "torch.utils.flop_counter.FlopCounterMode over the first clip's denoising, 2 per multiply-add",
            "time": "of denoising; uncached over this, each relative to uncached steps timed just before and after it",
            "lpips": "n/a: needs --lpips" if options.lpips is None else f"of {options.lpips.name}",
            "claims": verdict,
        }
        write_json(options.json, rows, conditions(options.device, **more))
    if not finished:
        sys.exit(130)

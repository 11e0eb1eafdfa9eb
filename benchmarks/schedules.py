"""Which full steps are best where: fixed schedules and the fitted one, by model, sampler and guidance.

    python -m benchmarks.schedules [--json FILE] [--only REGEX] [--seed N]

Every cell is one model, sampler, number of steps and guidance scale. `auto` is recorded on inputs (a batch of pictures,
one clip) that no row is measured on. Rows of a cell are of the same inputs and the same noise; each has as many full
calls as `ceil(steps / 3)`, except `equal FLOPs`: a solver with as many steps, rounded up, as those calls cost.

psnr      of the decoded pictures (of each clip's frames together) against the uncached run: the mean, in dB
psnr_min  the least of them
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import ticache
from benchmarks.common import conditions, flags, print_table, write_json
from benchmarks.models import BenchmarkModel, Portrait, SDLike, Sizes
from fye_pipeline.animate.session import obtain_face_landmarker
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from ticache.schedule import late_steps_of, steps_of

N = 3
MODELS: dict[str, tuple[Any, Sizes]] = {"sd-like": (SDLike, Sizes(1, 1, 6)), "portrait": (Portrait, Sizes(3, 8, 1))}
COLUMNS = ("name", "calls", "psnr", "psnr_min")
SOLVERS = {"ddim": "DDIM", "dpm-solver++": "DPM-Solver++ 2M", "unipc": "UniPC"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    model: str
    sampler: str
    steps: int
    guidance: float

    def __str__(self) -> str:
        return f"{self.model} / {self.sampler} {self.steps} / guidance {self.guidance:g}"


GRID = [
    *(
        Cell("sd-like", sampler, steps, guidance)
        for sampler, steps in (("ddim", 30), ("dpm-solver++", 20), ("euler", 30))
        for guidance in (1.0, 3.0, 7.5)
    ),
    *(
        Cell("portrait", sampler, steps, guidance)
        for sampler, steps in (("ddim", 30), ("dpm-solver++", 20))
        for guidance in (1.0, 3.5)
    ),
]


def recipes(steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and settings of the fixed schedules."""
    count = math.ceil(steps / N)
    yield "default", {"N": N}
    for name, chosen in (
        ("late", late_steps_of(count, steps)),
        ("late 1.3", late_steps_of(count, steps, 1.3)),
        ("even", late_steps_of(count, steps, 1.0)),
        ("uniform", steps_of("uniform", steps, N)),
    ):
        for forecaster in ("newton", "taylor"):
            label = name if forecaster == "newton" else f"{name} taylor"
            yield label, {"schedule": list(chosen), "order": 2, "forecaster": forecaster}


def measure(model: BenchmarkModel, cell: Cell) -> list[Row]:
    """The rows of one cell."""
    clips = range(model.sizes.clips)
    plain = _pictures(model, cell, clips)

    def row(name: str, calls: int, pictures: list[NDArray[np.floating]]) -> Row:
        values = [value for pair in zip(pictures, plain, strict=True) for value in model.psnrs(*pair)]
        place = {"model": cell.model, "sampler": cell.sampler, "steps": cell.steps, "guidance": cell.guidance}
        figures = {"psnr": round(float(np.mean(values)), 3), "psnr_min": round(min(values), 3)}
        return place | {"name": name, "calls": calls} | figures

    rows = []
    with ticache.apply(model.pipe, N=N, schedule="auto") as session:
        _run(model, cell, model.sizes.clips)  # recorded on what is not measured
        pictures = _pictures(model, cell, clips)
        rows.append(row("auto", session.report().to_dict()["full_calls"], pictures))
        ratio = session.report().to_dict()["flops_ratio"]
    for name, settings in recipes(cell.steps):
        with ticache.apply(model.pipe, **settings) as session:
            pictures = _pictures(model, cell, clips)
            rows.append(row(name, session.report().to_dict()["full_calls"], pictures))
    steps = math.ceil(cell.steps / ratio)
    for solver, name in SOLVERS.items():
        fewer = Cell(cell.model, solver, steps, cell.guidance)
        rows.append(row(f"equal FLOPs {name}", steps, _pictures(model, fewer, clips)))
    return rows


def _pictures(model: BenchmarkModel, cell: Cell, clips: Sequence[int]) -> list[NDArray[np.floating]]:
    return [model.decode(_run(model, cell, clip)) for clip in clips]


def _run(model: BenchmarkModel, cell: Cell, clip: int) -> Tensor:
    model.set_sampler(cell.sampler)
    return model.run(clip, cell.steps, guidance=cell.guidance)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.schedules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="cells whose name has it")
    parser.add_argument("--seed", type=int, default=0, help="which heads and which noise")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    told: dict[str, Any] = {}
    cells = [cell for cell in GRID if options.only is None or options.only.search(str(cell))]
    with FaceLandmarkDetector(obtain_face_landmarker(), max_faces=1) as detector, tqdm(cells) as bar:
        models: dict[str, BenchmarkModel] = {}
        for cell in bar:
            bar.set_postfix_str(str(cell))
            if cell.model not in models:
                kind, sizes = MODELS[cell.model]
                models[cell.model] = kind(replace(sizes, seed=options.seed), torch.device(options.device), detector)
                told[cell.model] = models[cell.model].conditions()
            rows += measure(models[cell.model], cell)
    for cell in cells:
        print(f"\n{cell}")
        print_table([row for row in rows if all(row[key] == value for key, value in vars(cell).items())], COLUMNS)
    if options.json:
        write_json(options.json, rows, conditions(options.device, N=N, seed=options.seed, models=told))


if __name__ == "__main__":
    main()

"""How few steps the portrait model needs: its own results with 30 beside those with less, against the truth.

    python -m benchmarks.few_steps [--clips 6] [--light FOLDER] [--json FILE]

Held-out heads of the rendered world animate their portrait with their own motion, as `fye evaluate rendered` has it.
`--light`: a folder that `fye train --config tiny-light` made, measured at the same few steps. calls: of the UNet a
video; psnr: against the model's own video of 30 steps; time_ratio: that video's time over this one's, everything but
loading counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import conditions, flags, print_table, timer_of, write_json
from fye_pipeline.animate.session import load_model, obtain_face_landmarker, recommended_guidance
from fye_pipeline.evaluation import metrics
from fye_pipeline.evaluation.face_tracks import FindFace, compare_faces, landmark_error, track_face
from fye_pipeline.evaluation.rendered import Case, Plan, generate, head_of, make_case, model_hash
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.world import World

STEPS = (30, 8, 4, 2, 1)
COLUMNS = ("name", "steps", "calls", "ssim", "l1", "aed", "landmark_error", "psnr", "time_ratio")
FIGURES = COLUMNS[3:]
Clock = Callable[[], float]


def measure(
    models: dict[str, Any], case: Case, seed: int, clock: Clock, find: FindFace
) -> dict[tuple[str, int], dict[str, float]]:
    """One clip's figures by model and count of steps."""
    rows: dict[tuple[str, int], dict[str, float]] = {}
    base: tuple[np.ndarray, float] | None = None
    for name, (model, guidance) in models.items():
        for steps in STEPS if name == "ships" else STEPS[1:]:
            began = clock()
            video = generate(
                model,
                case.portrait,
                case.portrait_face.landmarks[0],
                case.clip.sequence.landmarks,
                steps=steps,
                guidance=guidance,
                seed=seed,
            )
            seconds = clock() - began
            base = base or (video, seconds)
            track = track_face(metrics.to_uint8(video), find)
            rows[name, steps] = {
                "ssim": metrics.ssim(video, case.truth),
                "l1": metrics.l1(video, case.truth),
                "aed": compare_faces(track, case.track)["aed"],
                "landmark_error": landmark_error(track, case.track),
                "psnr": metrics.psnr(video, base[0]),
                "time_ratio": base[1] / seconds,
            }
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--light", type=Path, metavar="FOLDER")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    folders = {"ships": SHIPPED_MODEL} | ({} if options.light is None else {"light": options.light})
    models = {
        name: (load_model(folder, device, torch.float32), recommended_guidance(folder))
        for name, folder in folders.items()
    }
    clock = time.process_time if timer_of(device) == "time.process_time" else time.perf_counter
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    plan = Plan(clips=max(options.clips, 2))
    with FaceLandmarkDetector(obtain_face_landmarker(), max_faces=1) as detector:
        world = World(detector.canonical, version=plan.world)
        for k in tqdm(range(options.clips)):
            case = make_case(world, plan, k, detector.detect)
            for key, row in measure(models, case, head_of(plan, k), clock, detector.detect).items():
                found.setdefault(key, []).append(row)
    rows = [
        {"name": name, "steps": steps, "calls": steps * (1 if models[name][1] <= 1 else 2)}
        | {figure: float(np.mean([each[figure] for each in each_clip])) for figure in FIGURES}
        for (name, steps), each_clip in found.items()
    ]
    print_table(rows, COLUMNS)
    if options.json:
        told = {
            "clips": options.clips,
            "frames": plan.frames,
            "models": {n: model_hash(m) for n, (m, _) in models.items()},
        }
        write_json(options.json, rows, conditions(device, **told, guidance={n: g for n, (_, g) in models.items()}))


if __name__ == "__main__":
    main()

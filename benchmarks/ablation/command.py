"""What does each setting of the cache do? The paper's Tables 4 and 5 and the error of every step, on the shipped model.

    python -m benchmarks.ablation [--quick] [--resume] --json FILE

Held-out rendered heads; `psnr` and `psnr_region` (inside the face) compare a row's frames with the uncached run's,
`l1_truth`, `ssim_truth` and `landmark_error` with the rendered truth. `mse` is the mean squared error of the latents
against the uncached ones after each step. Ctrl-C keeps the rows that are done; `--resume` goes on from them. Rows of
models that must be trained otherwise (Table 4) hold the command that trains them until their folder is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ablation.rows import STEPS, TABLES, UNCACHED, Recipe, recipes
from benchmarks.common import ROOT, conditions, flags, print_table, require_green, write_json
from benchmarks.plots.error_per_step import draw_curves
from fye_pipeline.animate.config import SHIPPED_MODEL
from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.animate.session import obtain_face_landmarker, recommended_guidance
from fye_pipeline.evaluation import metrics
from fye_pipeline.evaluation.rendered import model_hash
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.drawing import draw_sequence, expression_mask, facial_mask
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import Reporter, hush_libraries, logger
from fye_pipeline.storage.files import atomic_target
from fye_pipeline.world import WORLD_VERSION, World

TESTS = ("tests/test_forecast.py", "tests/test_schedule.py", "tests/test_region.py")
SPLIT = "held"
COLUMNS = ("name", "calls", "flops_ratio", "psnr", "psnr_region", "l1_truth", "ssim_truth", "landmark_error", "error")
# Where these differ, rows of an earlier run do not belong beside new ones.
SAME = ("model_hash", "split", "clips", "frames", "size", "seed", "steps", "guidance", "noise_scale", "world_version")


@dataclass(frozen=True)
class Clip:
    """One clip: the truth in [0, 1], its landmarks, their region, the face, and what the detector sees in the truth."""

    truth: NDArray[np.floating]  # [F, H, W, 3]
    landmarks: NDArray[np.floating]  # [F, 478, 3]
    region: NDArray[np.float32]  # [F, H, W]
    face: NDArray[np.float32]  # [F, H, W]
    seen: list[NDArray[np.floating] | None]
    portrait: NDArray[np.uint8]
    portrait_landmarks: NDArray[np.floating]  # [478, 3]
    seed: int


@dataclass(frozen=True)
class RecipeRun:
    """One run on one clip: frames [F, H, W, 3] in [0, 1], the latents after every step, and what the UNet did."""

    video: NDArray[np.floating]
    latents: list[torch.Tensor]
    full_steps: list[int]
    flops: int


class RecipeRunner:
    """The model, the clips and the uncached runs that every row is compared with."""

    def __init__(self, model: FollowYourEmojiPipeline, clips: Sequence[Clip], guidance: float, detect: metrics.Detect):
        self.model, self.clips, self.guidance, self.detect = model, clips, guidance, detect
        self.model.set_progress_bar_config(disable=True)
        self._uncached: list[RecipeRun] = []

    def reference(self) -> list[RecipeRun]:
        """The uncached run on every clip."""
        if not self._uncached:
            self._uncached = [self.take(UNCACHED, clip) for clip in self.clips]
        return self._uncached

    def take(self, recipe: Recipe, clip: Clip, model: FollowYourEmojiPipeline | None = None) -> RecipeRun:
        """Run a recipe on a clip. Without a cache N=1, which is bit-identical, counts the operations."""
        model = model or self.model
        latents: list[torch.Tensor] = []
        bent = BentPortraits(clip.portrait, clip.portrait_landmarks, clip.landmarks, len(clip.portrait))

        def note(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latents.append(tensors["latents"].clone())
            return {}

        with model.enable_cache(**(recipe.cache or {"N": 1})) as session:
            output = model(
                clip.portrait,
                draw_sequence(clip.landmarks, clip.truth.shape[1], **drawing_options(recipe)),
                num_inference_steps=recipe.steps,
                guidance_scale=self.guidance,
                region=clip.region if recipe.region else None,
                bent=bent.stack(0, len(clip.landmarks)),
                generator=torch.Generator().manual_seed(clip.seed),
                output_type="np",
                callback_on_step_end=note,
            )
            report = session.report().to_dict()
        model.disable_cache()
        return RecipeRun(output.frames[0], latents, report["streams"][0]["full"], report["flops_run"])

    def measure(self, recipe: Recipe, on_clip: Callable[[], None]) -> dict[str, Any]:
        """A row of the table: means over the clips, and the PSNR of each."""
        row: dict[str, Any] = {"name": recipe.name, "tables": recipe.tables, "steps": recipe.steps}
        row |= {"settings": recipe.cache, "region": recipe.region, "command": None}
        if recipe.config is not None:
            row |= {"config": f"benchmarks/configs/{recipe.config.name}", "command": recipe.command}
        try:
            model = None if recipe.config is None else load_trained(recipe, self.model.device)
        except FileNotFoundError:
            return row | {"error": "n/a: not trained"}
        takes = []
        for clip, uncached in zip(self.clips, self.reference(), strict=True):
            takes.append(uncached if recipe.name == UNCACHED.name else self.take(recipe, clip, model))
            on_clip()
        if recipe.config is not None:
            row["model_hash"] = model_hash(model) if model is not None else None
        else:
            row |= against_uncached(takes, self.reference(), self.clips)
        return row | self._against_truth(takes) | {"error": None}

    def _against_truth(self, takes: Sequence[RecipeRun]) -> dict[str, Any]:
        """L1, SSIM and landmark error; frames without a face are left out of the last, and counted."""
        errors, missing = [], 0
        for take, clip in zip(takes, self.clips, strict=True):
            error, without = metrics.landmark_error(take.video, clip.seen, self.detect)
            errors.append(error)
            missing += without
        pairs = [(take.video, clip.truth) for take, clip in zip(takes, self.clips, strict=True)]
        return {
            "l1_truth": mean([metrics.l1(*pair) for pair in pairs]),
            "ssim_truth": mean([metrics.ssim(*pair) for pair in pairs]),
            "landmark_error": mean([error for error in errors if np.isfinite(error)]),
            "frames_without_face": missing,
        }


def against_uncached(
    takes: Sequence[RecipeRun], uncached: Sequence[RecipeRun], clips: Sequence[Clip]
) -> dict[str, Any]:
    """Calls and operations, PSNR whole and in the face, and the latents' error after every step."""
    whole = [metrics.psnr(take.video, base.video) for take, base in zip(takes, uncached, strict=True)]
    face = [metrics.psnr(t.video, b.video, c.face) for t, b, c in zip(takes, uncached, clips, strict=True)]
    flops, flops_uncached = (sum(take.flops for take in each) for each in (takes, uncached))
    row: dict[str, Any] = {"calls": len(takes[0].full_steps), "flops": flops // len(takes)}
    row |= {"flops_ratio": flops_uncached / flops}
    row |= {"psnr": mean(whole), "psnr_region": mean(face), "psnr_clips": whole, "psnr_region_clips": face}
    if len(takes[0].latents) == len(uncached[0].latents):
        steps = np.mean([step_errors(take, base) for take, base in zip(takes, uncached, strict=True)], axis=0)
        row["full_steps"] = takes[0].full_steps
        row["mse"] = [float(f"{error:.4g}") for error in steps]
    return row


def step_errors(take: RecipeRun, base: RecipeRun) -> list[float]:
    """Mean squared error of the latents after each step."""
    return [float(torch.mean((a - b) ** 2)) for a, b in zip(take.latents, base.latents, strict=True)]


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def drawing_options(recipe: Recipe) -> dict[str, Any]:
    """How the landmarks are drawn for the model that a training config makes."""
    if recipe.config is None:
        return {}
    from fye_pipeline.training.config import load_config

    return {"style": load_config(recipe.config).landmark_style}


def load_trained(recipe: Recipe, device: torch.device) -> FollowYourEmojiPipeline:
    """The model of a training config; FileNotFoundError where none has been trained to its end."""
    folder = ROOT / recipe.folder / "model"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(folder)
    model = FollowYourEmojiPipeline.from_pretrained(folder)
    model.set_progress_bar_config(disable=True)
    return model.to(device)


def make_clips(world: World, detect: metrics.Detect, *, clips: int, frames: int, seed: int) -> list[Clip]:
    """Held-out heads, one portrait and one clip each; the same as those of `fye evaluate rendered`."""
    made = []
    for k in range(seed * 1000, seed * 1000 + clips):
        clip = world.clip(SPLIT, k, take=1, frames=frames)
        landmarks, seen = clip.sequence.landmarks, world.portrait(SPLIT, k)
        made.append(
            Clip(
                truth=clip.frames / 255.0,
                landmarks=landmarks,
                region=expression_mask(landmarks, world.size, world.size),
                face=facial_mask(landmarks, world.size, world.size),
                seen=[detect(frame) for frame in clip.frames],
                portrait=seen.frames[0],
                portrait_landmarks=seen.sequence.landmarks[0],
                seed=k,
            )
        )
    return made


def run(
    bench: RecipeRunner, planned: Sequence[Recipe], known: dict[str, dict[str, Any]], save: Callable[[list], None]
) -> tuple[list[dict[str, Any]], bool]:
    """Measure every row that is not known; `save` sees the rows after each. -> (rows, was it interrupted)."""
    reporter, rows = Reporter(), []
    todo = [recipe for recipe in planned if recipe.name not in known and recipe.config is None]
    total, done = len(todo) * len(bench.clips), 0
    with reporter.progress() as advance:

        def on_clip() -> None:
            nonlocal done
            done += 1
            advance("clips", min(done, total), total)

        try:
            for recipe in planned:
                row = known.get(recipe.name)
                if row is None:
                    row = bench.measure(recipe, on_clip)
                    logger.info(f"{recipe.name}: {row['error'] or outcome(row)}")
                rows.append(row | {"tables": recipe.tables})
                save(rows)
        except KeyboardInterrupt:
            return rows, True
    return rows, False


def outcome(row: dict[str, Any]) -> str:
    psnr = f"{row['calls']} calls, {row['psnr']:.1f} dB, " if "psnr" in row else ""
    return f"{psnr}L1 to the truth {row['l1_truth']:.4f}"


def earlier_rows(path: Path, now: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Finished rows of an interrupted run, by name. SystemExit where that run measured something else."""
    if not path.exists():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in SAME if data["conditions"].get(name) != now.get(name)]
    if changed:
        sys.exit(f"benchmarks.ablation: {path} is of another run (other {', '.join(changed)}); leave out --resume")
    return {row["name"]: row for row in data["rows"] if row["error"] is None and "config" not in row}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has, measure the others")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="a pipeline folder (default: what ships)")
    parser.add_argument("--clips", type=int, help="default 3 with --quick, else 8")
    parser.add_argument("--frames", type=int, help="of a clip; default 8 with --quick, else 16")
    parser.add_argument("--seed", type=int, default=0, help="which heads and which noise")
    parser.add_argument("--face-landmarker", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    require_green(*TESTS)
    hush_libraries()
    clips, frames = options.clips or (3 if options.quick else 8), options.frames or (8 if options.quick else 16)
    model = FollowYourEmojiPipeline.from_pretrained(options.model).to(options.device)
    guidance = recommended_guidance(options.model)
    with FaceLandmarkDetector(obtain_face_landmarker(options.face_landmarker), max_faces=1) as detector:

        def detect(picture: NDArray[np.uint8]) -> NDArray[np.floating] | None:
            face = detector.detect(picture)
            return None if face is None else face.landmarks

        size = int(model.unet.config["sample_size"]) * model.vae_scale_factor
        world = World(detector.canonical, size=size)
        found = make_clips(world, detect, clips=clips, frames=frames, seed=options.seed)
        bench = RecipeRunner(model, found, guidance, detect)
        now = conditions(
            options.device,
            quick=options.quick, model_hash=model_hash(model), split=SPLIT, clips=clips, frames=frames, size=size,
            seed=options.seed, steps=STEPS, sampler="DDIM", guidance=guidance,
            noise_scale=model.noise_scale, world_version=WORLD_VERSION,
            titles=TABLES,
        )  # fmt: skip
        planned = recipes(quick=options.quick)

        def save(rows: list[dict[str, Any]]) -> None:
            if options.json:
                with atomic_target(options.json) as temporary:
                    write_json(temporary, rows, now)

        known = earlier_rows(options.json, now) if options.resume and options.json else {}
        rows, interrupted = run(bench, planned, known, save)
    print_table(rows, COLUMNS)
    if options.json:
        draw_curves({"rows": rows}, options.json.with_suffix(""))
    if interrupted:
        where = f"{options.json} has them; --resume goes on" if options.json else "without --json they are lost"
        print(f"stopped after {len(rows)} of {len(planned)} rows: {where}", file=sys.stderr)
        sys.exit(130)

"""`fye evaluate rendered`: the model beside its baselines, on heads that it has never seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fye_pipeline.console import Reporter, hush_libraries
from fye_pipeline.options import Debug, Overwrite, Quiet, TaskFile
from fye_pipeline.settings import SHIPPED_MODEL

app = typer.Typer(help="Measure a model.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@app.command()
def rendered(
    model: Annotated[Path | None, typer.Option(help="A pipeline folder. Default: the model that ships.")] = None,
    split: Annotated[str, typer.Option(help="Which people: held, train or demo.")] = "held",
    clips: Annotated[int, typer.Option(min=2, help="How many clips, each of another head.")] = 16,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float | None, typer.Option(help="Default: what the model's recipe recommends.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which heads and which noise.")] = 0,
    interval: Annotated[int | None, typer.Option("--N", min=1, help="Also with the cache: one full step in N.")] = None,
    order: Annotated[int, typer.Option(min=0, help="Cache: highest difference used.")] = 2,
    cut: Annotated[str, typer.Option(help="Cache: where the UNet is cut.")] = "outer",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    face_landmarker: TaskFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Self-reenactment on the rendered world, beside a still portrait, a wrong portrait and shuffled landmarks."""
    from fye_pipeline.errors import UserError
    from fye_pipeline.evaluation.reenactment import evaluate_rendered
    from fye_pipeline.files import writable_target
    from fye_pipeline.inputs import obtain_face_landmarker
    from fye_pipeline.models.recipe import recommended_guidance
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

    reporter = Reporter(quiet=quiet)
    if split not in ("held", "train", "demo"):
        raise UserError(f"--split must be held, train or demo, got {split!r}.")
    if not debug:
        hush_libraries()
    target = writable_target(json_file, overwrite=overwrite) if json_file is not None else None
    folder = model or SHIPPED_MODEL
    result = evaluate_rendered(
        FollowYourEmojiPipeline.from_pretrained(folder),
        split=split,
        clips=clips,
        seed=seed,
        frames=frames,
        steps=steps,
        guidance=recommended_guidance(folder) if guidance is None else guidance,
        cache=None if interval is None else {"N": interval, "order": order, "cut": cut},
        face_landmarker=obtain_face_landmarker(face_landmarker, reporter.note),
        on_progress=reporter.note,
    )
    if target is not None:
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    reporter.result(_table(result), result)


def _table(result: dict[str, Any]) -> str:
    """One line a row, in plain text."""
    lines = [f"{'':20}{'L1':>9}{'PSNR':>9}{'SSIM':>9}{'landmarks':>11}{'no face':>9}"]
    for name, row in result.items():
        if name == "conditions":
            continue
        error = row["landmark_error"]
        lines.append(
            f"{name:20}{row['l1']:9.4f}{row['psnr']:9.2f}{row['ssim']:9.3f}"
            f"{'n/a' if error is None else format(error, '.4f'):>11}{row['frames_without_face']:9d}"
        )
    return "\n".join(lines)

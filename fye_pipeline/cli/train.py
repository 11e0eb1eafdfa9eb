"""`fye train`: a model on rendered faces or on prepared videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fye_pipeline.cli.options import Debug, Quiet, UnneededTaskFile
from fye_pipeline.progress import Reporter, hush_libraries, logger


def train(
    config: Annotated[
        str, typer.Option(help="A recipe (tiny, smoke, tiny-gpu, paper) or a .toml or .json file of changes to one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the run.")] = Path("runs/train"),
    max_steps: Annotated[int | None, typer.Option(min=1, help="End each phase after this many steps.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A folder made by `fye prepare`. Default: rendered faces.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="A pipeline folder to go on from, a published name, or `shipped`.")
    ] = None,
    motion_init: Annotated[str | None, typer.Option(help="An AnimateDiff checkpoint for the motion modules.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    face_landmarker: UnneededTaskFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on rendered faces or on prepared videos; it can be interrupted and resumed at any time."""
    reporter = Reporter(quiet=quiet)
    from fye_pipeline.training.config import check_inputs, load_config
    from fye_pipeline.training.loop import train as run

    if not debug:
        hush_libraries()
    recipe = load_config(config, dataset=None if dataset is None else str(dataset), init=init, motion_init=motion_init)
    check_inputs(recipe)
    folder = run(recipe, output=output, resume=resume, max_steps=max_steps, on_progress=logger.info)
    reporter.result(f"{folder}: use it with `fye animate --model {folder}`", {"model": str(folder)})

"""`fye train`: a model on rendered faces or on prepared videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fye_pipeline.cli.options import Debug, ExpressionWeights, Quiet, UnneededTaskFile
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter, hush_libraries, logger

FANTASY = "fantasy-14b"  # the adapter of expressions on Wan, which is trained by a loop of its own


def train(
    config: Annotated[
        str,
        typer.Option(
            help="A recipe (tiny, smoke, tiny-gpu, tiny-light, paper, fantasy-14b) or a .toml or .json file of changes "
            "to one."
        ),
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
    expression_weights: ExpressionWeights = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    face_landmarker: UnneededTaskFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on rendered faces or on prepared videos; it can be interrupted and resumed at any time."""
    reporter = Reporter(quiet=quiet)
    if config == FANTASY:
        _train_fantasy(init, dataset, output, expression_weights, max_steps, resume=resume, reporter=reporter)
        return
    from fye_pipeline.training.config import check_inputs, load_config
    from fye_pipeline.training.loop import train as run

    if not debug:
        hush_libraries()
    recipe = load_config(config, dataset=None if dataset is None else str(dataset), init=init, motion_init=motion_init)
    check_inputs(recipe)
    folder = run(recipe, output=output, resume=resume, max_steps=max_steps, on_progress=logger.info)
    reporter.result(f"{folder}: use it with `fye animate --model {folder}`", {"model": str(folder)})


def _train_fantasy(
    init: str | None,
    dataset: Path | None,
    output: Path,
    weights: Path | None,
    max_steps: int | None,
    *,
    resume: bool,
    reporter: Reporter,
) -> None:
    """Train the adapter on Wan; without a model construct it without memory, and rehearse two steps on a tiny one."""
    hush_libraries()
    from fye_pipeline.training.fantasy import FantasyConfig, construct, rehearse, train_fantasy

    if init is None and dataset is None:
        sizes, losses = construct(), rehearse(max_steps or 2)
        told = ", ".join(f"{loss:.3f}" for loss in losses)
        text = (
            f"{FANTASY}: {sizes}; constructed without memory\n"
            f"{len(losses)} steps rehearsed on a tiny random Wan, losses {told}\n"
            f"to train it: --init WAN-FOLDER --dataset FOLDER (of fye prepare --people) --expression-weights FILE"
        )
        reporter.result(text, {"sizes": vars(sizes), "losses": losses})
        return
    if init is None or dataset is None:
        raise UserError(f"The recipe {FANTASY} needs both --init WAN-FOLDER and --dataset FOLDER, or neither.")
    folder = train_fantasy(
        Path(init), dataset, output, FantasyConfig(), weights=weights, max_steps=max_steps, resume=resume
    )
    reporter.result(f"{folder}: copy what is in it into {init}", {"adapter": str(folder)})

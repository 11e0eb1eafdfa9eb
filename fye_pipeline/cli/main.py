"""The `fye` command: every subcommand parses, calls one function, and turns its outcome into words and an exit code.

Exit codes: 0; 1 where rows of a manifest failed; 2 and one sentence for bad input; 130 after Ctrl-C. `--debug` shows
tracebacks.
"""

from __future__ import annotations

import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fye_pipeline.cli.animate import animate
from fye_pipeline.cli.evaluate import app as evaluate_app
from fye_pipeline.cli.options import (
    Debug,
    Json,
    MaxGap,
    NoFace,
    NoFaceRule,
    Overwrite,
    Quiet,
    TaskFile,
    UnneededTaskFile,
    check_cache,
)
from fye_pipeline.cli.prepare import prepare
from fye_pipeline.cli.tune import tune
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter, hush_libraries, logger

app = typer.Typer(
    name="fye",
    help="Animate a portrait with a driving face video (Follow-Your-Emoji-Faster).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Model files: list, fetch, check.", no_args_is_help=True)
app.command()(animate)
app.command()(prepare)
app.command()(tune)
app.add_typer(models_app, name="models")
app.add_typer(evaluate_app, name="evaluate")


class Split(StrEnum):
    """People of the rendered world: those a model may see in training, and those held back."""

    TRAIN = "train"
    HELD = "held"


@app.command()
def landmarks(
    video: Annotated[Path, typer.Argument(help="The video.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The landmark sequence (.npz) to write.")],
    preview: Annotated[Path | None, typer.Option(help="Also write a strip of frames over their landmarks.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Use the first frames only.")] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Follow the face from frame to frame: smoother.")] = False,
    face_index: Annotated[
        int | None, typer.Option(min=0, help="Which face, from the left. Default: the largest.")
    ] = None,
    no_face: NoFaceRule = NoFace.INTERPOLATE,
    max_gap: MaxGap = 0.5,
    face_landmarker: TaskFile = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Detect a face through a video and save its landmarks; the sequence drives `animate` without the video."""
    reporter = Reporter(quiet=quiet, as_json=as_json)
    from fye_pipeline.animate.driver import open_driver
    from fye_pipeline.animate.session import LazyDetector
    from fye_pipeline.media.source import open_source
    from fye_pipeline.storage.files import writable_target

    if output.suffix != ".npz":
        raise UserError(f"{output} must end in .npz, the format of landmark sequences.")
    targets = [writable_target(path, overwrite=overwrite) for path in (output, preview) if path is not None]
    lazy = LazyDetector(face_landmarker, mode="video" if smooth else "image")
    with reporter.progress() as on_progress, lazy as detector:
        driver = open_driver(video, frames=frames).read(
            detector, no_face=no_face.value, max_gap=max_gap, face_index=face_index, on_progress=on_progress
        )
    sequence = driver.sequence
    sequence.save(output)
    if preview is not None:
        from PIL import Image

        from fye_pipeline.landmarks.drawing import preview_strip

        Image.fromarray(preview_strip(open_source(video).frames(len(sequence)), sequence)).save(preview)
    gaps = [f"{start}-{stop - 1}" for start, stop in sequence.gaps()]
    filled = f"; frames without a face, filled in: {', '.join(gaps)}" if gaps else ""
    reporter.result(
        f"{output}: {len(sequence)} frames at {float(driver.fps):g} fps{filled}",
        {
            "output": [str(path) for path in targets],
            "frames": len(sequence),
            "fps": str(driver.fps),
            "frames_without_face": sequence.gaps(),
        },
    )


@app.command()
def train(
    config: Annotated[
        str, typer.Option(help="A recipe (tiny, smoke, tiny-gpu, paper) or a .toml or .json file of changes to one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the run.")] = Path("runs/train"),
    max_steps: Annotated[int | None, typer.Option(min=1, help="End each phase after this many steps.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A folder made by `fye prepare`. Default: rendered faces.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="A pipeline folder to go on from, or `shipped`.")] = None,
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


@app.command()
def world(
    sheet: Annotated[Path, typer.Option(help="The picture to write: a row a person, a column a moment.")],
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    split: Annotated[Split, typer.Option(help="Which people.")] = Split.HELD,
    rows: Annotated[int, typer.Option(min=1)] = 8,
    columns: Annotated[int, typer.Option(min=1)] = 10,
    face_landmarker: UnneededTaskFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a contact sheet of the rendered world that the shipped model was trained on."""
    reporter = Reporter(quiet=quiet)
    from PIL import Image

    from fye_pipeline.landmarks.geometry import CanonicalFace
    from fye_pipeline.storage.files import writable_target
    from fye_pipeline.world import World
    from fye_pipeline.world.dataset import contact_sheet

    target = writable_target(sheet, overwrite=overwrite)
    rendered = World(CanonicalFace.load(), seed=seed)
    picture = contact_sheet(rendered, split=split.value, rows=rows, columns=columns)
    Image.fromarray(picture).save(target)
    reporter.result(f"{target}: {rows} people, {columns} moments each", {"sheet": str(target)})


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="face-landmarker")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a model file into the user's cache folder; a download that was cut goes on."""
    from fye_pipeline.landmarks.model_file import fetch_face_landmarker

    if name != "face-landmarker":
        raise UserError(f"There is no model {name!r} to fetch; `fye models list` names them.")
    reporter = Reporter(quiet=quiet, as_json=as_json)
    with reporter.progress() as on_progress:
        path = fetch_face_landmarker(on_progress=on_progress)
    reporter.result(str(path), {"path": str(path)})


@models_app.command("list")
def models_list(as_json: Json = False, debug: Debug = False) -> None:
    """Show the model files: sizes, licences, where they are expected and whether they are right."""
    from fye_pipeline.models.files import known_files

    rows = known_files()
    Reporter(as_json=as_json).result("\n".join(map(str, rows)), {"models": [row.to_dict() for row in rows]})


@models_app.command("check")
def models_check(
    folder: Annotated[
        Path | None, typer.Argument(help="A model of your own. Default: those of `fye models list`.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check hashes and that a model of your own loads; what is missing or wrong is an error."""
    from fye_pipeline.models.files import describe_folder, known_files

    rows = known_files() if folder is None else [describe_folder(folder)]
    Reporter(as_json=as_json).result(
        "\n".join(row.details() for row in rows), {"models": [row.to_dict() for row in rows]}
    )
    for row in rows:
        if row.state != "ok":
            raise UserError(f"{row.name} ({row.path}): {row.state}")
    if folder is not None:
        import torch

        from fye_pipeline.animate.session import load_model

        hush_libraries()
        load_model(folder, torch.device("cpu"), torch.float16)


def main() -> None:
    """Run `fye`; no traceback reaches the user unless `--debug` is given."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("GLOG_minloglevel", "2")  # MediaPipe's C++ notes
    if not debug:
        warnings.simplefilter("ignore")
    try:
        app(obj=check_cache)
    except Exception as error:
        if debug:
            raise
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"fye: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

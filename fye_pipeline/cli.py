"""The `fye` command: every subcommand parses, calls one function, and turns its outcome into words and an exit code.

Exit codes: 0; 2 and one sentence for bad input; 130 after Ctrl-C. `--debug` shows tracebacks.
"""

from __future__ import annotations

import os
import sys
import warnings
from enum import StrEnum
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from fye_pipeline.console import Reporter
from fye_pipeline.errors import UserError

app = typer.Typer(
    name="fye",
    help="Animate a portrait with a driving face video (Follow-Your-Emoji-Faster).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Model files: list, fetch, check.", no_args_is_help=True)
app.add_typer(models_app, name="models")


class NoFace(StrEnum):
    """What to do with driving frames that show no face."""

    INTERPOLATE = "interpolate"
    HOLD = "hold"
    ERROR = "error"


class Long(StrEnum):
    """How a video is made that is longer than one clip of the model."""

    TILES = "tiles"
    UNIFORM = "uniform"


class Cut(StrEnum):
    """Where the UNet is cut at a predicted step."""

    OUTPUT = "output"
    OUTER = "outer"
    BRANCHES = "branches"


class Split(StrEnum):
    """People of the rendered world: those a model may see in training, and those held back."""

    TRAIN = "train"
    HELD = "held"


class Preset(StrEnum):
    """Recipes of the cache."""

    PAPER = "paper"
    FAST = "fast"
    BALANCED = "balanced"
    FAITHFUL = "faithful"


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is no frame rate such as 25 or 30000/1001.") from None


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more on the way.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and library warnings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
TaskFile = Annotated[Path | None, typer.Option("--face-landmarker", help="MediaPipe's face_landmarker.task.")]
NoFaceRule = Annotated[NoFace, typer.Option("--no-face", help="What to do with frames that show no face.")]
MaxGap = Annotated[float, typer.Option("--max-gap", help="Longest gap without a face, in seconds.")]


@app.command()
def animate(
    reference: Annotated[Path | None, typer.Option(help="The portrait. Default: a rendered one that ships.")] = None,
    driving: Annotated[
        Path | None, typer.Option(help="A video, or a landmark sequence (.npz, .npy). Default: one that ships.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 to write.")] = Path("animated.mp4"),
    model: Annotated[Path | None, typer.Option(help="A pipeline folder. Default: the model that ships.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 3.5,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    frames: Annotated[int | None, typer.Option(help="Use the first frames of the driver only.")] = None,
    fps: Annotated[Fraction | None, typer.Option(parser=_fraction, help="Frame rate. Default: the driver's.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side. Default: the model's.")] = None,
    long: Annotated[Long, typer.Option(help="More frames than a clip: overlapping tiles, or windows.")] = Long.TILES,
    interval: Annotated[int | None, typer.Option("--N", help="Cache: one full step in N [default: 3].")] = None,
    order: Annotated[int | None, typer.Option(help="Cache: highest difference used [default: 2].")] = None,
    cut: Annotated[Cut | None, typer.Option(help="Cache: where the UNet is cut [default: outer].")] = None,
    preset: Annotated[Preset | None, typer.Option(help="Cache: a recipe for what is left out.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step in full.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also run uncached: PSNR, side-by-side video.")] = False,
    no_face: NoFaceRule = NoFace.INTERPOLATE,
    max_gap: MaxGap = 0.5,
    unaligned: Annotated[
        bool, typer.Option("--unaligned", help="Draw the driver's own landmarks; no face is sought in the portrait.")
    ] = False,
    reference_landmarks: Annotated[
        Path | None, typer.Option(help="The portrait's landmarks (.npz of one frame), so that none are detected.")
    ] = None,
    face_landmarker: TaskFile = None,
    no_watermark: Annotated[
        bool, typer.Option("--no-watermark", help="Leave out the visible mark; see USAGE.md.")
    ] = False,
    i_accept_the_terms: Annotated[
        bool, typer.Option("--i-accept-the-terms", help="You have read and accept USAGE.md.")
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep an output made with the same settings.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Animate a portrait with a driving face video; without arguments, the demo that ships."""
    if no_watermark and not i_accept_the_terms:
        raise UserError("--no-watermark needs --i-accept-the-terms; the terms are in USAGE.md.")
    reporter = Reporter(quiet=quiet, as_json=as_json, verbose=verbose)
    reporter.detail("loading torch and diffusers")
    from fye_pipeline import animation

    if not debug:
        _hush_libraries()
    if reference is None and reference_landmarks is None:
        reference_landmarks = animation.DEMO_PORTRAIT_LANDMARKS
    settings = animation.AnimationSettings(
        reference=reference or animation.DEMO_PORTRAIT,
        driving=driving or animation.DEMO_DRIVING,
        model=model or animation.SHIPPED_MODEL,
        steps=steps,
        guidance=guidance,
        seed=seed,
        frames=frames,
        fps=fps,
        size=size,
        long=long.value,
        cache=None if no_cache else _cache_options(interval, order, cut, preset),
        compare=compare,
        watermark=not no_watermark,
        no_face=no_face.value,
        max_gap=max_gap,
        unaligned=unaligned,
        reference_landmarks=reference_landmarks,
    )
    if resume and not overwrite and animation.is_finished(output, settings):
        text = f"{output} was made with the same settings; nothing to do."
        reporter.result(text, {"output": str(output), "resumed": True})
        return
    with reporter.progress() as on_progress:
        result = animation.animate(
            settings,
            output,
            overwrite=overwrite,
            face_landmarker=face_landmarker,
            on_progress=on_progress,
            on_note=reporter.note,
        )
    reporter.result(str(result), result.to_dict())


def _hush_libraries() -> None:
    """No bars and notes of diffusers and transformers between ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _cache_options(N: int | None, order: int | None, cut: Cut | None, preset: Preset | None) -> dict[str, Any]:
    """What `ticache.apply` is given: the command's defaults where no preset speaks, and whatever was asked for."""
    import ticache

    defaults = {"N": 3, "order": 2, "cut": "outer"} if preset in (None, Preset.PAPER) else {}
    asked = {"N": N, "order": order, "cut": cut and cut.value, "preset": preset and preset.value}
    options = defaults | {name: value for name, value in asked.items() if value is not None}
    try:
        ticache.CacheConfig(**{name: value for name, value in options.items() if name != "preset"})
    except ValueError as error:
        raise UserError(f"Cache: {error}.") from error
    return options


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
    from fye_pipeline import inputs
    from fye_pipeline.files import writable_target
    from fye_pipeline.video import read_frames

    if output.suffix != ".npz":
        raise UserError(f"{output} must end in .npz, the format of landmark sequences.")
    targets = [writable_target(path, overwrite=overwrite) for path in (output, preview) if path is not None]
    lazy = inputs.LazyDetector(face_landmarker, reporter.note, mode="video" if smooth else "image")
    with reporter.progress() as on_progress, lazy as detector:
        driver = inputs.read_driver(
            video,
            detector,
            frames=frames,
            no_face=no_face.value,
            max_gap=max_gap,
            face_index=face_index,
            on_progress=on_progress,
            on_note=reporter.note,
        )
    sequence = driver.sequence
    sequence.save(output)
    if preview is not None:
        from PIL import Image

        from fye_pipeline.landmarks.preview import preview_strip

        Image.fromarray(preview_strip(islice(read_frames(video), len(sequence)), sequence)).save(preview)
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
    config: Annotated[str, typer.Option(help="A recipe (tiny, smoke) or a .toml or .json file of changes to it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the run.")] = Path("runs/train"),
    max_steps: Annotated[int | None, typer.Option(min=1, help="End each phase after this many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    face_landmarker: TaskFile = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on rendered faces; it can be interrupted and resumed at any time."""
    reporter = Reporter(quiet=quiet)
    from fye_pipeline.inputs import obtain_face_landmarker
    from fye_pipeline.training.config import load_config
    from fye_pipeline.training.loop import train as run

    if not debug:
        _hush_libraries()
    recipe = load_config(config)
    task = obtain_face_landmarker(face_landmarker, reporter.note)
    folder = run(
        recipe, output=output, resume=resume, max_steps=max_steps, face_landmarker=task, on_progress=reporter.note
    )
    reporter.result(f"{folder}: use it with `fye animate --model {folder}`", {"model": str(folder)})


@app.command()
def world(
    sheet: Annotated[Path, typer.Option(help="The picture to write: a row a person, a column a moment.")],
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    split: Annotated[Split, typer.Option(help="Which people.")] = Split.HELD,
    rows: Annotated[int, typer.Option(min=1)] = 8,
    columns: Annotated[int, typer.Option(min=1)] = 10,
    face_landmarker: TaskFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a contact sheet of the rendered world that the shipped model was trained on."""
    reporter = Reporter(quiet=quiet)
    from PIL import Image

    from fye_pipeline.files import writable_target
    from fye_pipeline.inputs import obtain_face_landmarker
    from fye_pipeline.landmarks.geometry import CanonicalFace
    from fye_pipeline.world import World
    from fye_pipeline.world.dataset import contact_sheet

    target = writable_target(sheet, overwrite=overwrite)
    task = obtain_face_landmarker(face_landmarker, reporter.note)
    rendered = World(CanonicalFace.from_task(task), seed=seed)
    picture = contact_sheet(rendered, split=split.value, rows=rows, columns=columns)
    Image.fromarray(picture).save(target)
    reporter.result(f"{target}: {rows} people, {columns} moments each", {"sheet": str(target)})


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="face-landmarker")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a model file into the user's cache folder."""
    from fye_pipeline.landmarks.model_file import fetch_face_landmarker

    if name != "face-landmarker":
        raise UserError(f"There is no model {name!r} to fetch; `fye models list` names them.")
    path = fetch_face_landmarker()
    Reporter(quiet=quiet).result(str(path), {"path": str(path)})


@models_app.command("list")
def models_list(as_json: Json = False, debug: Debug = False) -> None:
    """Show the model files, where they are expected and whether they are right."""
    from fye_pipeline.model_files import known_files

    rows = known_files()
    text = "\n".join(f"{row['name']:<16} {row['licence']:<37} {row['path']}: {row['state']}" for row in rows)
    Reporter(as_json=as_json).result(text, {"models": rows})


@models_app.command("check")
def models_check(debug: Debug = False) -> None:
    """Check the model files' hashes; the first that is missing or wrong is an error."""
    from fye_pipeline.model_files import known_files

    for row in known_files():
        if row["state"] != "ok":
            raise UserError(f"{row['name']} ({row['path']}): {row['state']}")
        print(f"{row['name']}: ok")


def main() -> None:
    """Run `fye`; no traceback reaches the user unless `--debug` is given."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("GLOG_minloglevel", "2")  # MediaPipe's C++ notes
    if not debug:
        warnings.simplefilter("ignore")
    try:
        app()
    except Exception as error:
        if debug:
            raise
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"fye: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

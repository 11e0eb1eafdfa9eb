"""`fye evaluate`: a model on heads that it has never seen (`rendered`), or portraits and drivers of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from fye_pipeline.animate.config import SHIPPED_MODEL, check_terms
from fye_pipeline.cli.options import (
    AcceptTerms,
    AlsoWithCache,
    Debug,
    Device,
    FiguresFile,
    Guidance,
    Jobs,
    Model,
    NoWatermark,
    Overwrite,
    Quiet,
    Steps,
    TaskFile,
    WithCache,
)
from fye_pipeline.errors import UserError
from fye_pipeline.models.published import model_folder
from fye_pipeline.progress import Reporter, hush_libraries

Order = Annotated[int, typer.Option(min=0, help="Cache: highest difference used.")]
Cut = Annotated[str, typer.Option(help="Cache: where the UNet is cut.")]
FiguresWithTables = Annotated[
    Path, typer.Option("--json", help="Figures; tables beside it as .md, videos in <stem>_files/.")
]
Outputs = Annotated[Path | None, typer.Option(help="Measure finished videos <name>.mp4 of this folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]


class Group(typer.core.TyperGroup):
    """Takes what is no command's name as the manifest of the command `manifest`: `fye evaluate my.csv`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["manifest", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=Group, help="Measure a model.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure a model: on heads that it has never seen (rendered), or on portraits and drivers of a MANIFEST.

    `fye evaluate MANIFEST` is short for `fye evaluate manifest MANIFEST`.
    """


@app.command()
def rendered(
    model: Model = None,
    split: Annotated[str, typer.Option(help="Which people: held, train or demo.")] = "held",
    people: Annotated[int, typer.Option(min=1, max=3, help="People in a picture, each with their own driver.")] = 1,
    clips: Annotated[
        int | None, typer.Option(min=2, help="How many clips, each of another head. Default: 16, of several people 3.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a clip. Default: 16, of several people 8.")
    ] = None,
    steps: Steps = 30,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Which heads and which noise.")] = 0,
    world: Annotated[int, typer.Option(min=1, max=2, help="Version of the rendered world.")] = 1,
    detail: Annotated[bool, typer.Option("--detail/--plain", help="With the portrait's detail, as `animate`.")] = True,
    cross: Annotated[bool, typer.Option("--cross/--no-cross", help="Also portraits with other heads' clips.")] = True,
    interval: AlsoWithCache = None,
    order: Order = 2,
    cut: Cut = "outer",
    json_file: FiguresFile = None,
    face_landmarker: TaskFile = None,
    jobs: Jobs = 1,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Self- and cross-reenactment on the rendered world, beside a still portrait and wrong inputs.

    --people 2 or 3 measures the shipped model on pictures of so many, beside its ablations.
    """
    reporter = Reporter(quiet=quiet)
    if people > 1:
        alone = {
            "--model": model is not None,
            "--split": split != "held",
            "--guidance": guidance is not None,
            "--world": world != 1,
            "--plain": not detail,
            "--no-cross": not cross,
            "--N": interval is not None,
            "--jobs": jobs != 1,
        }
        if unfit := [flag for flag, given in alone.items() if given]:
            raise UserError(f"{', '.join(unfit)} cannot be used with --people {people}: leave it out.")
    if split not in ("held", "train", "demo"):
        raise UserError(f"--split must be held, train or demo, got {split!r}.")
    if not debug:
        hush_libraries()
    from fye_pipeline.animate.session import obtain_face_landmarker, recommended_guidance
    from fye_pipeline.evaluation import rendered as reenactment
    from fye_pipeline.evaluation.run import Run
    from fye_pipeline.evaluation.summary import describe

    run = Run(_target(json_file, overwrite=overwrite, resume=resume), jobs, resume, overwrite)
    if people > 1:
        from fye_pipeline.evaluation import people as groups

        task = obtain_face_landmarker(face_landmarker)
        several = groups.Plan(people, clips or 3, frames or 8, steps, seed)
        with reporter.progress() as on_progress:
            result = groups.evaluate_people(several, run, face_landmarker=task, device=device, on_progress=on_progress)
        reporter.result(groups.describe(result), result)
        return
    folder = model_folder(model or SHIPPED_MODEL)
    plan = reenactment.Plan(
        split=split,
        clips=clips or 16,
        seed=seed,
        frames=frames or 16,
        steps=steps,
        guidance=recommended_guidance(folder) if guidance is None else guidance,
        cache=_cache(interval, order, cut),
        cross=cross,
        detail=detail,
        world=world,
    )
    with reporter.progress() as on_progress:
        result = reenactment.evaluate_rendered(
            reenactment.FolderModel(folder, device),
            plan,
            run,
            face_landmarker=obtain_face_landmarker(face_landmarker),
            on_progress=on_progress,
        )
    reporter.result(describe(result), result)


@app.command()
def exprbench(
    source: Annotated[
        Path | None,
        typer.Option("--manifest", help="JSON list of portrait, drivers, assign, truth. Default: a rendered bench."),
    ] = None,
    json_file: FiguresWithTables = Path("exprbench.json"),
    singles: Annotated[int, typer.Option(min=0, help="Rendered: pictures of one head.")] = 40,
    multis: Annotated[int, typer.Option(min=0, help="Rendered: pictures of two heads.")] = 20,
    outputs: Outputs = None,
    leak: Annotated[
        bool, typer.Option("--leak/--no-leak", help="Exchange drivers: two more videos for every pair of faces.")
    ] = True,
    model: Model = None,
    frames: Annotated[int, typer.Option(min=1, help="Use the first frames of the drivers only.")] = 16,
    steps: Steps = 30,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Which heads (rendered), and which noise.")] = 0,
    interval: WithCache = None,
    order: Order = 2,
    cut: Cut = "outer",
    no_watermark: NoWatermark = False,
    i_accept_the_terms: AcceptTerms = False,
    face_landmarker: TaskFile = None,
    jobs: Jobs = 1,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """One face or several, each against its own driver: landmarks, gaze, expression, pose, and what leaks over."""
    reporter = Reporter(quiet=quiet)
    check_terms(watermark=not no_watermark, accepted=i_accept_the_terms)
    _check_outputs(outputs)
    if source is None and singles + multis == 0:
        raise UserError("--singles and --multis are both 0: nothing is left to measure.")
    if not debug:
        hush_libraries()
    from fye_pipeline.animate.session import obtain_face_landmarker
    from fye_pipeline.evaluation.exprbench import BenchEvaluator, describe, evaluate_exprbench
    from fye_pipeline.evaluation.exprbench_entries import RenderedBench, read_entries
    from fye_pipeline.evaluation.run import Run

    target = _target_with_tables(json_file, overwrite=overwrite, resume=resume)
    folder = target.with_name(f"{target.stem}_files")
    if source is None:
        source = RenderedBench(singles, multis, frames, seed).make(folder / "bench")
    settings: dict[str, Any] = {
        "model": model_folder(model or SHIPPED_MODEL),
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "frames": frames,
        "cache": _cache(interval, order, cut),
        "watermark": not no_watermark,
        "audio": False,
    }
    evaluator = BenchEvaluator(
        entries=tuple(read_entries(source)),
        settings=settings,
        folder=folder,
        outputs=outputs,
        leak=leak,
        face_landmarker=obtain_face_landmarker(face_landmarker),
        device=device,
    )
    with reporter.progress() as on_progress:
        result = evaluate_exprbench(evaluator, Run(target, jobs, resume, overwrite), on_progress=on_progress)
    reporter.result(describe(result), result)
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def manifest(
    source: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="A .csv or .jsonl, or a folder with portraits/ and driving/.")
    ],
    json_file: FiguresWithTables = Path("evaluation.json"),
    outputs: Outputs = None,
    method: Annotated[str | None, typer.Option(help="What to call the method in the tables.")] = None,
    portraits: Annotated[int | None, typer.Option(min=1, help="Only the first so many of a folder.")] = None,
    drivers: Annotated[int | None, typer.Option(min=1, help="Only the first so many of a folder.")] = None,
    model: Model = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Use the first frames only.")] = None,
    steps: Steps = 30,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    crop_only: Annotated[bool, typer.Option("--crop-only", help="Measure the animated crop, not pasted back.")] = False,
    interval: WithCache = None,
    order: Order = 2,
    cut: Cut = "outer",
    lpips: Annotated[Path | None, typer.Option(help="torchvision's AlexNet: .pth or .safetensors.")] = None,
    fid: Annotated[Path | None, typer.Option(help="StyleGAN's Inception: TorchScript, a program you trust.")] = None,
    fvd: Annotated[Path | None, typer.Option(help="StyleGAN-V's I3D: TorchScript, a program you trust.")] = None,
    arcface: Annotated[Path | None, typer.Option(help="ArcFace: .onnx, or TorchScript.")] = None,
    hyperiqa: Annotated[Path | None, typer.Option(help="HyperIQA: TorchScript, or .onnx.")] = None,
    no_watermark: NoWatermark = False,
    i_accept_the_terms: AcceptTerms = False,
    face_landmarker: TaskFile = None,
    jobs: Jobs = 1,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Animate every pair of a manifest (or take finished videos), and compare with drivers, portraits and truths."""
    reporter = Reporter(quiet=quiet)
    check_terms(watermark=not no_watermark, accepted=i_accept_the_terms)
    _check_outputs(outputs)
    if not debug:
        hush_libraries()
    from fye_pipeline.animate.config import AnimationSettings
    from fye_pipeline.animate.session import obtain_face_landmarker
    from fye_pipeline.evaluation.metric_networks import Weights
    from fye_pipeline.evaluation.pair_evaluator import PairEvaluator, evaluate_pairs
    from fye_pipeline.evaluation.pairs import read_pairs
    from fye_pipeline.evaluation.run import Run
    from fye_pipeline.evaluation.summary import describe_pairs

    target = _target_with_tables(json_file, overwrite=overwrite, resume=resume)
    evaluator = PairEvaluator(
        pairs=tuple(read_pairs(source, portraits=portraits, drivers=drivers)),
        settings=AnimationSettings(
            model=model_folder(model or SHIPPED_MODEL),
            steps=steps,
            guidance=guidance,
            seed=seed,
            frames=frames,
            cache=_cache(interval, order, cut),
            watermark=not no_watermark,
            framing="crop" if crop_only else "paste",
            audio=False,
        ),
        folder=target.with_name(f"{target.stem}_files"),
        weights=Weights(lpips, fid, fvd, arcface, hyperiqa),
        outputs=outputs,
        face_landmarker=obtain_face_landmarker(face_landmarker),
        device=device,
    )
    name = method or ("this model" if outputs is None else outputs.resolve().name)
    run = Run(target, jobs, resume, overwrite)
    with reporter.progress() as on_progress:
        result = evaluate_pairs(evaluator, run, method=name, on_progress=on_progress)
    reporter.result(describe_pairs(result), result)
    if result["failed"]:
        if reporter.quiet:
            for row, reason in result["failed"].items():
                print(f"fye: {row}: {reason}", file=sys.stderr)
        raise typer.Exit(1)


def _check_outputs(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --outputs takes the folder of the finished videos.")


def _target_with_tables(path: Path, *, overwrite: bool, resume: bool) -> Path:
    """As `_target`, of a result whose tables stand beside it."""
    target = _target(path, overwrite=overwrite, resume=resume)
    assert target is not None
    if target.suffix != ".json":
        raise UserError(f"{target} must end in .json; the tables are written beside it as .md.")
    return target


def _target(path: Path | None, *, overwrite: bool, resume: bool) -> Path | None:
    """The file of the result; with `resume` it may be there already."""
    from fye_pipeline.storage.files import writable_target

    return None if path is None else writable_target(path, overwrite=overwrite or resume)


def _cache(interval: int | None, order: int, cut: str) -> dict[str, Any] | None:
    """Options of `ticache.apply`, checked before any long work; None without a cache."""
    if interval is None:
        return None
    from fye_pipeline.pipeline import check_cache_options

    options = {"N": interval, "order": order, "cut": cut}
    check_cache_options(options)
    return options

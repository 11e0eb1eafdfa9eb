"""`fye emoji`: still pictures of one person's identity with another picture's expression (EmojiDiff)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fye_pipeline.animate.config import check_terms
from fye_pipeline.cli.options import (
    AcceptTerms,
    AlsoWithCache,
    Debug,
    Device,
    FiguresFile,
    Json,
    NoWatermark,
    Overwrite,
    Quiet,
    Steps,
    TaskFile,
    WithCache,
)
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter, hush_libraries, logger

app = typer.Typer(help="Still pictures: one person's identity, another's expression.", no_args_is_help=True)

ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A model's folder. Default: the tiny one that ships.")
]
Work = Annotated[Path, typer.Option("--work", help="The folder of the training run.")]
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@app.callback()
def emoji() -> None:
    """Still pictures of one person's identity with another picture's expression, on Stable Diffusion (EmojiDiff)."""


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help='What to draw, such as "an ink painting of a man".')],
    identity: Annotated[Path, typer.Option(help="A portrait of the person.")],
    expression: Annotated[list[Path], typer.Option(help="A picture of the expression; repeat it for a sheet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")],
    model: ModelFolder = None,
    steps: Steps = 30,
    guidance: Annotated[float | None, typer.Option(help="Default: what the model recommends.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    identity_scale: Annotated[float | None, typer.Option(min=0, help="How much the identity counts.")] = None,
    expression_scale: Annotated[float | None, typer.Option(min=0, help="How much the expression counts.")] = None,
    number: Annotated[int, typer.Option(min=1, help="Pictures of each expression.")] = 1,
    interval: WithCache = None,
    no_watermark: NoWatermark = False,
    i_accept_the_terms: AcceptTerms = False,
    face_landmarker: TaskFile = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A picture of a person with an expression; several expressions or numbers give a sheet."""
    reporter = Reporter(quiet=quiet, as_json=as_json)
    check_terms(watermark=not no_watermark, accepted=i_accept_the_terms)
    if output.suffix.lower() not in PICTURES:
        raise UserError(f"{output} must end in {', '.join(PICTURES)}.")
    if not debug:
        hush_libraries()
    from fye_pipeline.animate.session import choose_device, obtain_face_landmarker
    from fye_pipeline.emoji.pipeline import SHIPPED, EmojiPipeline, open_finder
    from fye_pipeline.emoji.sheet import make_sheet, write_picture
    from fye_pipeline.storage.files import writable_target

    target = writable_target(output, overwrite=overwrite)
    with open_finder(obtain_face_landmarker(face_landmarker)) as find:
        pipe = EmojiPipeline.from_pretrained(model or SHIPPED, device=str(choose_device(device)), find_faces=find)
        if interval is not None:
            from fye_pipeline.pipeline import check_cache_options

            check_cache_options({"N": interval})
            pipe.enable_cache(N=interval)
        images = pipe(
            prompt,
            identity=identity,
            expression=list(expression),
            identity_scale=identity_scale,
            expression_scale=expression_scale,
            num_inference_steps=steps,
            guidance_scale=guidance,
            num_images_per_prompt=number,
            seed=seed,
        ).images
    sheet = make_sheet(images, columns=number if number > 1 else len(images), mark=not no_watermark)
    write_picture(target, sheet, prompt=prompt)
    many = f", {len(images)} pictures" if len(images) > 1 else ""
    told: dict[str, Any] = {"output": str(target), "pictures": len(images), "prompt": prompt, "seed": seed}
    if pipe.session is not None:
        told["cache"] = pipe.session.report().to_dict()
    reporter.result(f"{target}: {sheet.width} x {sheet.height} pixels{many}", told)


@app.command()
def train(
    stage: Annotated[str, typer.Option(help="networks, identity, base, refined, refined_no_swap, ..., oracle, align.")],
    work: Work = Path("runs/emoji"),
    init: Annotated[Path | None, typer.Option(help="A model's folder, or `shipped`, to go on from (identity).")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="Of people and steps, for a trial.")] = 1.0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a stage on the rendered world; it can be interrupted, and goes on where it was."""
    reporter = Reporter(quiet=quiet)
    if not debug:
        hush_libraries()
    from fye_pipeline.emoji.pipeline import SHIPPED
    from fye_pipeline.emoji.workspace import STAGES, Workspace

    if stage not in STAGES:
        raise UserError(f"--stage must be one of {', '.join(STAGES)}, got {stage!r}.")
    workspace = Workspace(work, share=share, report=logger.info)
    if init is not None:
        workspace.begin_from(SHIPPED if str(init) == "shipped" else init)
    workspace.train(stage)
    reporter.result(f"{work}: {stage} has ended", {"work": str(work), "stage": stage})


@app.command()
def iterate(
    work: Work = Path("runs/emoji"),
    count: Annotated[int, typer.Option(min=1, help="How many pairs are made.")] = 2000,
    swap: Annotated[str, typer.Option(help="none, recolour, mesh or module:function.")] = "recolour",
    absolute: Annotated[bool, typer.Option("--absolute", help="The paper's limits, not the best 83 %.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of people and noise.")] = 0,
    interval: Annotated[int, typer.Option("--N", min=1, help="The cache: one full step in N; 1 is without.")] = 3,
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="Of people and pairs, for a trial.")] = 1.0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make each expression again on another person, so that only the expression is shared; goes on where it was."""
    reporter = Reporter(quiet=quiet)
    if not debug:
        hush_libraries()
    from fye_pipeline.emoji.pairs import KEPT_SHARE, IterateConfig, load_swap
    from fye_pipeline.emoji.workspace import Workspace

    load_swap(swap)
    config = IterateConfig(count=count, swap=swap, seed=seed, keep=None if absolute else KEPT_SHARE, interval=interval)
    with reporter.progress() as on_progress:
        verdicts = Workspace(work, share=share, report=logger.info).iterate(
            config, lambda done, total: on_progress("pairs", done, total)
        )
    reasons = {r: sum(v.reason == r for v in verdicts) for r in ("exp", "lms", "lookalike")}
    kept = sum(v.reason is None for v in verdicts)
    left = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    reporter.result(
        f"{kept} of {len(verdicts)} pairs are kept ({kept / len(verdicts):.0%}); left out: {left}",
        {"pairs": len(verdicts), "kept": kept, "left_out": reasons},
    )


@app.command()
def layers(
    model: ModelFolder = None,
    pairs: Annotated[int, typer.Option(min=8, help="How many pairs each set of layers is measured on.")] = 40,
    json_file: FiguresFile = None,
    table: Annotated[Path | None, typer.Option(help="The folder of the measuring networks.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure which layers carry the expression: what each adds in the face, for expression and for style."""
    reporter = Reporter(quiet=quiet)
    if not debug:
        hush_libraries()
    from fye_pipeline.emoji.evaluate import write
    from fye_pipeline.emoji.pipeline import SHIPPED
    from fye_pipeline.emoji.reports import measure_layers
    from fye_pipeline.storage.files import writable_target

    target = None if json_file is None else writable_target(json_file, overwrite=overwrite)
    with reporter.progress() as on_progress:
        words, result = measure_layers(model or SHIPPED, table, pairs, on_progress)
    write(result, target)
    reporter.result(words, result)


evaluation = typer.Typer(help="Measure the adapters.", no_args_is_help=True)
app.add_typer(evaluation, name="evaluate")


@evaluation.callback()
def evaluate() -> None:
    """Measure the adapters on people and expressions that they have never seen."""


@evaluation.command()
def rendered(
    model: ModelFolder = None,
    pairs: Annotated[int, typer.Option(min=2, help="How many pictures a row.")] = 200,
    steps: Steps = 30,
    guidance: Annotated[float, typer.Option(min=1, help="Classifier-free guidance.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Which pairs and which noise.")] = 0,
    interval: AlsoWithCache = None,
    table: Annotated[
        Path | None, typer.Option(help="The folder of the rows' adapters and the measuring networks.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Also keep every row's pictures in this folder.")] = None,
    json_file: FiguresFile = None,
    face_landmarker: TaskFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Every step of the method in a row: without expression, base, refined, aligned, and the true pairs' oracle."""
    reporter = Reporter(quiet=quiet)
    if not debug:
        hush_libraries()
    from fye_pipeline.animate.session import obtain_face_landmarker
    from fye_pipeline.emoji.evaluate import Plan, describe, write
    from fye_pipeline.emoji.pipeline import SHIPPED
    from fye_pipeline.emoji.reports import measure_table
    from fye_pipeline.storage.files import writable_target

    target = None if json_file is None else writable_target(json_file, overwrite=overwrite)
    task = obtain_face_landmarker(face_landmarker)
    plan = Plan(pairs=pairs, steps=steps, guidance=guidance, seed=seed, cache=interval)
    with reporter.progress() as on_progress:
        result = measure_table(model or SHIPPED, table, plan, task=task, keep=keep, on_progress=on_progress)
    write(result, target)
    reporter.result(describe(result), result)


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the finished model.")],
    work: Work = Path("runs/emoji"),
    stage: Annotated[str, typer.Option(help="Whose adapter: aligned, refined, base, oracle.")] = "aligned",
    table: Annotated[
        Path | None, typer.Option(help="Also the other rows' adapters and judges, into this folder.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a trained model: a diffusers base, two ordinary IP-Adapter files, and `emoji.json`."""
    reporter = Reporter(quiet=quiet)
    if not debug:
        hush_libraries()
    from fye_pipeline.emoji.workspace import Workspace

    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already; add --overwrite or choose another folder.")
    Workspace(work, report=logger.info).export(output, table, stage)
    reporter.result(f"{output}: use it with `fye emoji generate --model {output}`", {"model": str(output)})

"""`fye models`: model files are listed, fetched and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fye_pipeline.cli.options import Debug, Json, Quiet
from fye_pipeline.errors import UserError
from fye_pipeline.models.published import PublishedModel, published
from fye_pipeline.progress import Reporter, hush_libraries, logger

app = typer.Typer(help="Model files: list, fetch, check.", no_args_is_help=True)

StoredAs = Literal["float16", "float32"]


@app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="face-landmarker, or a published model: follow-your-emoji.")],
    stored_as: Annotated[
        StoredAs, typer.Option("--dtype", help="A published model's numbers: float16 is what its authors compute in.")
    ] = "float16",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a large download.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a model into the user's cache folder; a download that was cut goes on."""
    from fye_pipeline.landmarks.model_file import fetch_face_landmarker

    reporter = Reporter(quiet=quiet, as_json=as_json)
    if name != "face-landmarker":
        _get_published(published(name), stored_as, reporter, ask=not yes, debug=debug)
        return
    with reporter.progress() as on_progress:
        path = fetch_face_landmarker(on_progress=on_progress)
    reporter.result(str(path), {"path": str(path)})


def _get_published(model: PublishedModel, stored_as: StoredAs, reporter: Reporter, *, ask: bool, debug: bool) -> None:
    """Tell what is to be fetched, ask where somebody is there to answer, and fetch it."""
    use = f"use it with `fye animate --model {model.name}`"
    if model.is_there:
        reporter.result(f"{model.folder} is there; {use}", {"path": str(model.folder), "fetched": False})
        return
    import huggingface_hub.utils.logging

    from fye_pipeline.animate.published import fetch_model, plan_fetch

    if not debug:
        huggingface_hub.utils.logging.set_verbosity_error()
        hush_libraries()
    plan = plan_fetch(model, stored_as)
    logger.info(str(plan))
    plan.check_room()
    if ask and sys.stdin.isatty() and not typer.confirm("Fetch it?", default=True, err=True):
        raise typer.Exit(1)
    with reporter.progress() as on_progress:
        path = fetch_model(plan, on_progress)
    reporter.result(f"{path}: {use}", {"path": str(path), "fetched": True})


@app.command("list")
def models_list(as_json: Json = False, debug: Debug = False) -> None:
    """Show the model files: sizes, licences, where they are expected and whether they are right."""
    from fye_pipeline.models.files import known_files

    rows = known_files()
    Reporter(as_json=as_json).result("\n".join(map(str, rows)), {"models": [row.to_dict() for row in rows]})


@app.command("check")
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
        if row.state != "ok" and not row.optional:
            raise UserError(f"{row.name} ({row.path}): {row.state}")
    if folder is not None:
        import torch

        from fye_pipeline.animate.session import load_model

        hush_libraries()
        load_model(folder, torch.device("cpu"), torch.float16)

"""`fye models`: model files are listed, fetched and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fye_pipeline.cli.options import Debug, Json, Quiet
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter, hush_libraries

app = typer.Typer(help="Model files: list, fetch, check.", no_args_is_help=True)


@app.command("get")
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
        if row.state != "ok":
            raise UserError(f"{row.name} ({row.path}): {row.state}")
    if folder is not None:
        import torch

        from fye_pipeline.animate.session import load_model

        hush_libraries()
        load_model(folder, torch.device("cpu"), torch.float16)

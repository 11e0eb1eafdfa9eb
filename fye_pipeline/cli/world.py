"""`fye world`: what the rendered world looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fye_pipeline.cli.options import Debug, Overwrite, Quiet, UnneededTaskFile
from fye_pipeline.progress import Reporter


def world(
    sheet: Annotated[Path, typer.Option(help="The picture to write: a row a person, a column a moment.")],
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    split: Annotated[Literal["train", "held"], typer.Option(help="Which people.")] = "held",
    version: Annotated[int, typer.Option("--world", min=1, max=2, help="Version: 2 has far more variety.")] = 1,
    rows: Annotated[int, typer.Option(min=1)] = 8,
    columns: Annotated[int, typer.Option(min=1)] = 10,
    face_landmarker: UnneededTaskFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a contact sheet of the rendered world that the shipped model is measured on (1), or was trained on (2)."""
    reporter = Reporter(quiet=quiet)
    from PIL import Image

    from fye_pipeline.landmarks.geometry import CanonicalFace
    from fye_pipeline.storage.files import writable_target
    from fye_pipeline.world import World
    from fye_pipeline.world.dataset import contact_sheet

    target = writable_target(sheet, overwrite=overwrite)
    rendered = World(CanonicalFace.load(), seed=seed, version=version)
    picture = contact_sheet(rendered, split=split, rows=rows, columns=columns)
    Image.fromarray(picture).save(target)
    reporter.result(f"{target}: {rows} people, {columns} moments each", {"sheet": str(target)})

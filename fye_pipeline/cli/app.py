"""`fye app`: a page in the browser around `fye animate`."""

from __future__ import annotations

from typing import Annotated

import typer

from fye_pipeline.cli.options import Debug, Quiet, TaskFile
from fye_pipeline.progress import Reporter, hush_libraries


def app(
    host: Annotated[
        str, typer.Option(help="Where to listen. Default: this machine alone; 0.0.0.0 is the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The page's port.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Also a public link through Gradio's server: whoever has it may use this.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="A pipeline folder or a published model's name. Default: the one that ships."),
    ] = None,
    emoji_model: Annotated[
        str | None, typer.Option(help="A folder for still pictures (EmojiDiff). Default: the tiny one that ships.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; several times for a job on each.")
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, help="Refuse larger uploads, in MB.")] = 500,
    face_landmarker: TaskFile = None,
    i_accept_the_terms: Annotated[
        bool, typer.Option("--i-accept-the-terms", help="You have read and accept USAGE.md: the page does not ask.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a page in the browser: choose portraits and videos, animate, watch. Needs the extra `app` (Gradio)."""
    Reporter(quiet=quiet)
    if not debug:
        hush_libraries()  # before they are imported
    from fye_pipeline.app.server import serve

    serve(
        host,
        port,
        share=share,
        model=model,
        emoji_model=emoji_model,
        devices=device or ["auto"],
        face_landmarker=face_landmarker,
        most_megabytes=max_upload,
        accepted=i_accept_the_terms,
    )

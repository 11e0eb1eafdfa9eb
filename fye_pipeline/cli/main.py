"""The `fye` command: every subcommand parses, calls one function, and turns its outcome into words and an exit code.

Exit codes: 0; 1 where rows of a manifest failed; 2 and one sentence for bad input; 130 after Ctrl-C. `--debug` shows
tracebacks.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated

import typer

from fye_pipeline.cli import doctor as machine
from fye_pipeline.cli.animate import animate
from fye_pipeline.cli.app import app as page
from fye_pipeline.cli.emoji import app as emoji_app
from fye_pipeline.cli.evaluate import app as evaluate_app
from fye_pipeline.cli.landmarks import landmarks
from fye_pipeline.cli.models import app as models_app
from fye_pipeline.cli.options import Debug, Json
from fye_pipeline.cli.prepare import prepare
from fye_pipeline.cli.train import train
from fye_pipeline.cli.tune import tune
from fye_pipeline.cli.world import world
from fye_pipeline.errors import UserError

app = typer.Typer(
    name="fye",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("app")(page)
for command in (animate, landmarks, prepare, train, tune, world):
    app.command()(command)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(emoji_app, name="emoji")
app.add_typer(models_app, name="models")


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Tell what works on this machine: devices, packages, codecs, models, disk. Always succeeds."""
    machine.tell(as_json=as_json)


def _tell_versions(wanted: bool) -> None:
    if wanted:
        print(machine.versions())
        raise typer.Exit


@app.callback()
def fye(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_versions, help="Show versions and devices."),
    ] = False,
) -> None:
    """Animate a portrait with a driving face video (Follow-Your-Emoji-Faster)."""


def main() -> None:
    """Run `fye`; no traceback reaches the user unless `--debug` is given."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("GLOG_minloglevel", "2")  # MediaPipe's C++ notes
    _print_any_letter()
    if not debug:
        warnings.simplefilter("ignore")
    try:
        app()
    except Exception as error:
        if debug:
            raise
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error} (--debug shows where)"
        if isinstance(error, ModuleNotFoundError):
            text = machine.install_line(error)
        print(f"fye: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_any_letter() -> None:
    """Let stdout show a name's letters that its encoding lacks as escapes, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")

"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more on the way.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and library warnings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
TaskFile = Annotated[Path | None, typer.Option("--face-landmarker", help="MediaPipe's face_landmarker.task.")]
UnneededTaskFile = Annotated[
    Path | None, typer.Option("--face-landmarker", hidden=True, help="Not needed any more, and ignored.")
]
Detector = Annotated[
    str, typer.Option("--detector", help="Finds faces: mediapipe, or package.module:function; points is --points.")
]
Points = Annotated[
    Path | None, typer.Option("--points", help="Five points of the portrait's face (JSON), so that none is sought.")
]
NoFaceRule = Annotated[
    Literal["interpolate", "hold", "error"], typer.Option("--no-face", help="What to do with frames that show no face.")
]
MaxGap = Annotated[float, typer.Option("--max-gap", help="Longest gap without a face, in seconds.")]
Model = Annotated[
    Path | None,
    typer.Option(
        help="A pipeline folder or a published model's name (follow-your-emoji). Default: the one that ships."
    ),
]
ExpressionWeights = Annotated[
    Path | None,
    typer.Option("--expression-weights", help="PD-FGC's motion weights, for the extractor of expressions pdfgc."),
]
Guidance = Annotated[float | None, typer.Option(help="Default: what the model's recipe recommends.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that share the work.")]
AcceptTerms = Annotated[bool, typer.Option("--i-accept-the-terms", help="You have read and accept USAGE.md.")]
NoWatermark = Annotated[bool, typer.Option("--no-watermark", help="Leave out the visible mark; see USAGE.md.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
WithCache = Annotated[int | None, typer.Option("--N", min=1, help="Use the cache: one full step in N.")]
AlsoWithCache = Annotated[int | None, typer.Option("--N", min=1, help="Also with the cache: one full step in N.")]
FiguresFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]

"""`fye landmarks`: a face through a video, as a landmark sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fye_pipeline.cli.options import Debug, Json, MaxGap, NoFace, NoFaceRule, Overwrite, Quiet, TaskFile
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter


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

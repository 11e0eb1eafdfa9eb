"""`fye landmarks`: a face through a video, or in a picture, as a landmark sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fye_pipeline.cli.options import (
    Debug,
    Detector,
    ExpressionWeights,
    Json,
    MaxGap,
    NoFaceRule,
    Overwrite,
    Points,
    Quiet,
    TaskFile,
)
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter

if TYPE_CHECKING:
    from fye_pipeline.landmarks.sequence import LandmarkSequence
    from fye_pipeline.multi_portrait.expression import ExpressionSequence


def landmarks(
    video: Annotated[Path, typer.Argument(help="The video, or a picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The landmark sequence (.npz) to write.")],
    preview: Annotated[Path | None, typer.Option(help="Also write a strip of frames over their landmarks.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Use the first frames only.")] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Follow the face from frame to frame: smoother.")] = False,
    face_index: Annotated[
        int | None, typer.Option(min=0, help="Which face, from the left. Default: the largest.")
    ] = None,
    all_faces: Annotated[
        bool, typer.Option("--all-faces", help="Follow every face: <output>_0.npz, _1.npz and so on, from the left.")
    ] = False,
    expression: Annotated[
        str | None,
        typer.Option(help="Also write <output>_expression.npz, by an extractor: blendshapes, rendered or pdfgc."),
    ] = None,
    expression_weights: ExpressionWeights = None,
    points: Points = None,
    detector: Detector = "mediapipe",
    no_face: NoFaceRule = "interpolate",
    max_gap: MaxGap = 0.5,
    face_landmarker: TaskFile = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Detect a face through a video and save its landmarks; the sequence drives `animate` without the video.

    With --all-faces every face has a file of its own. Of a picture it is one frame, which `animate
    --reference-landmarks` takes; with --points no face is sought in it.
    """
    reporter = Reporter(quiet=quiet, as_json=as_json)
    from fye_pipeline.animate.driver import open_driver
    from fye_pipeline.animate.session import LazyDetector, check_detector
    from fye_pipeline.media.source import open_source
    from fye_pipeline.multi_portrait.drivers import read_people
    from fye_pipeline.multi_portrait.extractors import extract, extractor_named
    from fye_pipeline.storage.files import writable_target

    if output.suffix != ".npz":
        raise UserError(f"{output} must end in .npz, the format of landmark sequences.")
    if expression is not None and points is not None:
        raise UserError("--expression needs a face that is detected: leave out --points.")
    extractor = None if expression is None else extractor_named(expression, expression_weights)
    if all_faces:
        if preview is not None or smooth or face_index is not None or points is not None:
            raise UserError("--all-faces goes without --preview, --smooth, --face-index and --points.")
        lazy = LazyDetector(face_landmarker, name=check_detector(detector, None))
        source = open_driver(video, frames=frames)
        with reporter.progress() as on_progress, lazy as opened:
            rule = {"no_face": no_face, "max_gap": max_gap}
            tracks = read_people(source, opened, on_progress=on_progress, **rule)
        features = [] if extractor is None else [extract(extractor, source, track) for track in tracks]
        reporter.result(*save_tracks(tracks, output, features, overwrite=overwrite))
        return
    beside = None if extractor is None else expression_file(output)
    targets = [writable_target(path, overwrite=overwrite) for path in (output, preview, beside) if path is not None]
    name = check_detector(detector, points)
    if points is not None:
        sequence = pointed_at(video, points)
    else:
        lazy = LazyDetector(face_landmarker, mode="video" if smooth else "image", name=name)
        with reporter.progress() as on_progress, lazy as opened:
            source = open_driver(video, frames=frames)
            driver = source.read(
                opened, no_face=no_face, max_gap=max_gap, face_index=face_index, on_progress=on_progress
            )
        sequence = driver.sequence
        if extractor is not None and beside is not None:
            extract(extractor, source, sequence).save(beside)
    sequence.save(output)
    if preview is not None:
        from PIL import Image

        from fye_pipeline.landmarks.drawing import preview_strip

        Image.fromarray(preview_strip(open_source(video).frames(len(sequence)), sequence)).save(preview)
    gaps = [f"{start}-{stop - 1}" for start, stop in sequence.gaps()]
    filled = f"; frames without a face, filled in: {', '.join(gaps)}" if gaps else ""
    rate = "one picture" if sequence.fps is None else f"{len(sequence)} frames at {float(sequence.fps):g} fps"
    reporter.result(
        f"{output}: {rate}{filled}",
        {
            "output": [str(path) for path in targets],
            "frames": len(sequence),
            "fps": None if sequence.fps is None else str(sequence.fps),
            "frames_without_face": sequence.gaps(),
        },
    )


def expression_file(output: Path) -> Path:
    """Where the features lie that belong to a landmark sequence."""
    return output.with_name(f"{output.stem}_expression.npz")


def save_tracks(
    tracks: list[LandmarkSequence], output: Path, features: Sequence[ExpressionSequence] = (), *, overwrite: bool
) -> tuple[str, dict[str, Any]]:
    """Write each track to a file of its own, numbered from the left. -> what to tell, as text and as plain values.

    features: of each track, or of none.
    Raises `UserError` where one of the files is there, before any is written.
    """
    from fye_pipeline.storage.files import writable_target

    names = [output.with_name(f"{output.stem}_{number}.npz") for number in range(len(tracks))]
    targets = [writable_target(name, overwrite=overwrite) for name in names]
    beside = [writable_target(expression_file(name), overwrite=overwrite) for name in names[: len(features)]]
    for made, target in zip(features, beside, strict=True):
        made.save(target)
    for track, target in zip(tracks, targets, strict=True):
        track.save(target)
    rows = [
        {"output": str(target), "frames": len(track), "frames_without_face": track.gaps()}
        for track, target in zip(tracks, targets, strict=True)
    ]
    text = [f"{row['output']}: {row['frames']} frames, face {number} from the left" for number, row in enumerate(rows)]
    fps = tracks[0].fps
    return "\n".join(text), {"tracks": rows, "fps": None if fps is None else str(fps)}


def pointed_at(picture: Path, points: Path) -> LandmarkSequence:
    """The face of a picture by five points of it. Raises `UserError` for a video, or points that do not fit."""
    from fye_pipeline.landmarks.points import fit_points, read_points
    from fye_pipeline.media.file_type import is_video
    from fye_pipeline.media.image import picture_frames, read_picture
    from fye_pipeline.storage.files import existing_file

    picture = existing_file(picture, "the picture")
    frames = picture_frames(picture)
    if frames > 1 or (not frames and is_video(picture)):
        raise UserError(f"{picture} is a video; --points belong to a picture.")
    height, width = read_picture(picture).shape[:2]
    return fit_points(read_points(points), width, height).as_sequence()

"""`fye prepare`: people's own videos into a dataset to train on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from fye_pipeline.cli.options import Debug, Json, Overwrite, Quiet, TaskFile
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter

_LISTED = 10  # videos named on the screen; the report has all


def prepare(
    folder: Annotated[Path, typer.Argument(help="A folder of videos (any depth), or of folders of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The dataset's folder.")],
    size: Annotated[int, typer.Option(help="Pixels of the squares: 512 for the published model, 128 for ours.")] = 512,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    min_face: Annotated[
        int | None, typer.Option(min=1, help="Pixels a face must have. Default: a quarter of --size.")
    ] = None,
    min_frames: Annotated[int, typer.Option(help="Shortest clip.")] = 24,
    max_frames: Annotated[int, typer.Option(help="Longer clips are divided.")] = 240,
    fps: Annotated[str | None, typer.Option(help="Bring all videos to this rate. Default: each keeps its own.")] = None,
    quality: Annotated[int, typer.Option(help="Quality of the JPEG frames, 1 to 100.")] = 95,
    shard_mb: Annotated[int, typer.Option(min=1, help="A shard is closed at this size.")] = 256,
    people: Annotated[
        str | None,
        typer.Option(help="Choose videos of so many people instead (2, 2-3, 2+), by how sharp and lively faces are."),
    ] = None,
    drop: Annotated[
        float, typer.Option(help="With --people: percent of the folder that each filter leaves out.")
    ] = 10.0,
    aesthetics: Annotated[
        str | None,
        typer.Option(help="With --people: a scorer of pictures, package.module:function. Default: none."),
    ] = None,
    face_landmarker: TaskFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished video; also adds new videos.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Cut videos into clips of one face, with landmarks; what was left out is listed with its reason.

    With --people the videos are not cut: people.jsonl lists those that show so many people, sharp and moving.
    """
    reporter = Reporter(quiet=quiet, as_json=as_json)
    from fye_pipeline.animate.session import obtain_face_landmarker

    run: Any
    options: Any
    if people is not None:
        from fye_pipeline.training.prepare_people import PeopleOptions, parse_people
        from fye_pipeline.training.prepare_people import prepare_people as run

        least, most = parse_people(people)
        options = PeopleOptions(least, most, drop, _rate(fps) if fps else PeopleOptions.rate, aesthetics)
    else:
        from fye_pipeline.training.prepare import PrepareOptions
        from fye_pipeline.training.prepare import prepare as run
        from fye_pipeline.training.segment import CutRules

        options = PrepareOptions(
            size=size,
            rules=CutRules(min_face=min_face or max(size // 4, 32), min_frames=min_frames, max_frames=max_frames),
            fps=None if fps is None else _rate(fps),
            quality=quality,
            shard_bytes=shard_mb << 20,
        )
    how = {"jobs": jobs, "task": obtain_face_landmarker(face_landmarker), "resume": resume, "overwrite": overwrite}
    with reporter.progress() as on_progress:
        report = run(folder, output, options, **how, on_progress=on_progress)
    table = _table if people is None else _people_table
    reporter.result(table(report, output), {"output": str(output), **report})


def _rate(text: str) -> str:
    """A frame rate such as 25 or 30000/1001 as a fraction. Raises `UserError` for anything else."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise UserError(f"--fps must be a rate such as 25 or 30000/1001, got {text!r}.")
    return str(rate)


def _people_table(report: dict[str, Any], output: Path) -> str:
    """How many videos were kept, and how many each filter left out, in plain text."""
    totals, thresholds = report["totals"], report["thresholds"]
    lines = [f"{output}: {totals['kept']} of {totals['videos']} videos kept"]
    for reason in dict.fromkeys([*report["dropped"], *thresholds]):
        limit = thresholds.get(reason)
        below = f"  (below {limit:.3g})" if limit is not None else ""
        lines.append(f"{reason:32}{report['dropped'].get(reason, 0):8d}{below}")
    return "\n".join([*lines, f"aesthetics: {report['aesthetics']}"])


def _table(report: dict[str, Any], output: Path) -> str:
    """What was kept and what was left out, in plain text."""
    totals = report["totals"]
    lines = [f"{output}: {totals['clips']} clips, {totals['frames']} frames, from {totals['videos']} videos"]
    rows = [("kept", {"pieces": totals["clips"], "frames": totals["frames"]}), *report["rejected"].items()]
    lines.append(f"{'':32}{'pieces':>8}{'frames':>10}")
    lines += [f"{name:32}{row['pieces']:8d}{row['frames']:10d}" for name, row in rows]
    empty = [video for video in report["videos"] if not video["clips"]]
    for video in empty[:_LISTED]:
        reasons = sorted({piece["reason"] for piece in video["rejected"]})
        lines.append(f"no clip: {video['video']} ({', '.join(reasons) or 'no frames'})")
    if len(empty) > _LISTED:
        lines.append(f"and {len(empty) - _LISTED} more videos without a clip; report.json names them")
    return "\n".join(lines)

"""The animator's main job, from files to a file: a portrait and a driving face give an animated portrait."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

from fye_pipeline.animate.config import DEMO_DRIVING, DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS, AnimationSettings
from fye_pipeline.animate.driver import Driver, OnNote, read_driver
from fye_pipeline.animate.generate import Job
from fye_pipeline.animate.machine import Offload
from fye_pipeline.animate.output import Written, decibels, frame_size
from fye_pipeline.animate.portrait import Portrait, read_portrait
from fye_pipeline.animate.preflight import check_room, size_note, work_bytes
from fye_pipeline.animate.renderer import Take
from fye_pipeline.animate.results import AnimationResult
from fye_pipeline.animate.session import Studio, native_size
from fye_pipeline.animate.workdir import workplace
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import Motion
from fye_pipeline.landmarks.spool import DiskSpool
from fye_pipeline.media.video import read_comment
from fye_pipeline.media.writer import check_container
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import atomic_target, writable_target

__all__ = [
    "DEMO_DRIVING",
    "DEMO_PORTRAIT",
    "DEMO_PORTRAIT_LANDMARKS",
    "SHIPPED_MODEL",
    "AnimationResult",
    "AnimationSettings",
    "Studio",
    "animate",
    "is_finished",
]


def animate(
    settings: AnimationSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    face_landmarker: Path | None = None,
    device: str = "auto",
    offload: Offload = "none",
    studio: Studio | None = None,
    on_progress: OnProgress = silent,
    on_note: OnNote = lambda text: None,
) -> AnimationResult:
    """Animate a portrait and write the video; the output takes its name only when it is complete.

    Until then what is finished lies in a folder beside it, `<output>.work`; memory does not grow with the video.

    Args:
        settings: what to animate, with what, and how.
        output: the mp4 to write; `<stem>_compare.mp4` beside it with `settings.compare`, and `<stem>_crop.json`, the
            transform back to the portrait, with the framing `crop`.
        overwrite: replace what is there.
        resume: go on where a run that broke off has stopped; the result is that of an unbroken one.
        face_landmarker, device, offload, on_note: as for `Studio`; they do not count where a `studio` is given.
        studio: detector and model of animations that were made before.
        on_progress: told of detection, denoising and decoding as they advance.

    Raises:
        UserError: bad input, in one sentence.
    """
    if studio is None:
        with Studio(face_landmarker, device=device, offload=offload, on_note=on_note) as own:
            return animate(settings, output, overwrite=overwrite, resume=resume, studio=own, on_progress=on_progress)
    check_container(output, alpha=settings.alpha)
    output = writable_target(output, overwrite=overwrite)
    opaque = ".mp4" if settings.alpha else output.suffix
    comparison = output.with_name(f"{output.stem}_compare{opaque}") if settings.compare else None
    transform = output.with_name(f"{output.stem}_crop.json") if settings.resolved_framing == "crop" else None
    for beside in (comparison, transform):
        if beside is not None:
            writable_target(beside, overwrite=overwrite or resume)
    studio.take_notes()
    with workplace(output, settings, resume=resume, overwrite=overwrite, on_note=studio.note) as work:
        portrait, driver, job = prepare(settings, studio, output, work, on_progress)
        run = Take(job, cached=settings.cache is not None, folder=work / "denoising")
        plain = None if comparison is None else Take(job, cached=False, stage="uncached", folder=work / "uncached")
        written = Written(settings, portrait, driver, job, overwrite or resume, studio.note)
        error = written.write(output, comparison, run, plain)
        crop = written.transform
        if transform is not None and crop is not None:
            with atomic_target(transform) as temporary:
                temporary.write_text(json.dumps(crop, indent=2) + "\n")
        return AnimationResult(
            output=output,
            comparison=comparison,
            frames=len(job),
            fps=driver.fps,
            size=written.size,
            frames_without_face=driver.sequence.gaps(),
            seconds=run.tally.seconds,
            uncached_seconds=None if plain is None else plain.tally.seconds,
            psnr=None if plain is None else decibels(error),
            report=run.report,
            crop=crop,
            sound=written.sound is not None,
            notes=studio.take_notes(),
            settings=settings,
        )


def is_finished(output: Path, settings: AnimationSettings) -> bool:
    """Whether `output` is there and was made with these settings, as its metadata tell.

    Raises:
        UserError: it is there and was made with others.
    """
    if not output.is_file():
        return False
    try:
        made_with = json.loads(read_comment(output))["settings"]
    except (ValueError, KeyError, TypeError):
        made_with = None
    if made_with != settings.to_dict():
        raise UserError(f"{output} was made with other settings; pass --overwrite to replace it.")
    return True


def prepare(
    settings: AnimationSettings, studio: Studio, output: Path, work: Path, on_progress: OnProgress
) -> tuple[Portrait, Driver, Job]:
    """Read and detect everything, load the model; the disk is looked at before the long part of it."""
    portrait = read_portrait(settings, studio.detector, studio.note)

    def opened(frames: int | None, fps: Fraction, detected: bool) -> None:
        side = settings.size or native_size(studio.model(settings))  # loaded now: a bad one is told before detection
        if frames is not None:
            size, beside = frame_size(settings, portrait, side), work_bytes(frames, side, detected=detected)
            needed = check_room(output, frames, size, beside)
            if note := size_note(output, frames, fps, size, needed, beside):
                studio.note(note)

    driver = read_driver(
        settings.driving,
        studio.detector,
        frames=settings.frames,
        fps=settings.fps,
        no_face=settings.no_face,
        max_gap=settings.max_gap,
        max_pixels=settings.max_pixels,
        background=settings.background,
        allow_partial=settings.allow_partial,
        spool=DiskSpool(work / "landmarks"),
        on_open=opened,
        on_progress=on_progress,
        on_note=studio.note,
    )
    motion = Motion(
        driver.sequence,
        portrait.face,
        regions=settings.regions,
        intensity=settings.intensity,
        pose=settings.pose,
        neutral_frame=settings.neutral_frame,
    )
    pipe = studio.model(settings)
    size = settings.size or native_size(pipe)
    job = Job(pipe, settings, portrait.square, motion, size, pipe.unet.dtype, on_progress, studio.note)
    return portrait, driver, job

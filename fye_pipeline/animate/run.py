"""The animator's main job, from files to a file: a portrait and a driving face give an animated portrait."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import OpenDriver, open_driver
from fye_pipeline.animate.output import AnimationResult, VideoOutput, comparison_size, decibels, frame_size
from fye_pipeline.animate.portrait import Portrait, read_portrait
from fye_pipeline.animate.renderer import RenderContext, Renderer
from fye_pipeline.animate.session import AnimationSession, Offload, native_size
from fye_pipeline.animate.workdir import input_digests, work_dir
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks
from fye_pipeline.media.video import read_comment
from fye_pipeline.media.writer import check_container
from fye_pipeline.progress import WORTH_SAYING, OnProgress, collected_notes, logger, silent
from fye_pipeline.storage.files import atomic_target, writable_target

BYTES_A_PIXEL = 0.15  # of a busy picture at the quality that is written
LATENT_BYTES = 1 / 4  # of a pixel: 4 channels of float32 for 8 x 8 pixels
LANDMARK_BYTES = 11_700  # of a frame whose face is detected


def animate(
    settings: AnimationSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    face_landmarker: Path | None = None,
    device: str = "auto",
    offload: Offload = "none",
    session: AnimationSession | None = None,
    on_progress: OnProgress = silent,
) -> AnimationResult:
    """Animate a portrait and write the video; the output takes its name only when it is complete.

    Until then what is finished lies in a folder beside it, `<output>.work`; memory does not grow with the video. What
    is worth knowing on the way is told to the logger `fye`.

    Args:
        settings: what to animate, with what, and how.
        output: the mp4 to write; `<stem>_compare.mp4` beside it with `settings.compare`, and `<stem>_crop.json`, the
            transform back to the portrait, with the framing `crop`.
        overwrite: replace what is there.
        resume: go on where a run that broke off has stopped; the result is that of an unbroken one.
        face_landmarker, device, offload: as for `AnimationSession`; they do not count where a `session` is given.
        session: detector and model of animations that were made before.
        on_progress: told of detection, denoising and decoding as they advance.

    Raises:
        UserError: bad input, in one sentence.
    """
    if session is None:
        with AnimationSession(face_landmarker, device=device, offload=offload) as own:
            return animate(settings, output, overwrite=overwrite, resume=resume, session=own, on_progress=on_progress)
    check_container(output, alpha=settings.alpha)
    output = writable_target(output, overwrite=overwrite)
    opaque = ".mp4" if settings.alpha else output.suffix
    comparison = output.with_name(f"{output.stem}_compare{opaque}") if settings.compare else None
    transform = output.with_name(f"{output.stem}_crop.json") if settings.resolved_framing == "crop" else None
    for beside in (comparison, transform):
        if beside is not None:
            writable_target(beside, overwrite=overwrite or resume)
    inputs = input_digests(settings)
    with (
        collected_notes() as notes,
        work_dir(output, settings.to_dict() | inputs, resume=resume, overwrite=overwrite) as work,
    ):
        portrait = read_portrait(settings, session.detector)
        opened = open_driver(
            settings.driving,
            frames=settings.frames,
            fps=settings.fps,
            max_pixels=settings.max_pixels,
            background=settings.background,
            allow_partial=settings.allow_partial,
            folder=work / "landmarks",
        )
        pipe = session.model(settings)  # loaded now: a bad one is told before the long detection
        size = settings.size or native_size(pipe)
        check_disk(output, settings, portrait, opened, size)
        driver = opened.read(
            session.detector,
            no_face=settings.no_face,
            max_gap=settings.max_gap,
            folder=work / "landmarks",
            on_progress=on_progress,
        )
        landmarks = RetargetedLandmarks(
            driver.sequence,
            portrait.face,
            regions=settings.regions,
            intensity=settings.intensity,
            pose=settings.pose,
            neutral_frame=settings.neutral_frame,
        )
        context = RenderContext(pipe, settings, portrait.square, landmarks, size, pipe.unet.dtype, on_progress)
        run = Renderer(context, cached=settings.cache is not None, folder=work / "denoising")
        plain = None if comparison is None else Renderer(context, False, "uncached", work / "uncached")
        video = VideoOutput(settings, portrait, driver, context, overwrite or resume, inputs)
        error = video.write(output, comparison, run, plain)
        if transform is not None and video.transform is not None:
            with atomic_target(transform) as temporary:
                temporary.write_text(json.dumps(video.transform, indent=2) + "\n")
        return AnimationResult(
            output=output,
            comparison=comparison,
            frames=len(context),
            fps=driver.fps,
            size=video.size,
            frames_without_face=driver.sequence.gaps(),
            seconds=run.statistics.seconds,
            uncached_seconds=None if plain is None else plain.statistics.seconds,
            psnr=None if plain is None else decibels(error),
            report=run.report,
            crop=video.transform,
            sound=video.sound is not None,
            notes=notes,
            settings=settings,
        )


def is_finished(output: Path, settings: AnimationSettings) -> bool:
    """Whether `output` is there and was made with these settings from these very files, as its metadata tell.

    Raises:
        UserError: it is there and was made with others.
    """
    if not output.is_file():
        return False
    try:
        note = json.loads(read_comment(output))
        made_with, made_from = note["settings"], dict(note["inputs"])
    except (ValueError, KeyError, TypeError):
        made_with, made_from = None, {}
    if made_with != settings.to_dict():
        raise UserError(f"{output} was made with other settings; pass --overwrite to replace it.")
    now = input_digests(settings)
    if changed := [name for name in now if made_from.get(name) != now[name]]:
        raise UserError(f"{output} was made from another {', another '.join(changed)}; pass --overwrite to replace it.")
    return True


def check_disk(output: Path, settings: AnimationSettings, portrait: Portrait, driver: OpenDriver, side: int) -> None:
    """Look at the disk before the long work, and tell of what takes much of it. Raises `UserError` where it is full."""
    frames = driver.frames
    if frames is None:
        return
    size = frame_size(settings, portrait, side)
    needed, work = video_bytes(frames, size), work_bytes(frames, side, detected=driver.is_detected)
    if settings.compare:
        needed += video_bytes(frames, comparison_size(side))
        work += work_bytes(frames, side, detected=False)
    check_room(output, needed, work)
    if note := size_note(output, frames, driver.fps, size, needed, work):
        logger.info(note)


def video_bytes(frames: int, size: tuple[int, int]) -> int:
    """How many bytes a video of this length and size may take, at most."""
    return round(frames * size[0] * size[1] * BYTES_A_PIXEL)


def check_room(output: Path, needed: int, work: int = 0) -> None:
    """Raise `UserError` where the disk has not the room for a video, and for what is beside it until it is complete."""
    free = shutil.disk_usage(output.parent).free
    if free < needed + work:
        beside = f", {work / 1e6:.0f} MB more on the way to it" if work else ""
        raise UserError(
            f"{output} may take {needed / 1e6:.0f} MB{beside} and its disk has {free / 1e6:.0f} MB left: free space."
        )


def work_bytes(frames: int, side: int, *, detected: bool) -> int:
    """How many bytes finished clips of squares of `side` pixels take, and landmarks where they are detected."""
    return round(frames * (side * side * LATENT_BYTES + detected * LANDMARK_BYTES))


def size_note(output: Path, frames: int, fps: Fraction, size: tuple[int, int], needed: int, work: int) -> str | None:
    """A sentence on a video that is long enough for one."""
    seconds = float(frames / fps)
    if seconds < WORTH_SAYING:
        return None
    return (
        f"{output}: {frames} frames of {size[0]} x {size[1]} ({_clock(seconds)} at {float(fps):g} fps), at most "
        f"{needed / 1e6:.0f} MB, and {work / 1e6:.0f} MB beside it until it is complete"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

"""The animator's main job, from files to a file: a portrait and a driving face give an animated portrait."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fye_pipeline import presets
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.animate.driver import OpenDriver, open_driver_of
from fye_pipeline.animate.output import AnimationResult, Run, comparison_size, decibels, frame_size, portrait_frames
from fye_pipeline.animate.portrait import Portrait, read_portrait
from fye_pipeline.animate.renderer import RenderContext, Renderer
from fye_pipeline.animate.session import MEDIAPIPE, AnimationSession, Offload, native_size
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.video import read_comment
from fye_pipeline.media.writer import check_container
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import WORTH_SAYING, OnProgress, collected_notes, logger, silent
from fye_pipeline.sampling.clip_store import CLIPS, SETTINGS, difference
from fye_pipeline.storage.files import FolderLock, digest_of_folder, digest_of_path, writable_target, write_json

BYTES_A_PIXEL = 0.15  # of a busy picture at the quality that is written
LATENT_BYTES = 1 / 4  # of a pixel: 4 channels of float32 for 8 x 8 pixels
LANDMARK_BYTES = 11_700  # of a frame whose face is detected


class RunOptions(TypedDict, total=False):
    """What every kind of animation may be given beside its settings and its output; see `animate`."""

    overwrite: bool
    resume: bool
    face_landmarker: Path | None
    device: str
    offload: Offload
    detector: str
    session: AnimationSession | None


def animate(
    settings: AnimationSettings, output: Path, *, on_progress: OnProgress = silent, **how: Unpack[RunOptions]
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
        face_landmarker, device, offload, detector: as for `AnimationSession`; not used where a `session` is given.
        session: detector and model of animations that were made before.
        on_progress: told of detection, denoising and decoding as they advance.

    Raises:
        UserError: bad input, in one sentence.
    """
    with open_run(settings, output, **how) as run:
        detector, landmarks = run.session.detector, run.work / LANDMARKS
        portrait = read_portrait(settings, detector)
        opened = open_driver_of(settings, settings.driving, settings.fps, landmarks)
        pipe = run.session.model(settings)  # loaded now: a bad one is told before the long detection
        size = settings.size or native_size(pipe)
        sharp = sharp_square(settings, portrait, pipe, size)
        check_disk(run.output, settings, portrait, opened, size, size if sharp is None else len(sharp))
        driver = opened.read(
            detector,
            no_face=settings.no_face,
            max_gap=settings.max_gap,
            folder=landmarks,
            on_progress=on_progress,
        )
        context = render_context(settings, portrait, pipe, size, driver.sequence, sharp, on_progress)
        cached = Renderer(context, cached=settings.cache is not None, folder=run.work / "denoising")
        plain = Renderer(context, False, "uncached", run.work / "uncached") if settings.compare else None
        shape = frame_size(settings, portrait, context.side)
        crop = None if portrait.crop is None else portrait.crop.to_dict(context.side)
        sound = driver.sound if settings.audio else None
        matte = portrait.matte(settings, context.side)
        error = run.write(portrait_frames(portrait, cached, plain), driver.fps, shape, sound, matte, crop=crop)
        if run.transform is not None and crop is not None:
            write_json(run.transform, crop)
        return AnimationResult(
            output=run.output,
            comparison=run.comparison,
            frames=len(context),
            fps=driver.fps,
            size=shape,
            frames_without_face=driver.sequence.gaps(),
            seconds=cached.statistics.seconds,
            uncached_seconds=None if plain is None else plain.statistics.seconds,
            psnr=None if plain is None else decibels(error),
            report=cached.report,
            crop=crop,
            sound=sound is not None,
            notes=run.notes,
            settings=settings,
        )


@contextmanager
def open_run(
    settings: AnimationSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    face_landmarker: Path | None = None,
    device: str = "auto",
    offload: Offload = "none",
    detector: str = MEDIAPIPE,
    session: AnimationSession | None = None,
) -> Iterator[Run]:
    """Check what a run will write and take its work folder for the length of a block; arguments as `animate`.

    Raises `UserError` as `check_container`, `writable_target` and `work_dir`, and where the session cannot be opened.
    """
    with ExitStack() as stack:
        if session is None:
            own = AnimationSession(face_landmarker, device=device, offload=offload, detector=detector)
            session = stack.enter_context(own)
        check_container(output, alpha=settings.alpha)
        output = writable_target(output, overwrite=overwrite)
        opaque = ".mp4" if settings.alpha else output.suffix
        comparison = output.with_name(f"{output.stem}_compare{opaque}") if settings.compare else None
        transform = output.with_name(f"{output.stem}_crop.json") if settings.resolved_framing == "crop" else None
        for beside in (comparison, transform):
            if beside is not None:
                writable_target(beside, overwrite=overwrite or resume)
        inputs = input_digests(settings) | detector_input(session)
        notes = stack.enter_context(collected_notes())
        work = stack.enter_context(work_dir(output, settings.to_dict() | inputs, resume=resume, overwrite=overwrite))
        yield Run(settings, session, output, comparison, transform, inputs, work, overwrite or resume, notes)


def sharp_square(
    settings: AnimationSettings, portrait: Portrait, pipe: FollowYourEmojiPipeline, size: int
) -> NDArray[np.uint8] | None:
    """The square at the resolution of the result; None for the model's own pixels. Raises as `takes_hint`."""
    hinted = takes_hint(settings, portrait, pipe)
    return portrait.at_full_size(settings, size) if hinted and settings.detail != "none" else None


def render_context(
    settings: AnimationSettings,
    portrait: Portrait,
    pipe: FollowYourEmojiPipeline,
    size: int,
    driver: LandmarkSequence,
    sharp: NDArray[np.uint8] | None,
    on_progress: OnProgress,
) -> RenderContext:
    """A portrait with the landmarks of its driver. size, sharp: as in `RenderContext`."""
    landmarks = RetargetedLandmarks(
        driver,
        portrait.face,
        regions=settings.regions,
        intensity=settings.intensity,
        pose=settings.pose,
        neutral_frame=settings.neutral_frame,
    )
    bent = None
    if takes_hint(settings, portrait, pipe) and portrait.face is not None:
        bent = BentPortraits(portrait.square, portrait.face.landmarks[0], landmarks, size)
    return RenderContext(pipe, settings, portrait.square, landmarks, size, pipe.unet.dtype, on_progress, bent, sharp)


def takes_hint(settings: AnimationSettings, portrait: Portrait, pipe: FollowYourEmojiPipeline) -> bool:
    """Whether the model is shown the bent portrait. Raises `UserError` where detail is asked for and it is not."""
    hinted = bool(pipe.unet.config["bent_hint"]) and portrait.face is not None
    if settings.detail == "full" and not hinted:
        why = (
            "the portrait's face is not used (--unaligned)" if portrait.face is None else f"{settings.model} takes none"
        )
        raise UserError(f"--detail full needs a model that is shown the bent portrait, and {why}: use --detail none.")
    return hinted


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


def check_disk(
    output: Path, settings: AnimationSettings, portrait: Portrait, driver: OpenDriver, size: int, side: int
) -> None:
    """Look at the disk before the long work, and tell of what takes much of it. Raises `UserError` where it is full.

    size, side: pixels a side that the model works at, and of the squares of the result.
    """
    frames = driver.frames
    if frames is None:
        return
    shown = frame_size(settings, portrait, side)
    needed, work = video_bytes(frames, shown), work_bytes(frames, size, detected=driver.is_detected)
    if settings.compare:
        needed += video_bytes(frames, comparison_size(size))
        work += work_bytes(frames, size, detected=False)
    check_room(output, needed, work)
    if note := size_note(output, frames, driver.fps, shown, needed, work):
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


LANDMARKS = "landmarks"


def folder_of(output: Path) -> Path:
    """Where the work on an output lies."""
    return output.with_name(f"{output.name}.work")


def input_digests(settings: AnimationSettings) -> dict[str, str]:
    """What tells the contents of files, and the model's own schedule, from others; their names may stay the same."""
    landmarks = settings.reference_landmarks
    tells = (settings.model / presets.FILE).is_file()
    schedule = presets.own_schedule(settings.cache, settings.model) if tells else None
    return {
        **{name: digest_of_path(path) for name, path in settings.more_files().items()},
        "reference file": digest_of_path(settings.reference),
        "reference landmarks file": "none" if landmarks is None else digest_of_path(landmarks),
        "driving file": digest_of_path(settings.driving),
        "model version": digest_of_folder(settings.model, but=(presets.FILE,)),
        "preset schedule": json.dumps(schedule),
    }


def detector_input(session: AnimationSession) -> dict[str, str]:
    """What tells landmarks of a detector that is not MediaPipe's from others."""
    name = session.detector.name
    return {} if name == MEDIAPIPE else {"detector": name}


@contextmanager
def work_dir(output: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The folder to work in, for this run alone; it goes when the block ends well, or when nothing in it is finished.

    identity: settings and inputs, as JSON takes them.

    Finished clips that are there are used with `resume` and thrown away with `overwrite` alone; landmarks that an
    earlier run with the same settings has detected are always used.

    Raises:
        UserError: another run is at work there; clips are there and neither flag is given, or were made with other
            settings or files; or the folder is somebody's own.
    """
    folder = folder_of(output)
    if folder.exists() and (not folder.is_dir() or (_visible(folder) and not (folder / SETTINGS).is_file())):
        raise UserError(f"{folder} is needed for the work on {output} and holds something else: move it away.")
    lock = FolderLock(folder)
    try:
        _begin(folder, output, identity, resume=resume, overwrite=overwrite)
        _sweep(output)
        try:
            yield folder
        except BaseException as error:
            if _worth_keeping(folder, error):
                logger.info(f"what is finished of {output} is kept in {folder}: the same command with --resume goes on")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _begin(folder: Path, output: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Take the folder as it is, or empty it, or refuse to."""
    try:
        known = dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        known = {}
    changed = [name for name in {**known, **identity} if known.get(name) != identity.get(name)]
    if _clips(folder):
        if changed and not overwrite:
            differences = ", ".join(difference(name, known.get(name), identity.get(name)) for name in changed)
            raise UserError(
                f"{folder} holds unfinished work with other settings or files ({differences}); pass --overwrite to "
                "begin anew."
            )
        if not changed and not resume and not overwrite:
            raise UserError(f"{folder} holds unfinished work; pass --resume to go on, or --overwrite to begin anew.")
    if changed or not resume:
        _empty(folder, keep=() if changed else (SETTINGS, LANDMARKS))
    if changed:
        write_json(folder / SETTINGS, identity)


def _clips(folder: Path) -> bool:
    return any(True for _ in folder.rglob(CLIPS))


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _empty(folder: Path, keep: tuple[str, ...]) -> None:
    """Delete everything but the lock and what is to be kept."""
    for entry in _visible(folder):
        if entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _worth_keeping(folder: Path, error: BaseException) -> bool:
    """Whether a run that broke off has left something that another would go on from."""
    if _clips(folder):
        return True
    detected = (folder / LANDMARKS).rglob("found.raw")
    return not isinstance(error, UserError) and any(file.stat().st_size > 0 for file in detected)


def _sweep(output: Path) -> None:
    """Delete half-written videos of runs on this output that were killed; none is at work now."""
    part = re.compile(rf"\.{re.escape(output.stem)}\.[0-9a-f]{{12}}\.part{re.escape(output.suffix)}")
    for entry in output.parent.iterdir():
        if part.fullmatch(entry.name):
            entry.unlink(missing_ok=True)

"""From files to a file: a picture of several people and a driver for each give a video of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate import run as single
from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.animate.output import decibels
from fye_pipeline.animate.portrait import cover_of, read_still
from fye_pipeline.animate.renderer import RenderContext, Renderer
from fye_pipeline.animate.session import MEDIAPIPE, AnimationSession, Offload, native_size
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.writer import Matte, check_container
from fye_pipeline.multi_portrait.assignment import assign
from fye_pipeline.multi_portrait.composition import compose
from fye_pipeline.multi_portrait.drivers import open_drivers, read_drivers, sound_of, who_is_moved
from fye_pipeline.multi_portrait.output import GroupOutput, GroupResult, MovedPerson, OnFrame
from fye_pipeline.multi_portrait.ownership import nearest_heads
from fye_pipeline.multi_portrait.portraits import find_people, portrait_of
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.progress import OnProgress, collected_notes, silent
from fye_pipeline.storage.files import digest_of_path, writable_target


def animate(
    settings: GroupSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    face_landmarker: Path | None = None,
    device: str = "auto",
    offload: Offload = "none",
    detector: str = MEDIAPIPE,
    session: AnimationSession | None = None,
    on_progress: OnProgress = silent,
    on_frame: OnFrame | None = None,
) -> GroupResult:
    """Animate each face of a picture by its driver; arguments and errors as `animate.run.animate`.

    Each person is animated as a portrait of their own, with the square around the face, and laid into the picture where
    the pixels are theirs. on_frame: as `GroupOutput.write`.
    """
    if session is None:
        with AnimationSession(face_landmarker, device=device, offload=offload, detector=detector) as own:
            return animate(
                settings,
                output,
                overwrite=overwrite,
                resume=resume,
                session=own,
                on_progress=on_progress,
                on_frame=on_frame,
            )
    check_container(output, alpha=settings.alpha)
    output = writable_target(output, overwrite=overwrite)
    opaque = ".mp4" if settings.alpha else output.suffix
    comparison = output.with_name(f"{output.stem}_compare{opaque}") if settings.compare else None
    if comparison is not None:
        writable_target(comparison, overwrite=overwrite or resume)
    inputs = single.input_digests(settings) | driver_digests(settings) | single.detector_input(session)
    identity = settings.to_dict() | inputs
    with collected_notes() as notes, single.work_dir(output, identity, resume=resume, overwrite=overwrite) as work:
        picture = read_still(settings, session.detector)
        matte = Matte(cover_of(settings), settings.background) if settings.alpha else None
        height, width = picture.shape[:2]
        faces = find_people(settings, picture, session.detector)
        assignment = settings.assignment
        if not settings.splits:  # the counts are told before the long detection
            assignment = assign(len(faces), len(settings.drivers), assignment, str(settings.reference))
        opened = open_drivers(settings, work / single.LANDMARKS)
        session.model(settings)  # loaded now, for the same reason
        frames = max((each.frames or 0 for each in opened), default=0)
        single.check_room(output, single.video_bytes(frames, (width, height)))
        drivers = read_drivers(settings, opened, assignment, session.detector, work / single.LANDMARKS, on_progress)
        moved, count = who_is_moved(settings, len(faces), assignment, drivers)
        people = [
            _person(
                settings, picture, faces[index], index + 1, driver, drivers[driver], count, session, work, on_progress
            )
            for index, driver in moved
        ]
        owners = nearest_heads([face.box for face in faces], width, height)
        composition = compose(picture, owners, [(person.face, person.crop) for person in people])
        sound = sound_of(settings, opened)
        made = GroupOutput(settings, people, composition, count, opened[0].fps, sound, inputs, matte)
        error = made.write(
            output, comparison, overwrite=overwrite or resume, on_progress=on_progress, on_frame=on_frame
        )
        return GroupResult(
            output=output,
            frames=count,
            fps=made.fps,
            size=made.size,
            seconds=sum(person.run.statistics.seconds for person in people),
            comparison=comparison,
            uncached_seconds=made.uncached_seconds,
            psnr=None if error is None else decibels(error),
            faces=len(faces),
            people=[person.to_dict() for person in people],
            sound=sound is not None,
            notes=notes,
            settings=settings,
        )


def is_finished(output: Path, settings: GroupSettings) -> bool:
    """Whether the output was made with these settings from these files; `UserError` as `animate.run.is_finished`."""
    return single.is_finished(output, settings, driver_digests(settings))


def driver_digests(settings: GroupSettings) -> dict[str, str]:
    """What tells the contents of the drivers after the first from others."""
    return {f"driver {number} file": digest_of_path(path) for number, path in enumerate(settings.drivers[1:], 1)}


def _person(
    settings: GroupSettings,
    picture: NDArray[np.uint8],
    face: Face,
    number: int,
    driven_by: int,
    driver: LandmarkSequence,
    count: int,
    session: AnimationSession,
    work: Path,
    on_progress: OnProgress,
) -> MovedPerson:
    """Everything that makes one person's frames; number: of the face, from 1; count: frames of the video."""
    pipe = session.model(settings)
    size = settings.size or native_size(pipe)
    portrait = portrait_of(settings, picture, face, number, session.detector)
    assert portrait.face is not None
    assert portrait.crop is not None
    landmarks = RetargetedLandmarks(
        driver if len(driver) <= count else driver[:count],
        portrait.face,
        regions=settings.regions,
        intensity=settings.intensity,
        pose=settings.pose,
        neutral_frame=settings.neutral_frame,
    )
    bent = sharp = None
    if single.takes_hint(settings, portrait, pipe):
        bent = BentPortraits(portrait.square, portrait.face.landmarks[0], landmarks, size)
        sharp = portrait.at_full_size(settings, size) if settings.detail != "none" else None
    tell = _but_decoding(on_progress)
    context = RenderContext(pipe, settings, portrait.square, landmarks, size, pipe.unet.dtype, tell, bent, sharp)
    folder = work / "denoising" / str(number)
    run = Renderer(context, settings.cache is not None, f"denoising face {number}", folder)
    plain = Renderer(context, False, f"uncached face {number}", work / "uncached" / str(number))
    return MovedPerson(number, driven_by, portrait.crop, driver.gaps(), run, plain if settings.compare else None)


def _but_decoding(on_progress: OnProgress) -> OnProgress:
    """One person's progress: what is decoded is told of all together."""

    def tell(stage: str, done: int, total: int | None) -> None:
        if stage != "decoding":
            on_progress(stage, done, total)

    return tell

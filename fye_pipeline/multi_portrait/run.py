"""From files to a file: a picture of several people and a driver for each give a video of all."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.output import Run, decibels
from fye_pipeline.animate.portrait import cover_of, read_still
from fye_pipeline.animate.renderer import Renderer
from fye_pipeline.animate.run import (
    LANDMARKS,
    RunOptions,
    check_room,
    open_run,
    render_context,
    sharp_square,
    video_bytes,
)
from fye_pipeline.animate.session import native_size
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.writer import Matte
from fye_pipeline.multi_portrait.assignment import assign
from fye_pipeline.multi_portrait.composition import compose
from fye_pipeline.multi_portrait.drivers import open_drivers, read_drivers, sound_of, who_is_moved
from fye_pipeline.multi_portrait.output import GroupFrames, GroupResult, MovedPerson, OnFrame
from fye_pipeline.multi_portrait.ownership import nearest_heads
from fye_pipeline.multi_portrait.portraits import find_people, portrait_of
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.progress import OnProgress, silent


def animate(
    settings: GroupSettings,
    output: Path,
    *,
    on_progress: OnProgress = silent,
    on_frame: OnFrame | None = None,
    **how: Unpack[RunOptions],
) -> GroupResult:
    """Animate each face of a picture by its driver; arguments and errors as `animate.run.animate`.

    Each person is animated as a portrait of their own, with the square around the face, and laid into the picture where
    the pixels are theirs. on_frame: as `GroupFrames.shown`.
    """
    with open_run(settings, output, **how) as run:
        session, landmarks = run.session, run.work / LANDMARKS
        picture = read_still(settings, session.detector)
        matte = Matte(cover_of(settings), settings.background) if settings.alpha else None
        height, width = picture.shape[:2]
        faces = find_people(settings, picture, session.detector)
        assignment = settings.assignment
        if not settings.splits:  # the counts are told before the long detection
            assignment = assign(len(faces), len(settings.drivers), assignment, str(settings.reference))
        opened = open_drivers(settings, landmarks)
        session.model(settings)  # loaded now, for the same reason
        frames = max((each.frames or 0 for each in opened), default=0)
        check_room(run.output, video_bytes(frames, (width, height)))
        drivers = read_drivers(settings, opened, assignment, session.detector, landmarks, on_progress)
        moved, count = who_is_moved(settings, len(faces), assignment, drivers)
        people = [
            _person(run, settings, picture, faces[index], index + 1, driver, drivers[driver], count, on_progress)
            for index, driver in moved
        ]
        owners = nearest_heads([face.box for face in faces], width, height)
        composition = compose(picture, owners, [(person.face, person.crop) for person in people])
        sound = sound_of(settings, opened)
        made = GroupFrames(people, composition, count)
        named = [{"face": person.face, "driver": person.driven_by} for person in people]
        shown = made.shown(on_progress, on_frame)
        error = run.write(shown, opened[0].fps, (width, height), sound, matte, people=named)
        return GroupResult(
            output=run.output,
            frames=count,
            fps=opened[0].fps,
            size=(width, height),
            seconds=sum(person.run.statistics.seconds for person in people),
            comparison=run.comparison,
            uncached_seconds=made.uncached_seconds,
            psnr=decibels(error) if settings.compare else None,
            faces=len(faces),
            people=[person.to_dict() for person in people],
            sound=sound is not None,
            notes=run.notes,
            settings=settings,
        )


def _person(
    run: Run,
    settings: GroupSettings,
    picture: NDArray[np.uint8],
    face: Face,
    number: int,
    driven_by: int,
    driver: LandmarkSequence,
    count: int,
    on_progress: OnProgress,
) -> MovedPerson:
    """Everything that makes one person's frames; number: of the face, from 1; count: frames of the video."""
    pipe = run.session.model(settings)
    portrait = portrait_of(settings, picture, face, number, run.session.detector)
    assert portrait.crop is not None
    size = settings.size or native_size(pipe)
    sharp = sharp_square(settings, portrait, pipe, size)
    part = driver if len(driver) <= count else driver[:count]
    context = render_context(settings, portrait, pipe, size, part, sharp, _but_decoding(on_progress))
    folder = run.work / "denoising" / str(number)
    cached = Renderer(context, settings.cache is not None, f"denoising face {number}", folder)
    plain = Renderer(context, False, f"uncached face {number}", run.work / "uncached" / str(number))
    return MovedPerson(number, driven_by, portrait.crop, driver.gaps(), cached, plain if settings.compare else None)


def _but_decoding(on_progress: OnProgress) -> OnProgress:
    """One person's progress: what is decoded is told of all together."""

    def tell(stage: str, done: int, total: int | None) -> None:
        if stage != "decoding":
            on_progress(stage, done, total)

    return tell

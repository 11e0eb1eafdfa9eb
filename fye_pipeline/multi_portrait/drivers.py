"""The drivers of several people: a file for each, or the faces of one file; all at the rate of the first."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fye_pipeline.animate.driver import OpenDriver, open_driver_of
from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.landmarks.people import track_people
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.spool import DiskSpool, Spool
from fye_pipeline.landmarks.tracking import NoFace
from fye_pipeline.multi_portrait.assignment import Assignment, assign
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.progress import OnProgress, logger, silent


def open_drivers(settings: GroupSettings, folder: Path) -> list[OpenDriver]:
    """Every file as far as it can be known before faces are sought in it; resampled to the first one's rate.

    folder: where long landmark sequences are unpacked. Raises `UserError` as `open_driver`.
    """
    opened: list[OpenDriver] = []
    for number, path in enumerate(settings.drivers):
        rate = opened[0].fps if opened else settings.fps
        opened.append(open_driver_of(settings, path, rate, folder / str(number)))
    return opened


def sound_of(settings: GroupSettings, opened: list[OpenDriver]) -> Path | None:
    """The video whose sound the result gets, of drivers as they were opened; None without sound."""
    speaker = opened[0 if settings.splits else settings.audio_from].source
    return speaker.sound if settings.audio and speaker is not None else None


def read_drivers(
    settings: GroupSettings,
    opened: Sequence[OpenDriver],
    assignment: Assignment | None,
    detector: LazyDetector,
    folder: Path,
    on_progress: OnProgress = silent,
) -> dict[int, LandmarkSequence]:
    """The landmarks of every driver that moves somebody, by its number: the largest face of each file, or all of one.

    Raises `UserError` as `OpenDriver.read` and `track_people`.
    """
    told = {"no_face": settings.no_face, "max_gap": settings.max_gap, "on_progress": on_progress}
    if settings.splits:
        return dict(enumerate(read_people(opened[0], detector, folder=folder, **told)))
    return {
        number: opened[number].read(detector, folder=folder / str(number), **told).sequence
        for number in sorted({driver for driver in assignment or () if driver is not None})
    }


def who_is_moved(
    settings: GroupSettings, faces: int, assignment: Assignment | None, drivers: Mapping[int, LandmarkSequence]
) -> tuple[list[tuple[int, int]], int]:
    """The moved faces with their drivers, both from 0, and the frames of the video. `UserError` as `assign`."""
    if settings.splits:
        assignment = assign(faces, len(drivers), assignment, str(settings.reference), spare=True)
    assert assignment is not None
    moved = [(face, driver) for face, driver in enumerate(assignment) if driver is not None]
    return moved, common_length([len(drivers[driver]) for _, driver in moved], settings.until)


def read_people(
    opened: OpenDriver,
    detector: LazyDetector,
    *,
    no_face: NoFace,
    max_gap: float,
    folder: Path | None = None,
    on_progress: OnProgress = silent,
) -> list[LandmarkSequence]:
    """The landmarks of every face of a file, left to right; `folder` holds them, by default memory.

    Raises `UserError` as `people.track_people`.
    """
    if opened.source is None:
        assert opened.sequence is not None
        return [opened.sequence]

    def new_spool(number: int) -> Spool:
        if folder is None:
            return Spool()
        place = folder / f"face-{number}"
        shutil.rmtree(place, ignore_errors=True)  # of a run that broke off: tracks begin anew
        return DiskSpool(place)

    found = detector.open()
    return track_people(
        found.detect_all,
        opened.source.frames(opened.wanted),
        opened.source.fps,
        found.canonical,
        on_progress=lambda done: on_progress("detecting", done, opened.frames),
        no_face=no_face,
        max_gap=max_gap,
        new_spool=new_spool,
    )


def common_length(lengths: Collection[int], until: str) -> int:
    """Frames of a video whose drivers have these lengths."""
    if len(set(lengths)) > 1:
        logger.info(f"the drivers have {', '.join(map(str, lengths))} frames; the video ends with the {until}.")
    return max(lengths) if until == "longest" else min(lengths)

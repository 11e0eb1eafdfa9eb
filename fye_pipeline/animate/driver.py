"""The driving sequence: landmarks from a file, or those of the faces detected in a video."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.sequence import ARRAYS, LandmarkSequence, load_official_npy
from fye_pipeline.landmarks.spool import DiskSpool
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace
from fye_pipeline.media.image import BACKGROUND, MAX_PIXELS
from fye_pipeline.media.source import DEFAULT_FPS, Source, open_source
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.files import existing_file

_HELD = 16_000_000  # bytes of a landmark sequence; arrays of a larger one stay on the disk


@dataclass(frozen=True)
class Driver:
    """A driving sequence, its frame rate, and the video whose sound goes with it."""

    sequence: LandmarkSequence
    fps: Fraction
    sound: Path | None = None


@dataclass(frozen=True)
class OpenDriver:
    """A driver of which is known what can be known before faces are sought in it.

    frames: how many will be used, None where the file does not tell. Either `sequence` is there, or `source` is.
    """

    path: Path
    fps: Fraction
    frames: int | None
    wanted: int | None
    sequence: LandmarkSequence | None = None
    source: Source | None = None

    @property
    def is_detected(self) -> bool:
        """Whether faces have to be sought in it."""
        return self.sequence is None

    def read(
        self,
        detector: LazyDetector,
        *,
        no_face: NoFace = "interpolate",
        max_gap: float = DEFAULT_MAX_GAP,
        face_index: int | None = None,
        folder: Path | None = None,
        on_progress: OnProgress = silent,
    ) -> Driver:
        """The landmarks of every frame; detected ones are kept in `folder`, by default in memory.

        Raises:
            UserError: too few frames with a face (`tracking.track` says which), or a video that breaks off.
        """
        sequence = self.sequence
        if sequence is None:
            assert self.source is not None
            sequence = detector.open().detect_video(
                self.source.frames(self.wanted),
                self.source.fps,
                lambda done: on_progress("detecting", done, self.frames),
                no_face,
                max_gap,
                face_index,
                None if folder is None else DiskSpool(folder),
            )
        if self.wanted is not None and len(sequence) < self.wanted:
            logger.info(f"{self.path} has {len(sequence)} frames, fewer than the {self.wanted} that were asked for.")
        return Driver(sequence, sequence.fps or self.fps, None if self.source is None else self.source.sound)


def open_driver(
    path: Path,
    *,
    frames: int | None = None,
    fps: Fraction | None = None,
    max_pixels: int = MAX_PIXELS,
    background: str = BACKGROUND,
    allow_partial: bool = False,
    folder: Path | None = None,
) -> OpenDriver:
    """Open a landmark sequence (`.npz`), an official template (`.npy`), or a video or pictures to detect faces in.

    Only the first `frames` frames are read where that is given; `fps` resamples the driver, whose length stays. Arrays
    of a long sequence are unpacked into `folder`.

    Raises:
        UserError: unreadable or empty.
    """
    path = Path(path).expanduser()
    if path.suffix in (".npz", ".npy") and not path.is_dir():
        path = existing_file(path, "the driving video or sequence")
        place = folder if path.stat().st_size > _HELD else None
        sequence = LandmarkSequence.load(path, folder=place) if path.suffix == ".npz" else load_official_npy(path)
        if len(sequence) == 0:
            raise UserError(f"{path} has no frames.")
        sequence = resample(sequence, fps)
        if frames is not None and frames < len(sequence):
            sequence = sequence[:frames]
        return OpenDriver(path, sequence.fps or fps or DEFAULT_FPS, len(sequence), frames, sequence=sequence)
    source = open_source(path, fps=fps, max_pixels=max_pixels, background=background, allow_partial=allow_partial)
    if source.kind == "video" and source.sound is None:
        logger.info(f"{path} has no sound; the result is silent.")
    known = [count for count in (source.frame_count, frames) if count is not None]
    return OpenDriver(path, source.fps, min(known) if known else None, frames, source=source)


def open_driver_of(
    settings: AnimationSettings, path: Path, fps: Fraction | None, folder: Path | None = None
) -> OpenDriver:
    """Open a driver as settings say it is read; arguments and errors as `open_driver`."""
    return open_driver(
        path,
        frames=settings.frames,
        fps=fps,
        max_pixels=settings.max_pixels,
        background=settings.background,
        allow_partial=settings.allow_partial,
        folder=folder,
    )


def resample(sequence: LandmarkSequence, fps: Fraction | None) -> LandmarkSequence:
    """A sequence at another rate, of the same length: each tick has the frame nearest to its time."""
    if fps is None or sequence.fps in (None, fps):
        return replace(sequence, fps=fps or sequence.fps)
    count = max(round(len(sequence) * fps / sequence.fps), 1)
    nearest = [min(math.floor(tick * sequence.fps / fps + Fraction(1, 2)), len(sequence) - 1) for tick in range(count)]
    arrays = {name: getattr(sequence, name)[nearest] for name in ARRAYS}
    return replace(sequence, **arrays, fps=fps)

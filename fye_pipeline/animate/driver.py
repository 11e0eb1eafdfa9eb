"""What the animator is given, as landmarks: the portrait's face and the driver's, detected only where they must be."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector, Mode
from fye_pipeline.landmarks.faces import Box, choose
from fye_pipeline.landmarks.model_file import (
    FILE_NAME,
    VARIABLE,
    cache_folder,
    fetch_face_landmarker,
    find_face_landmarker,
)
from fye_pipeline.landmarks.sequence import ARRAYS, LandmarkSequence, load_official_npy
from fye_pipeline.landmarks.spool import DiskSpool, Spool
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace
from fye_pipeline.media.image import BACKGROUND, MAX_PIXELS
from fye_pipeline.media.source import DEFAULT_FPS, open_source
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import existing_file

_HELD = 16_000_000  # bytes of a landmark sequence; arrays of a larger one stay on the disk
MIN_FACE = 48  # pixels, the longer side of the portrait's face
_SCORES = (0.4, 0.3, 0.2, 0.1, 0.05)

OnNote = Callable[[str], None]
OnOpen = Callable[[int | None, Fraction, bool], None]


class LazyDetector:
    """A face landmarker that is fetched and opened when the first face is sought, and closed with the `with` block."""

    def __init__(
        self, task_path: Path | None = None, on_note: OnNote = lambda text: None, mode: Mode = "image"
    ) -> None:
        self._task_path, self._on_note = task_path, on_note
        self._mode: Mode = mode
        self._stack = ExitStack()
        self._detector: FaceLandmarkDetector | None = None

    def __enter__(self) -> LazyDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detector = None
        self._stack.close()

    def open(self) -> FaceLandmarkDetector:
        """The open detector. Raises `UserError` where MediaPipe's task file can neither be found nor fetched."""
        if self._detector is None:
            path = obtain_face_landmarker(self._task_path, self._on_note)
            self._detector = self._stack.enter_context(FaceLandmarkDetector(path, mode=self._mode))
        return self._detector

    def best_score(self, picture: NDArray[np.uint8]) -> float | None:
        """About how sure the detector is of the likeliest face in a picture where it accepts none; None: below 0.05."""
        path = obtain_face_landmarker(self._task_path, self._on_note)
        for score in _SCORES:
            with FaceLandmarkDetector(path, min_confidence=score) as detector:
                if detector.detect_all(picture):
                    return score
        return None


def obtain_face_landmarker(task_path: Path | None = None, on_note: OnNote = lambda text: None) -> Path:
    """MediaPipe's task file where it was named or lies in the cache folder, else fetched into it.

    Raises:
        UserError: it was named and is not there, has other bytes, or can neither be found nor fetched.
    """
    if task_path or os.environ.get(VARIABLE) or (cache_folder() / FILE_NAME).is_file():
        return find_face_landmarker(task_path)
    on_note(f"fetching MediaPipe's {FILE_NAME} into {cache_folder()}")
    return fetch_face_landmarker()


@dataclass(frozen=True)
class Driver:
    """A driving sequence, its frame rate, and the video whose sound goes with it."""

    sequence: LandmarkSequence
    fps: Fraction
    sound: Path | None = None


def read_reference(
    portrait: NDArray[np.uint8],
    detector: LazyDetector,
    *,
    landmarks: Path | None = None,
    name: str = "the reference",
    near: Box | None = None,
    least: int = 0,
) -> LandmarkSequence:
    """The portrait's face as a sequence of one frame: from its landmark file where there is one, else detected.

    Args:
        portrait: the square that the model sees, uint8 RGB [S, S, 3].
        detector: opened only without `landmarks`.
        landmarks: a `.npz` of one frame that belongs to this picture.
        name: how the picture is called in an error.
        near: where the face was seen, in 0..1 of the square; None takes the largest.
        least: pixels that the longer side of the face must have.

    Raises:
        UserError: no face, a face that is too small, or a landmark file of several frames.
    """
    if landmarks is not None:
        sequence = LandmarkSequence.load(existing_file(landmarks, "the reference's landmarks"))
        if len(sequence) != 1:
            raise UserError(f"{landmarks} has {len(sequence)} frames; the landmarks of a portrait are one frame.")
        return sequence
    face = choose(detector.open().detect_all(portrait), last_box=near)
    if face is None:
        raise UserError(no_face_sentence(name, detector.best_score(portrait)))
    if face.size < least:
        raise UserError(
            f"The face in {name} is {face.size:.0f} pixels after letterboxing, at least {least} are needed: "
            "leave out --whole, or crop the portrait closer to the face."
        )
    return face.as_sequence()


def no_face_sentence(name: str, score: float | None) -> str:
    """What a user is told whose portrait shows no face; `score` is the best that was found, if any."""
    best = "nothing scores above 0.05" if score is None else f"the best score is about {score:g}"
    return (
        f"No face was found in {name} ({best}; 0.5 is needed): choose a portrait that shows the whole face from the "
        "front, or pass --unaligned to draw the driver's own landmarks."
    )


def read_driver(
    path: Path,
    detector: LazyDetector,
    *,
    frames: int | None = None,
    fps: Fraction | None = None,
    no_face: NoFace = "interpolate",
    max_gap: float = DEFAULT_MAX_GAP,
    face_index: int | None = None,
    max_pixels: int = MAX_PIXELS,
    background: str = BACKGROUND,
    allow_partial: bool = False,
    spool: Spool | None = None,
    on_open: OnOpen = lambda frames, fps, detected: None,
    on_progress: OnProgress = silent,
    on_note: OnNote = lambda text: None,
) -> Driver:
    """The driver's landmarks: a sequence (`.npz`), an official template (`.npy`), or frames to detect faces in.

    Only the first `frames` frames are read where that is given; `fps` resamples the driver, whose length stays.
    `spool` is where detected landmarks are kept, by default in memory. `on_open(frames, fps, detected)` is told what is
    known when the file is open: its length, if any, its rate, and whether faces are to be detected.

    Raises:
        UserError: unreadable or empty, too few frames with a face (`tracking.track` says which).
    """
    path = Path(path).expanduser()
    sound: Path | None = None
    if path.suffix in (".npz", ".npy") and not path.is_dir():
        path = existing_file(path, "the driving video or sequence")
        folder = spool.folder if isinstance(spool, DiskSpool) and path.stat().st_size > _HELD else None
        sequence = LandmarkSequence.load(path, folder=folder) if path.suffix == ".npz" else load_official_npy(path)
        if len(sequence) == 0:
            raise UserError(f"{path} has no frames.")
        sequence = resample(sequence, fps)
        if frames is not None and frames < len(sequence):
            sequence = sequence[:frames]
        on_open(len(sequence), sequence.fps or DEFAULT_FPS, False)
    else:
        options = {"max_pixels": max_pixels, "background": background, "allow_partial": allow_partial}
        source = open_source(path, fps=fps, on_note=on_note, **options)
        sound = source.sound
        if source.kind == "video" and sound is None:
            on_note(f"{path} has no sound; the result is silent.")
        known = [count for count in (source.frame_count, frames) if count is not None]
        total = min(known) if known else None
        on_open(total, source.fps, True)
        sequence = detector.open().detect_video(
            source.frames(frames),
            source.fps,
            lambda done: on_progress("detecting", done, total),
            no_face,
            max_gap,
            face_index,
            spool,
        )
    if frames is not None and len(sequence) < frames:
        on_note(f"{path} has {len(sequence)} frames, fewer than the {frames} that were asked for.")
    return Driver(sequence, sequence.fps or fps or DEFAULT_FPS, sound)


def resample(sequence: LandmarkSequence, fps: Fraction | None) -> LandmarkSequence:
    """A sequence at another rate, of the same length: each tick has the frame nearest to its time."""
    if fps is None or sequence.fps in (None, fps):
        return replace(sequence, fps=fps or sequence.fps)
    count = max(round(len(sequence) * fps / sequence.fps), 1)
    nearest = [min(math.floor(tick * sequence.fps / fps + Fraction(1, 2)), len(sequence) - 1) for tick in range(count)]
    arrays = {name: getattr(sequence, name)[nearest] for name in ARRAYS}
    return replace(sequence, **arrays, fps=fps)

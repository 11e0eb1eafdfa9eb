"""What the animator is given, as landmarks: the portrait's face and the driver's, detected only where they must be."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.console import OnProgress, silent
from fye_pipeline.errors import UserError
from fye_pipeline.files import existing_file
from fye_pipeline.landmarks.detector import FaceLandmarkDetector, Mode
from fye_pipeline.landmarks.model_file import (
    FILE_NAME,
    VARIABLE,
    cache_folder,
    fetch_face_landmarker,
    find_face_landmarker,
)
from fye_pipeline.landmarks.sequence import LandmarkSequence, load_official_npy
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace
from fye_pipeline.video import dynamic_range_note, probe, read_frames

DEFAULT_FPS = Fraction(25)  # of a sequence that names no rate
MIN_FACE = 48  # pixels, the longer side of the face in the letterboxed portrait

OnNote = Callable[[str], None]


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
    """A driving sequence and its frame rate."""

    sequence: LandmarkSequence
    fps: Fraction


def read_reference(
    portrait: NDArray[np.uint8], detector: LazyDetector, *, landmarks: Path | None = None, name: str = "the reference"
) -> LandmarkSequence:
    """The portrait's face as a sequence of one frame: from its landmark file where there is one, else detected.

    Args:
        portrait: the letterboxed picture, uint8 RGB [S, S, 3].
        detector: opened only without `landmarks`.
        landmarks: a `.npz` of one frame that belongs to this picture.
        name: how the picture is called in an error.

    Raises:
        UserError: no face, a face under 48 pixels, or a landmark file of several frames.
    """
    if landmarks is not None:
        sequence = LandmarkSequence.load(existing_file(landmarks, "the reference's landmarks"))
        if len(sequence) != 1:
            raise UserError(f"{landmarks} has {len(sequence)} frames; the landmarks of a portrait are one frame.")
        return sequence
    face = detector.open().detect(portrait)
    if face is None:
        raise UserError(
            f"No face was found in {name}: choose a portrait that shows the whole face from the front "
            "(or pass --unaligned to draw the driver's own landmarks)."
        )
    if face.size < MIN_FACE:
        raise UserError(
            f"The face in {name} is {face.size:.0f} pixels after letterboxing, at least {MIN_FACE} are needed: "
            "crop the portrait closer to the face."
        )
    return face.as_sequence()


def read_driver(
    path: Path,
    detector: LazyDetector,
    *,
    frames: int | None = None,
    no_face: NoFace = "interpolate",
    max_gap: float = DEFAULT_MAX_GAP,
    face_index: int | None = None,
    on_progress: OnProgress = silent,
    on_note: OnNote = lambda text: None,
) -> Driver:
    """The driver's landmarks: a sequence (`.npz`), an official template (`.npy`), or a video to detect faces in.

    Only the first `frames` frames are read where that is given.

    Raises:
        UserError: unreadable or empty, too few frames with a face (`tracking.track` says which).
    """
    path = existing_file(path, "the driving video or sequence")
    if path.suffix in (".npz", ".npy"):
        sequence = LandmarkSequence.load(path) if path.suffix == ".npz" else load_official_npy(path)
        sequence = sequence[:frames]
        if len(sequence) == 0:
            raise UserError(f"{path} has no frames.")
    else:
        info = probe(path)
        if note := dynamic_range_note(path):
            on_note(note)
        known = [count for count in (info.frame_count, frames) if count is not None]
        total = min(known) if known else None
        sequence = detector.open().detect_video(
            read_frames(path, limit=frames),
            info.fps,
            lambda done: on_progress("detecting", done, total),
            no_face,
            max_gap,
            face_index,
        )
    if frames is not None and len(sequence) < frames:
        on_note(f"{path} has {len(sequence)} frames, fewer than the {frames} that were asked for.")
    return Driver(sequence, sequence.fps or DEFAULT_FPS)

"""One video into clips: faces found in every frame, cut, seen through a square, written with their landmarks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.faces import Box, choose
from fye_pipeline.landmarks.geometry import CanonicalFace, metric_mesh
from fye_pipeline.media.source import open_source
from fye_pipeline.progress import collected_notes
from fye_pipeline.training.dataset import ClipEntry, ShardWriter
from fye_pipeline.training.segment import UNREADABLE, CutRules, Piece, Sighting, cut, in_square

PART = 1000  # frames that are looked at together: what memory holds of a long video
_FACES = 4  # looked for in a frame
_THUMBNAIL = (48, 27)


@dataclass
class Outcome:
    """What became of a video: clips with their place in it, rejected pieces with their reasons, and what was noted."""

    video: str
    frames: int = 0
    fps: str = ""
    clips: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Unreadable(Exception):
    """The video cannot be read; its sentence goes into the report and the work goes on."""


def make_clips(
    path: Path,
    name: str,
    key: str,
    shard: ShardWriter,
    rules: CutRules,
    *,
    size: int,
    fps: Fraction | None = None,
    task: Path | None = None,
    on_frames: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Write every clip of a video (or of a folder of pictures) into a shard.

    The video is read twice side by side, once to find the faces and once to cut them out, so that memory does not grow
    with its length. size: pixels of the squares. key: begins the clips' keys. on_frames is called with counts of
    frames that were looked at. A video that cannot be read is an outcome, not an error.
    """
    outcome = Outcome(name)
    notes: list[str] = []
    try:
        with collected_notes() as notes, FaceLandmarkDetector(task, max_faces=_FACES) as detector:
            try:
                source = open_source(path, what="a video", fps=fps, allow_partial=True)
            except UserError as error:
                raise _Unreadable(str(error)) from error
            if source.kind == "picture":
                raise _Unreadable(f"{path} is a single picture.")
            outcome.fps = str(source.fps)
            ahead, behind = _readable(source.frames()), _readable(source.frames())
            with closing(ahead), closing(behind):
                last: Box | None = None
                while sightings := list(_look(detector, islice(ahead, PART), last, on_frames)):
                    last = next((seen.face.box for seen in reversed(sightings) if seen.face), last)
                    pieces = cut(sightings, rules)
                    frames = islice(behind, len(sightings))
                    made = _write_pieces(
                        frames, sightings, pieces, shard, detector.canonical, size, (key, name, outcome.fps)
                    )
                    _enter(outcome, pieces, made)
    except _Unreadable as error:
        outcome.rejected.append({"reason": UNREADABLE, "detail": str(error)})
    outcome.notes = list(dict.fromkeys(notes))  # both readers say the same
    return outcome


def _readable(frames: Iterator[NDArray[np.uint8]]) -> Generator[NDArray[np.uint8]]:
    try:
        yield from frames
    except UserError as error:
        raise _Unreadable(str(error)) from error


def _look(
    detector: FaceLandmarkDetector,
    frames: Iterable[NDArray[np.uint8]],
    last: Box | None,
    on_frames: Callable[[int], None],
) -> Iterator[Sighting]:
    """Find the faces of every frame and follow one of them."""
    before: NDArray[np.float32] | None = None
    for frame in frames:
        small = cv2.resize(np.ascontiguousarray(frame), _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        change = 0.0 if before is None else float(np.abs(small - before).mean() / 255)
        before = small
        faces = detector.detect_all(frame)
        face = choose(faces, last_box=last)
        last = face.box if face else last
        yield Sighting(face, tuple(other for other in faces if other is not face), change)
        on_frames(1)


def _write_pieces(
    frames: Iterator[NDArray[np.uint8]],
    sightings: list[Sighting],
    pieces: list[Piece],
    shard: ShardWriter,
    canonical: CanonicalFace,
    size: int,
    names: tuple[str, str, str],
) -> list[ClipEntry]:
    """Cut the clips' frames out and write them; frames of rejected pieces are passed over."""
    key, video, fps = names
    made = []
    for piece in pieces:
        taken = islice(frames, len(piece))
        if piece.crop is None:
            for _ in taken:
                pass
            continue
        writer = shard.begin(f"{key}-{len(shard.entries):04d}", video, fps)
        for frame in taken:
            writer.add(piece.crop.cut(frame, size))
        faces = [seen.face for seen in sightings[piece.start : piece.stop] if seen.face is not None]
        landmarks = in_square(np.stack([face.landmarks for face in faces]), piece.crop)
        fitted = [metric_mesh(each, size, size, canonical) for each in landmarks]
        arrays = {
            "landmarks": landmarks,
            "mesh": np.stack([mesh for mesh, _ in fitted]),
            "poses": np.stack([pose for _, pose in fitted]),
            "blendshapes": np.stack([face.blendshapes for face in faces]),
        }
        made.append(writer.finish(arrays, {"square": piece.crop.to_dict(size)}))
    return made


def _enter(outcome: Outcome, pieces: list[Piece], made: list[ClipEntry]) -> None:
    """Write a part's pieces into the outcome, behind those of the parts before."""
    entries, first = iter(made), outcome.frames
    for piece in pieces:
        place = {"start": first + piece.start, "stop": first + piece.stop}
        if piece.crop is None:
            outcome.rejected.append({**place, "reason": piece.reason})
        else:
            outcome.clips.append({**place, "key": next(entries).key, "side": piece.crop.side})
    outcome.frames += pieces[-1].stop

"""Videos in through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.error import FFmpegError

from fye_pipeline.errors import UserError
from fye_pipeline.media.color import colour_note, to_srgb
from fye_pipeline.media.file_type import is_cut_off, is_iso_media
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import existing_file

_LARGEST_CLOCK = 1_000_000  # ticks a second; a stranger rate is rounded to a common one
_HALF = Fraction(1, 2)

T = TypeVar("T")


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself: the frame rate as a fraction, the count of frames where the container gives it."""

    path: Path
    fps: Fraction
    frame_count: int | None
    has_audio: bool
    width: int
    height: int


def probe(path: str | Path, *, what: str = "the driving video", max_pixels: int | None = None) -> VideoInfo:
    """Open a video and read its header.

    Raises:
        UserError: absent, a folder, empty, not a video or cut off, without a picture stream, or with more than
            `max_pixels` a frame.
    """
    path = existing_file(path, what)
    try:
        with av.open(str(path)) as container:
            if not len(container.streams):
                raise UserError(f"{path} cannot be read as a video (incomplete file?): copy it again.")
            if not container.streams.video:
                raise UserError(f"{path} has no picture ({what} must be a video).")
            stream = container.streams.video[0]
            if max_pixels is not None and stream.width * stream.height > max_pixels:
                raise UserError(
                    f"{path} has {stream.width} x {stream.height} pixels, more than {max_pixels:,}; "
                    "reduce it or raise --max-pixels."
                )
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            if rate.numerator > _LARGEST_CLOCK:
                rate = rate.limit_denominator(1001)
            sound = bool(container.streams.audio)
            return VideoInfo(path, rate, stream.frames or None, sound, stream.width, stream.height)
    except FFmpegError as error:
        if is_iso_media(path):
            raise UserError(f"{path} cannot be read as a video (incomplete file?): copy it again.") from error
        raise UserError(f"{path} cannot be read as a video: it is not a video, or it is damaged.") from error


def read_frames(
    path: str | Path,
    *,
    limit: int | None = None,
    what: str = "the driving video",
    fps: Fraction | None = None,
    allow_partial: bool = False,
) -> Iterator[np.ndarray]:
    """Decode a video to uint8 RGB [H, W, 3] at a constant rate, turned upright as its rotation flag says.

    Frames stand where their timestamps put them: with a variable rate some are repeated or left out, so that the length
    stays the same to within a frame; with a constant rate every frame comes once. `fps` None is the video's own rate.
    With `allow_partial` a video that is damaged ends where the damage begins.

    Raises:
        UserError: as `probe`, and where the decoder fails (with the second at which it did) or finds no frame.
    """
    info = probe(path, what=what)
    timed = _decode(info, what, allow_partial)
    yield from islice(at_constant_rate(timed, fps or info.fps), limit)


def _decode(info: VideoInfo, what: str, allow_partial: bool) -> Iterator[tuple[Fraction, Fraction, np.ndarray]]:
    """(begin, duration, frame) of every frame, seconds counted from the first."""
    count, origin, end = 0, None, Fraction(0)
    failure: FFmpegError | None = None
    try:
        with av.open(str(info.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                base = Fraction(frame.time_base or 1 / info.fps)
                time = end if frame.pts is None else frame.pts * base
                origin = time if origin is None else origin
                duration = (frame.duration or 0) * base or 1 / info.fps
                end = time - origin + duration
                turned = np.rot90(to_srgb(frame), k=round(frame.rotation / 90) % 4)
                yield time - origin, duration, turned
                count += 1
    except FFmpegError as error:
        failure = error
    if count == 0:
        raise UserError(f"{info.path} holds no frame that can be decoded ({what}).") from failure
    if failure is not None or is_cut_off(info.path):
        text = f"{info.path} is damaged or cut off after frame {count} ({float(end):.2f} s)"
        if not allow_partial:
            raise UserError(f"{text}: pass --allow-partial to use the part before it.") from failure
        logger.info(f"{text}; the part before it is used.")


def at_constant_rate(timed: Iterable[tuple[Fraction, Fraction, T]], fps: Fraction) -> Iterator[T]:
    """Put items with times (begin, duration in seconds, from 0 on) on a clock of `fps`, each until the next begins.

    An item begins at the tick nearest to its time; of several at one tick the last is kept; the last item ends when its
    duration does, and at least one tick is given.
    """
    held: tuple[T] | None = None
    tick, end = 0, Fraction(0)
    for begin, duration, item in timed:
        place = math.floor(begin * fps + _HALF)
        while held is not None and tick < place:
            yield held[0]
            tick += 1
        held, end = (item,), begin + duration
    if held is not None:
        for _ in range(max(math.floor(end * fps + _HALF) - tick, 1 if tick == 0 else 0)):
            yield held[0]


def depth_note(path: str | Path) -> str | None:
    """One sentence where the first frame is HDR, has BT.2020 colours or more than 8 bits a colour, else None."""
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(container.streams.video[0]):
                return colour_note(frame, str(path))
    except FFmpegError:
        pass  # the decoder will say so with the second at which it fails
    return None


def read_comment(path: Path) -> str:
    """The comment in a video's container, "" where there is none or the file cannot be opened."""
    try:
        with av.open(str(path)) as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}  # WebM writes COMMENT
            return tags.get("comment", "")
    except FFmpegError:
        return ""

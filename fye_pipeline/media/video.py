"""Videos in and out through PyAV, and the mark that says a video was generated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import av
import cv2
import numpy as np
from av.error import FFmpegError

from fye_pipeline.errors import UserError
from fye_pipeline.media.audio import Sound
from fye_pipeline.media.color import colour_note, to_srgb
from fye_pipeline.media.file_type import is_cut_off, is_iso_media
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import atomic_target, existing_file

WATERMARK = "AI-generated"
# x264's fastest look ahead depends on where its buffers happen to lie; then equal frames give unequal files.
_H264 = {"crf": "16", "x264-params": "cpu-independent=1"}
_BT709 = 1  # ITU-T H.273, the same number for primaries, transfer and matrix
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


class VideoWriter:
    """H.264 in mp4 at an exact frame rate; the file takes its name only when the last frame is in.

    Args:
        path: the mp4 to write.
        fps: frames a second, kept as a fraction.
        comment: what goes into the container's comment.
        sound: a video whose sound is carried over, cut to the picture.
        overwrite: replace a file that has come into being meanwhile.
    """

    def __init__(
        self,
        path: Path,
        fps: Fraction,
        *,
        comment: str = "",
        sound: Path | None = None,
        overwrite: bool = True,
    ) -> None:
        self._path, self._fps, self._comment = path, fps, comment
        self._sound_path, self._overwrite = sound, overwrite
        self._stack = ExitStack()
        self._stream: av.VideoStream | None = None
        self._sound: Sound | None = None
        self._count = 0

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_target(self._path, overwrite=self._overwrite))
            self._container = stack.enter_context(av.open(str(temporary), "w"))
            self._container.metadata["comment"] = self._comment
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one uint8 RGB frame [H, W, 3]; an odd side is padded by one pixel, as 4:2:0 colour needs."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open(*frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
        picture.pts, picture.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self._count += 1
        if self._sound is not None:
            self._sound.advance(self._count / self._fps)

    def _open(self, height: int, width: int) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=self._fps, options=_H264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # limited, "TV"
        if self._sound_path is not None:
            self._sound = Sound(self._sound_path, self._container)
            self._stack.callback(self._sound.close)
            if not self._sound.copied:
                logger.info(f"{self._sound_path}: mp4 cannot hold its sound as it is; it is encoded as AAC.")
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
                if self._sound is not None:
                    self._sound.finish(self._count / self._fps)
            elif error is not None:
                raise error


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    *,
    comment: str = "",
    sound: Path | None = None,
    overwrite: bool = True,
) -> None:
    """Write uint8 RGB frames [H, W, 3] as H.264 in mp4; the arguments are those of `VideoWriter`."""
    with VideoWriter(path, fps, comment=comment, sound=sound, overwrite=overwrite) as writer:
        for frame in frames:
            writer.write(frame)


def read_comment(path: Path) -> str:
    """The comment in a video's container, "" where there is none or the file cannot be opened."""
    try:
        with av.open(str(path)) as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}  # WebM writes COMMENT
            return tags.get("comment", "")
    except FFmpegError:
        return ""


def watermark(frame: np.ndarray, text: str = WATERMARK) -> np.ndarray:
    """Burn a readable mark into the lower right corner. uint8 RGB [H, W, 3] -> the same, a new array."""
    height, width = frame.shape[:2]
    scale = 4  # drawn large and area-reduced, so that it stays readable on small frames
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 2 * scale // 3
    letter = max(6.0, height / 24) * scale
    size = letter / cv2.getTextSize("A", font, 1.0, 1)[0][1]
    (text_width, text_height), base = cv2.getTextSize(text, font, size, thickness)
    limit = 0.9 * width * scale
    if text_width > limit:
        size *= limit / text_width
        (text_width, text_height), base = cv2.getTextSize(text, font, size, thickness)
    pad = int(letter / 2)
    label = np.zeros((text_height + base + pad, text_width + pad), np.uint8)
    cv2.putText(label, text, (pad // 2, text_height + pad // 2), font, size, 255, thickness, cv2.LINE_AA)
    label = cv2.resize(label, (label.shape[1] // scale, label.shape[0] // scale), interpolation=cv2.INTER_AREA)
    marked = frame.copy()
    rows, columns = min(label.shape[0], height), min(label.shape[1], width)
    corner = marked[height - rows :, width - columns :].astype(np.float32)
    ink = label[:rows, :columns, None].astype(np.float32) / 255
    marked[height - rows :, width - columns :] = (corner * 0.45 * (1 - ink) + 255 * ink).astype(np.uint8)
    return marked

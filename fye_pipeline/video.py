"""Videos in and out through PyAV, and the mark that says a video was generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from av.error import FFmpegError

from fye_pipeline.errors import UserError
from fye_pipeline.files import atomic_target, existing_file

WATERMARK = "AI-generated"
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273, transfer characteristics


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself: the frame rate as a fraction, the count of frames where the container gives it."""

    path: Path
    fps: Fraction
    frame_count: int | None
    has_audio: bool


def probe(path: str | Path, *, what: str = "the driving video") -> VideoInfo:
    """Open a video and read its header.

    Raises:
        UserError: absent, a folder, empty, not a video or cut off, or without a picture stream.
    """
    path = existing_file(path, what)
    try:
        with av.open(str(path)) as container:
            if not len(container.streams):
                raise UserError(f"{path} cannot be read as a video (incomplete file?): copy it again.")
            if not container.streams.video:
                raise UserError(f"{path} has no picture ({what} must be a video).")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            return VideoInfo(path, Fraction(rate), stream.frames or None, bool(container.streams.audio))
    except FFmpegError as error:
        raise UserError(f"{path} cannot be read as a video (incomplete, or not a video): copy it again.") from error


def read_frames(path: str | Path, *, limit: int | None = None, what: str = "the driving video") -> Iterator[np.ndarray]:
    """Decode a video frame by frame to uint8 RGB [H, W, 3], turned upright as its rotation flag says.

    Raises:
        UserError: as `probe`, and where the decoder fails (with the second at which it did) or finds no frame.
    """
    info = probe(path, what=what)
    count = 0
    try:
        with av.open(str(info.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
                count += 1
                if count == limit:
                    return
    except FFmpegError as error:
        second = float(count / info.fps)
        raise UserError(f"{info.path} is damaged after frame {count} ({second:.2f} s): cut it before that.") from error
    if count == 0:
        raise UserError(f"{info.path} holds no frame that can be decoded ({what}).")


def dynamic_range_note(path: str | Path) -> str | None:
    """One sentence where the first frame is coded for HDR (its colours will look flat in 8 bits), else None."""
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            kind = _HDR_TRANSFERS.get(int(frame.color_trc))
            return f"{path} is {kind} HDR; its colours are read as if it were SDR." if kind else None
    return None


class VideoWriter:
    """H.264 in mp4 at an exact frame rate; the file takes its name only when the last frame is in.

    Args:
        path: the mp4 to write.
        fps: frames a second, kept as a fraction.
        comment: what goes into the container's comment.
    """

    def __init__(self, path: Path, fps: Fraction, *, comment: str = "") -> None:
        self._path, self._fps, self._comment = path, fps, comment
        self._stack = ExitStack()
        self._stream: av.VideoStream | None = None
        self._count = 0

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_target(self._path))
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
            self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "16"})
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._stack.__exit__(kind, error, trace)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: Fraction, *, comment: str = "") -> None:
    """Write uint8 RGB frames [H, W, 3] as H.264 in mp4."""
    with VideoWriter(path, fps, comment=comment) as writer:
        for frame in frames:
            writer.write(frame)


def read_comment(path: Path) -> str:
    """The comment in a video's container, "" where there is none or the file cannot be opened."""
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment", "")
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

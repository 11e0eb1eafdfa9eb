"""Videos out through PyAV: H.264 in mp4, or with transparency VP9 in WebM and ProRes 4444 in MOV; and the mark on them.

The matte of a transparent video is the portrait's and stays where it is: a head that leaves its outline is cut at it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from fye_pipeline.errors import UserError
from fye_pipeline.media.audio import Sound
from fye_pipeline.media.color import EXACT
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import atomic_target

WATERMARK = "AI-generated"
OPAQUE = (".mp4", ".mov", ".m4v", ".mkv")
TRANSPARENT = (".webm", ".mov")
_BT709 = 1  # ITU-T H.273, the same number for primaries, transfer and matrix
_FAINT = 0.02  # a pixel with less cover shows the background's colour, which nobody sees


@dataclass(frozen=True)
class _Codec:
    """An encoder's name, its pixels, and its options."""

    name: str
    pixels: str
    options: dict[str, str]


# x264's fastest look ahead depends on where its buffers happen to lie; then equal frames give unequal files.
_H264 = _Codec("libx264", "yuv420p", {"crf": "16", "x264-params": "cpu-independent=1"})
_PRORES = _Codec("prores_ks", "yuva444p10le", {"profile": "4444", "alpha_bits": "16", "vendor": "apl0"})
_VP9 = _Codec(
    "libvpx-vp9",
    "yuva420p",
    {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "auto-alt-ref": "0"},
)


def check_container(output: Path, *, alpha: bool) -> None:
    """Raise `UserError` where the output's ending names a format that cannot hold the result."""
    suffix = output.suffix.lower()
    if alpha and suffix not in TRANSPARENT:
        raise UserError(f"{output}: with --alpha the output ends in {' or '.join(TRANSPARENT)}; {suffix} has none.")
    if not alpha and suffix not in OPAQUE:
        raise UserError(f"{output}: the output ends in {', '.join(OPAQUE)}, or in .webm with --alpha.")


@dataclass(frozen=True)
class Matte:
    """How much of each pixel the portrait covers, uint8 [H, W], and the colour that lies under it."""

    cover: NDArray[np.uint8]
    background: str

    def lay(self, frame: NDArray[np.uint8], marked: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames [H, W, 3] without and with the visible mark -> [H, W, 4].

        The background's share is taken out of the colours, so that laid over it they are the frame again; the mark is
        opaque, wherever it lies.
        """
        share = self.cover[..., None].astype(np.float32) / 255
        under = np.array(ImageColor.getrgb(self.background)[:3], np.float32)
        own = under + (frame.astype(np.float32) - under) / np.maximum(share, _FAINT)
        mark = (marked != frame).any(axis=-1, keepdims=True)
        colours = np.where(mark, marked, np.clip(own + 0.5, 0, 255)).astype(np.uint8)
        return np.concatenate([colours, np.where(mark, 255, self.cover[..., None]).astype(np.uint8)], axis=-1)


class VideoWriter:
    """A video at an exact frame rate; the file takes its name only when the last frame is in.

    Args:
        path: the file to write; with `alpha` its ending chooses the codec.
        fps: frames a second, kept as a fraction.
        alpha: frames have a fourth channel, how much they cover.
        comment: what goes into the container's comment.
        sound: a video whose sound is carried over, cut to the picture.
        overwrite: replace a file that has come into being meanwhile.
    """

    def __init__(
        self,
        path: Path,
        fps: Fraction,
        *,
        alpha: bool = False,
        comment: str = "",
        sound: Path | None = None,
        overwrite: bool = True,
    ) -> None:
        self._path, self._fps, self._comment = path, fps, comment
        self._sound_path, self._overwrite, self._alpha = sound, overwrite, alpha
        self._webm = alpha and path.suffix.lower() == ".webm"
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
        """Append one uint8 frame [H, W, 3], or [H, W, 4] with `alpha`; an odd side is padded by one pixel for 4:2:0."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open(*frame.shape[:2])
        pixels = "rgba" if self._alpha else "rgb24"
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=pixels)
        picture = picture.reformat(format=self._stream.pix_fmt, dst_colorspace="ITU709", interpolation=EXACT)
        picture.pts, picture.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self._count += 1
        if self._sound is not None:
            self._sound.advance(self._count / self._fps)

    def _open(self, height: int, width: int) -> av.VideoStream:
        codec = _VP9 if self._webm else _PRORES if self._alpha else _H264
        stream = self._container.add_stream(codec.name, rate=self._fps, options=codec.options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, codec.pixels
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # limited, "TV"
        if self._sound_path is not None:
            self._sound = Sound(self._sound_path, self._container, webm=self._webm)
            self._stack.callback(self._sound.close)
            if not self._alpha and not self._sound.copied:
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


def write_video(path: Path, frames: Iterable[np.ndarray], fps: Fraction, **options: Any) -> None:
    """Write uint8 RGB frames [H, W, 3] as H.264; the options are those of `VideoWriter`."""
    with VideoWriter(path, fps, **options) as writer:
        for frame in frames:
            writer.write(frame)


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

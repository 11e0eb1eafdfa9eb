"""A result with transparency: the portrait's own matte beside the animated colours, in WebM (VP9) or MOV (ProRes 4444).

The matte is the portrait's and stays where it is: a head that leaves its outline is cut at it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from fye_pipeline.errors import UserError
from fye_pipeline.media.audio import Sound
from fye_pipeline.media.video import VideoWriter
from fye_pipeline.storage.files import atomic_target

OPAQUE = (".mp4", ".mov", ".m4v", ".mkv")
TRANSPARENT = (".webm", ".mov")
_BT709 = 1  # ITU-T H.273
_FAINT = 0.02  # a pixel with less cover shows the background's colour, which nobody sees


class Writer(Protocol):
    """What frames are written to: `VideoWriter`, or `TransparentWriter` for frames with a fourth channel."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, frame: np.ndarray) -> None: ...


def check_container(output: Path, *, alpha: bool) -> None:
    """Raise `UserError` where the output's ending names a format that cannot hold the result."""
    suffix = output.suffix.lower()
    if alpha and suffix not in TRANSPARENT:
        raise UserError(f"{output}: with --alpha the output ends in {' or '.join(TRANSPARENT)}; {suffix} has none.")
    if not alpha and suffix not in OPAQUE:
        raise UserError(f"{output}: the output ends in {', '.join(OPAQUE)}, or in .webm with --alpha.")


def open_writer(path: Path, fps: Fraction, *, alpha: bool = False, **options: Any) -> Writer:
    """A writer for frames [H, W, 3], or [H, W, 4] with `alpha`; `options` are those of `VideoWriter`."""
    return TransparentWriter(path, fps, **options) if alpha else VideoWriter(path, fps, **options)


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


class TransparentWriter:
    """VP9 with alpha in WebM, or ProRes 4444 in MOV; the arguments are those of `VideoWriter`."""

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
        self._webm = path.suffix.lower() == ".webm"
        self._stream: av.VideoStream | None = None
        self._sound: Sound | None = None
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> TransparentWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_target(self._path, overwrite=self._overwrite))
            self._container = stack.enter_context(av.open(str(temporary), "w"))
            self._container.metadata["comment"] = self._comment
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one uint8 RGBA frame [H, W, 4]; an odd side is padded by one pixel."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._open(*frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgba")
        picture = picture.reformat(format=self._stream.pix_fmt, dst_colorspace="ITU709")
        picture.pts, picture.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self._count += 1
        if self._sound is not None:
            self._sound.advance(self._count / self._fps)

    def _open(self, height: int, width: int) -> av.VideoStream:
        if self._webm:
            options = {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "auto-alt-ref": "0"}
            stream = self._container.add_stream("libvpx-vp9", rate=self._fps, options=options)
            stream.pix_fmt = "yuva420p"
        else:
            options = {"profile": "4444", "alpha_bits": "16", "vendor": "apl0"}
            stream = self._container.add_stream("prores_ks", rate=self._fps, options=options)
            stream.pix_fmt = "yuva444p10le"
        stream.height, stream.width = height, width
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1
        if self._sound_path is not None:
            self._sound = Sound(self._sound_path, self._container, webm=self._webm)
            self._stack.callback(self._sound.close)
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

"""A driver's sound beside the new picture: copied packet by packet where mp4 can hold it, else encoded as AAC."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from fye_pipeline.progress import logger

COPIED = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")  # what an mp4 may hold and players know
COPIED_WEBM = ("opus", "vorbis")
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_BIT_RATE = 128_000
_LEAD = Fraction(
    1, 20
)  # seconds before the picture whose packets are kept: a decoder starts on them, players hide them


@dataclass(frozen=True)
class Piece:
    """Some sound from `begin` to `end` seconds of the new video; `send(until)` writes it, cut there unless None."""

    begin: Fraction
    end: Fraction
    send: Callable[[Fraction | None], None]


class Sound:
    """The first sound stream of a video, read along as the picture is written, so that memory stays flat.

    Args:
        path: the video whose sound it is.
        target: the container that is being written; the stream is added to it here.
        webm: the container is WebM, which holds Opus where mp4 would hold AAC.
    """

    def __init__(self, path: Path, target: Any, *, webm: bool = False) -> None:
        self._path, self._target = path, target
        self._source = av.open(str(path))
        stream = self._source.streams.audio[0]
        self.copied = stream.codec_context.name in (COPIED_WEBM if webm else COPIED)
        self._start = _start_of_picture(self._source)
        if self.copied:
            self._stream = target.add_stream_from_template(stream)
            self._pieces = self._copy()
        else:
            rate = stream.codec_context.sample_rate
            self._rate = rate if rate in _AAC_RATES and not webm else 48000
            self._frame_size = 960 if webm else 1024  # samples that Opus (20 ms) and AAC code together
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            self._stream = target.add_stream("libopus" if webm else "aac", rate=self._rate, layout=layout)
            self._stream.bit_rate = _BIT_RATE
            self._pieces = self._encode(layout)
        self._next = self._read()

    def advance(self, seconds: Fraction) -> None:
        """Write what ends by then."""
        while self._next is not None and self._next.end <= seconds:
            self._next.send(None)
            self._next = self._read()

    def finish(self, seconds: Fraction) -> None:
        """Write what is left up to the end of the picture, cut there."""
        self.advance(seconds)
        if self._next is not None and self._next.begin < seconds:
            self._next.send(seconds)
        if not self.copied:
            self._target.mux(self._stream.encode(None))

    def close(self) -> None:
        self._pieces.close()
        self._source.close()

    def _read(self) -> Piece | None:
        try:
            return next(self._pieces, None)
        except FFmpegError:
            logger.info(f"{self._path}: its sound is damaged; the result's sound breaks off there.")
            return None

    def _copy(self) -> Generator[Piece, None, None]:
        for packet in self._source.demux(audio=0):
            if packet.dts is None or packet.pts is None:
                continue
            base = packet.time_base
            begin = packet.pts * base - self._start
            end = begin + (packet.duration or 0) * base
            if end <= -_LEAD:
                continue

            def send(until: Fraction | None, packet: Any = packet, begin: Fraction = begin) -> None:
                shift = round(self._start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                if until is not None:
                    packet.duration = max(round((until - begin) / packet.time_base), 1)
                packet.stream = self._stream
                self._target.mux(packet)

            yield Piece(begin, end, send)

    def _encode(self, layout: str) -> Generator[Piece, None, None]:
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=self._rate)
        held = np.zeros((1 if layout == "mono" else 2, 0), np.float32)
        at, first = 0, True  # the place, in samples of the new video, of the first one held
        size = self._frame_size
        for frame in self._decoded():
            if first and frame is not None:
                at, first = round((Fraction(frame.pts or 0) * frame.time_base - self._start) * self._rate), False
            for part in resampler.resample(frame):
                held = np.concatenate([held, part.to_ndarray()], axis=1)
            if at < 0:
                skipped = min(-at, held.shape[1])
                held, at = held[:, skipped:], at + skipped
            while held.shape[1] >= size or (frame is None and held.shape[1]):
                yield self._piece(held[:, :size], at, layout)
                at += min(size, held.shape[1])
                held = held[:, size:]

    def _decoded(self) -> Iterator[Any]:
        """The decoded frames, then None, which flushes the resampler."""
        yield from self._source.decode(audio=0)
        yield None

    def _piece(self, samples: np.ndarray, at: int, layout: str) -> Piece:
        def send(until: Fraction | None) -> None:
            kept = samples if until is None else samples[:, : max(int(until * self._rate) - at, 1)]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(kept), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, at, Fraction(1, self._rate)
            self._target.mux(self._stream.encode(frame))

        return Piece(Fraction(at, self._rate), Fraction(at + samples.shape[1], self._rate), send)


def _start_of_picture(container: Any) -> Fraction:
    """When the first frame is shown, in seconds of the container's clock; the sound is kept in step with it."""
    if not container.streams.video:
        return Fraction(0)
    stream = container.streams.video[0]
    return Fraction(stream.start_time or 0) * stream.time_base

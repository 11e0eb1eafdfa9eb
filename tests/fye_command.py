"""The `fye` command run inside the test's process, and files as people have them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fye_pipeline.cli.main import main
from fye_pipeline.media.video import read_frames


class Fye:
    """Runs the command in this process and keeps what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: Any) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["fye", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        printed = self._capfd.readouterr()
        return code, printed.out, printed.err

    def refused(self, *arguments: Any) -> str:
        """The sentence on bad input; asserts exit code 2, one line and no traceback."""
        code, _, err = self(*arguments)
        assert code == 2, err
        assert "Traceback" not in err
        sentences = [line for line in err.splitlines() if line.startswith("fye: ")]
        assert len(sentences) == 1, err
        return sentences[0]


def grey_frames(count: int, height: int = 64, width: int = 80) -> list[np.ndarray]:
    return [np.full((height, width, 3), 10 * index % 256, np.uint8) for index in range(count)]


def make_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    fps: Fraction = Fraction(25),
    times: Sequence[int] | None = None,
    sound: str | None = None,
    seconds: float = 2.0,
    tone_at: float = 0.0,
    pixel_format: str = "yuv420p",
    transfer: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video as cameras and editors write them. times: milliseconds of each frame. sound: a codec; a tone of 440 Hz
    that begins at `tone_at` and lasts until `seconds`.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        voice: Any = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = index if times is None else times[index]
            picture.time_base = 1 / fps if times is None else Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if voice is not None:
            clock = np.arange(round(seconds * 48000)) / 48000
            wave = np.where(clock >= tone_at, 0.5 * np.sin(2 * np.pi * 440 * clock), 0).astype(np.float32)
            whole = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            whole.sample_rate, whole.pts, whole.time_base = 48000, 0, Fraction(1, 48000)
            context = voice.codec_context
            fit = av.AudioResampler(
                format=context.format, layout="mono", rate=48000, frame_size=context.frame_size or 960
            )
            for part in [*fit.resample(whole), *fit.resample(None)]:
                container.mux(voice.encode(part))
            container.mux(voice.encode(None))
    return path


def keep_frames(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[np.ndarray]:
    """The frames that a module's `VideoWriter` is given, unmarked, as they were before they were encoded."""
    kept: list[np.ndarray] = []

    class Keeping(module.VideoWriter):
        def write(self, frame: np.ndarray) -> None:
            kept.append(frame)
            super().write(frame)

    monkeypatch.setattr(module, "VideoWriter", Keeping)
    monkeypatch.setattr(module, "watermark", np.ascontiguousarray)
    return kept


def picture_difference(one: Path, other: Path) -> float:
    """Mean absolute difference of two videos of equally many frames, in levels of 255."""
    first, second = (np.stack(list(read_frames(path))).astype(float) for path in (one, other))
    assert first.shape == second.shape
    return float(np.abs(first - second).mean())


def assert_same_pictures(one: Path, other: Path) -> None:
    """Two videos were made alike: another seed or another clip differs by levels, not by tenths of one.

    Not to the byte: of another process, or of weights mapped from a file anew, the last bits of a float may differ.
    """
    assert picture_difference(one, other) < 0.1


def read_sound(path: Path) -> tuple[str, np.ndarray, int]:
    """The sound of a video: codec, samples of the first channel, rate."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]
        return stream.codec_context.name, np.concatenate(parts), stream.codec_context.sample_rate

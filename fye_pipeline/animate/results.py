"""What an animation gives back: where it is, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fye_pipeline.animate.config import AnimationSettings


@dataclass(frozen=True)
class AnimationResult:
    """What was made, and what it took.

    seconds: encoding and denoising, without decoding. psnr: dB against the uncached run, on pixels in [0, 1].
    frames_without_face: (first, one past the last) of each run of frames that was filled in. crop: the transform from
    the animated square to the portrait, None where the whole portrait was animated. sound: whether there is any.
    """

    output: Path
    comparison: Path | None
    frames: int
    fps: Fraction
    size: tuple[int, int]
    frames_without_face: list[tuple[int, int]]
    seconds: float
    uncached_seconds: float | None
    psnr: float | None
    report: Any | None
    crop: dict[str, Any] | None
    sound: bool
    notes: list[str]
    settings: AnimationSettings

    @property
    def time_ratio(self) -> float | None:
        """Time of the uncached run over time of this one, encoding and denoising."""
        return None if self.uncached_seconds is None else self.uncached_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "output": str(self.output),
            "comparison": None if self.comparison is None else str(self.comparison),
            "frames": self.frames,
            "fps": str(self.fps),
            "size": list(self.size),
            "frames_without_face": self.frames_without_face,
            "seconds": self.seconds,
            "uncached_seconds": self.uncached_seconds,
            "time_ratio": self.time_ratio,
            "psnr": self.psnr,
            "cache": None if self.report is None else self.report.to_dict(),
            "crop": self.crop,
            "sound": self.sound,
            "notes": self.notes,
            "settings": self.settings.to_dict(),
        }

    def __str__(self) -> str:
        lines = [f"{self.output}: {self.frames} frames of {self.size[0]} x {self.size[1]} at {float(self.fps):g} fps"]
        if self.frames_without_face:
            gaps = ", ".join(f"{start}-{stop - 1}" for start, stop in self.frames_without_face)
            lines.append(f"frames without a face, filled in: {gaps}")
        if self.report is not None:
            lines += ["", str(self.report)]
        if self.psnr is not None:
            lines += [
                "",
                f"against the uncached run: PSNR {self.psnr:.2f} dB, {self.time_ratio:.2f}x faster (without decoding)",
                f"side by side (portrait, landmarks, cached, uncached): {self.comparison}",
            ]
        return "\n".join(lines)

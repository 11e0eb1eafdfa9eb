"""A driver's frames, whatever holds them: a video, an animated picture, a folder of pictures, a single picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from fye_pipeline.errors import UserError
from fye_pipeline.media.image import (
    BACKGROUND,
    MAX_PIXELS,
    animation_timing,
    picture_frames,
    read_animation,
    read_picture,
)
from fye_pipeline.media.video import at_constant_rate, depth_note, probe, read_frames
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import existing_file

Kind = Literal["video", "animation", "folder", "picture"]
DEFAULT_FPS = Fraction(25)  # of pictures, which name no rate


@dataclass(frozen=True)
class Source:
    """Frames at a constant rate, taken one at a time; `frame_count` is None where it is not known beforehand.

    sound: the video whose sound goes with the frames.
    """

    path: Path
    kind: Kind
    fps: Fraction
    frame_count: int | None
    sound: Path | None
    max_pixels: int = MAX_PIXELS
    background: str = BACKGROUND
    allow_partial: bool = False

    def frames(self, limit: int | None = None) -> Iterator[np.ndarray]:
        """Decode uint8 RGB [H, W, 3] frame by frame. Raises `UserError` where a file is damaged."""
        options = {"max_pixels": self.max_pixels, "background": self.background}
        if self.kind == "video":
            partial = self.allow_partial
            yield from read_frames(self.path, limit=limit, fps=self.fps, allow_partial=partial)
        elif self.kind == "animation":
            yield from islice(at_constant_rate(read_animation(self.path, **options), self.fps), limit)
        else:
            paths = [self.path] if self.kind == "picture" else pictures_in(self.path)
            for path in paths[:limit]:
                yield read_picture(path, what="a picture of the driver", **options)


def open_source(
    path: Path,
    *,
    what: str = "the driving video",
    fps: Fraction | None = None,
    max_pixels: int = MAX_PIXELS,
    background: str = BACKGROUND,
    allow_partial: bool = False,
) -> Source:
    """Look at what a path holds and at its header; its frames will come at `fps` (None: at their own rate).

    Raises:
        UserError: absent, empty, unreadable, without pictures, or larger than `max_pixels` a frame.
    """
    path = Path(path).expanduser()
    sound: Path | None = None
    if path.is_dir():
        pictures = pictures_in(path)
        if not pictures:
            raise UserError(f"{path} is a folder without pictures; name {what} or a folder of PNG or JPEG frames.")
        kind, own, count = "folder", fps or DEFAULT_FPS, len(pictures)
    elif frames := picture_frames(existing_file(path, what)):
        if frames == 1:
            kind, own, count = "picture", DEFAULT_FPS, 1
            logger.info(f"{path} is a single picture; it drives a video of one frame.")
        else:
            frames, seconds = animation_timing(path, max_pixels=max_pixels)
            kind, own, count = "animation", frames / seconds, frames
    else:
        info = probe(path, what=what, max_pixels=max_pixels)
        kind, own, count = "video", info.fps, info.frame_count
        sound = path if info.has_audio else None
        if note := depth_note(path):
            logger.info(note)
    if fps is not None and kind in ("video", "animation") and count is not None:
        count = max(round(count * fps / own), 1)
    return Source(path, kind, fps or own, count, sound, max_pixels, background, allow_partial)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names."""
    files = [entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return sorted((file for file in files if picture_frames(file)), key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """2.png comes before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

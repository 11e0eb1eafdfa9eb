"""Pictures as a file: marked, in a sheet, with what they are in the metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from fye_pipeline.media.writer import WATERMARK, watermark
from fye_pipeline.storage.files import atomic_target


def make_sheet(images: Sequence[Image.Image], *, columns: int, mark: bool) -> Image.Image:
    """Pictures of one size row by row; each carries the visible mark."""
    tiles = [np.asarray(image.convert("RGB")) for image in images]
    if mark:
        tiles = [watermark(tile) for tile in tiles]
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))


def write_picture(path: Path, picture: Image.Image, *, prompt: str) -> None:
    """Save a picture whole or not at all; PNG and JPEG say in their metadata that it is generated."""
    comment = f"{WATERMARK}; prompt: {prompt}"
    more: dict[str, Any] = {}
    if path.suffix.lower() == ".png":
        told = PngImagePlugin.PngInfo()
        told.add_itxt("Comment", comment)
        more = {"pnginfo": told}
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        more = {"comment": comment.encode(), "quality": 95}
    with atomic_target(path) as temporary:
        picture.save(temporary, **more)

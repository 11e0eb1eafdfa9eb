"""Reading a still picture the way its author saw it: upright, in sRGB, 8 bits, no transparency."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from fye_pipeline.errors import UserError
from fye_pipeline.files import existing_file

MAX_PIXELS = 100_000_000
MIN_SIDE = 48


def read_picture(path: str | Path, *, what: str = "the picture", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a picture file to uint8 RGB [H, W, 3]; of an animation, the first frame.

    EXIF orientation and an embedded colour profile are applied, 16-bit depth is scaled to 8, transparency is laid over
    white. The size is checked before a pixel is decoded.

    Raises:
        UserError: absent, not a picture, cut off, larger than `max_pixels`, or smaller than 48 pixels a side.
    """
    path = existing_file(path, what)
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise UserError(f"{path} has {width} x {height} pixels, more than {max_pixels:,}; reduce it first.")
            if min(width, height) < MIN_SIDE:
                raise UserError(f"{path} is {width} x {height} pixels; at least {MIN_SIDE} a side are needed.")
            return np.asarray(_to_srgb(ImageOps.exif_transpose(picture)), dtype=np.uint8)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read ({what}); use PNG, JPEG or WebP.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} is larger than {max_pixels:,} pixels; reduce it first.") from None
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be decoded ({what} is incomplete or damaged: {error}).") from error


def _to_srgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        scale = 255 / (65535 if values.max(initial=0) > 255 else 255)
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    profile = picture.info.get("icc_profile")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted if converted is not None else picture.convert("RGB")
        except ImageCms.PyCMSError:
            pass  # a profile that does not fit the pixels is ignored, as viewers do
    return picture.convert("RGB")

"""Reading a still picture the way its author saw it: upright, in sRGB, 8 bits, no transparency."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from fye_pipeline.errors import UserError
from fye_pipeline.media.file_type import is_heic
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import existing_file

Pixel = TypeVar("Pixel", np.uint8, np.float32)

MAX_PIXELS = 100_000_000
MIN_SIDE = 48
BACKGROUND = "white"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_DEFAULT_DELAY = Fraction(1, 10)  # seconds, what viewers show where an animation names no delay


def read_picture(
    path: str | Path,
    *,
    what: str = "the picture",
    max_pixels: int = MAX_PIXELS,
    background: str = BACKGROUND,
) -> np.ndarray:
    """Decode a picture file to uint8 RGB [H, W, 3]; of an animation, the first frame.

    EXIF orientation and an embedded colour profile are applied, 16-bit depth is scaled to 8, transparency is laid over
    `background` (a colour's name or #rrggbb). The size is checked before a pixel is decoded.

    Raises:
        UserError: absent, not a picture, cut off, larger than `max_pixels`, or smaller than 48 pixels a side.
    """
    path = existing_file(path, what)
    with opened_picture(path, what=what, max_pixels=max_pixels) as picture:
        width, height = picture.size
        if min(width, height) < MIN_SIDE:
            raise UserError(f"{path} is {width} x {height} pixels; at least {MIN_SIDE} a side are needed.")
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":
            logger.info(f"{path} is an animation of {frames} frames; the first is used as {what}.")
        return to_rgb(picture, background)


def read_cover(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """How much of each pixel a picture covers, uint8 [H, W], upright; None where it is opaque all over.

    Raises:
        UserError: as `read_picture`.
    """
    path = existing_file(path, "the reference")
    with opened_picture(path, what="the reference", max_pixels=max_pixels) as picture:
        upright = ImageOps.exif_transpose(picture)
        if "A" not in upright.getbands() and "transparency" not in upright.info:
            return None
        cover = np.asarray(upright.convert("RGBA").getchannel("A"), np.uint8)
    return None if cover.min() == 255 else cover


def read_animation(
    path: Path, *, what: str = "the driving animation", max_pixels: int = MAX_PIXELS, background: str = BACKGROUND
) -> Iterator[tuple[Fraction, Fraction, np.ndarray]]:
    """The frames of an animated GIF, WebP or PNG: (begin in seconds, duration in seconds, uint8 RGB [H, W, 3])."""
    begin = Fraction(0)
    with opened_picture(path, what=what, max_pixels=max_pixels) as picture:
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            frame = to_rgb(picture, background)  # decoding first: WebP knows a frame's delay only then
            duration = _delay(picture)
            yield begin, duration, frame
            begin += duration


def animation_timing(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, Fraction]:
    """The count of frames and the seconds that an animation lasts."""
    with opened_picture(path, what="the driving animation", max_pixels=max_pixels) as picture:
        frames, total = getattr(picture, "n_frames", 1), Fraction(0)
        for index in range(frames):
            picture.seek(index)
            picture.load()
            total += _delay(picture)
    return frames, total


def _delay(picture: Image.Image) -> Fraction:
    milliseconds = picture.info.get("duration") or 0
    return Fraction(round(milliseconds), 1000) if milliseconds >= 10 else _DEFAULT_DELAY


def picture_frames(path: Path) -> int:
    """How many frames a picture file has; 0 where the file is no picture."""
    try:
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]
        with _unlimited(), Image.open(path, formats=known) as picture:
            return 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
    except (OSError, SyntaxError, ValueError):
        return 0


@contextmanager
def opened_picture(path: Path, *, what: str, max_pixels: int) -> Iterator[Image.Image]:
    """An open picture whose header was read and whose size is allowed; decoding errors become one sentence."""
    try:
        with _unlimited(), Image.open(path) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise UserError(
                    f"{path} has {width} x {height} pixels, more than {max_pixels:,}; reduce it or raise --max-pixels."
                )
            yield picture
    except UnidentifiedImageError:
        if is_heic(path):
            raise UserError(f"{path} is a HEIC picture: `pip install pillow-heif`, or save it as JPEG.") from None
        raise UserError(f"{path} is not a picture that can be read ({what}); use PNG, JPEG or WebP.") from None
    except (OSError, EOFError, SyntaxError) as error:
        raise UserError(f"{path} cannot be decoded ({what} is incomplete or damaged: {error}).") from error


@contextmanager
def _unlimited() -> Iterator[None]:
    """Pillow's own limit on a picture's size is lifted: ours is checked on the header, and may be higher."""
    _register_heif()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _register_heif() -> None:
    """Let Pillow read HEIC where pillow-heif is installed; it is not one of our dependencies."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def check_background(colour: str) -> str:
    """A colour that Pillow knows by name or as #rrggbb. Raises `UserError` for another."""
    try:
        ImageColor.getrgb(colour)
    except ValueError:
        raise UserError(f"The background must be a colour such as white, black or #20a040, got {colour!r}.") from None
    return colour


def to_rgb(picture: Image.Image, background: str = BACKGROUND) -> np.ndarray:
    """A decoded picture's current frame, upright, in sRGB, over a background. -> uint8 RGB [H, W, 3]."""
    return np.asarray(_to_srgb(ImageOps.exif_transpose(picture), background), dtype=np.uint8)


def _to_srgb(picture: Image.Image, background: str) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode == "F" and not (values.min() >= 0 and values.max() <= 1):
            raise UserError(
                f"The picture's grey values are floats from {values.min():g} to {values.max():g}; they must lie "
                "between 0 (black) and 1 (white): scale them, or save it as PNG."
            )
        deep = picture.mode.startswith("I;16") or values.max(initial=0) > 255
        white = 1 if picture.mode == "F" else 65535 if deep else 255
        scale = 255 / white
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    profile = picture.info.get("icc_profile")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert("RGB")
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted if converted is not None else picture.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that is damaged or does not fit the pixels is ignored, as viewers do
    return picture.convert("RGB")


def resized(picture: NDArray[Pixel], side: int) -> NDArray[Pixel]:
    """A square picture or map [S, S, ...] at another size, areas averaged or bicubic. -> [side, side, ...]."""
    if len(picture) == side:
        return picture
    way = cv2.INTER_AREA if len(picture) > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side, side), interpolation=way), picture.dtype)


def letterbox(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Fit a picture into width x height: bicubic, aspect kept, centred on black, as Follow-Your-Emoji v1."""
    scale = min(width / picture.width, height / picture.height)
    size = max(int(picture.width * scale), 1), max(int(picture.height * scale), 1)
    inner = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas

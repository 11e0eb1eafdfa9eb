"""Everything that decides an animation: checked once, saved as JSON, read back from JSON or from a result."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from fye_pipeline.animate.crop import DEFAULT_SCALE, DEFAULT_SHIFT, crop_around, parse_choice
from fye_pipeline.animate.driver import MIN_FACE
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.control import MOST_INTENSITY, REGIONS, check_regions
from fye_pipeline.landmarks.control import Pose as HeadPose
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace
from fye_pipeline.media.image import BACKGROUND, MAX_PIXELS, check_background
from fye_pipeline.media.video import read_comment
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.storage.files import existing_file

ASSETS = Path(__file__).parent.parent / "assets"
DEMO_PORTRAIT = ASSETS / "demo" / "portrait.png"
DEMO_PORTRAIT_LANDMARKS = ASSETS / "demo" / "portrait_landmarks.npz"
DEMO_DRIVING = ASSETS / "demo" / "driving.npz"
SHIPPED = "shipped:"  # stands for the package's assets in saved settings, which are read on other machines too

Framing = Literal["paste", "crop", "whole"]
DType = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class AnimationSettings:
    """Everything that decides the result; checked once, written into the video's metadata as JSON.

    reference: a picture, or a video of which one frame is used. driving: a video, an animated picture, a folder of
    pictures, a landmark sequence (.npz) or an official template (.npy). model: a pipeline folder. fps None: the
    driver's; another rate resamples it, its length stays. size None: the model's own; pixels a side. frames None: all.
    long: how more frames than one clip are made: `progressive` (keyframes, then the gaps; a UNet of 9 input channels),
    `tiles` or `uniform` (`sampling/windows.py`); `auto`: progressive where the model can, else tiles.
    cache: arguments of `ticache.apply`, None to run without it. reference_landmarks: a one-frame sequence of the
    portrait, which then needs no detector.
    framing: `paste`: the face is cropped, animated and pasted back into the portrait; `crop`: the animated crop alone;
    `whole`: the whole picture, letterboxed to the model's size. None: `paste`, but `whole` where no face is sought
    (`unaligned` or with `reference_landmarks`, which belong to the whole picture).
    face: which face of the portrait: largest, a number from 1 (left to right), or x,y in pixels.
    reference_frame: which frame of a portrait that is a video; None: the calmest one that looks ahead.
    background: laid under transparent pictures. alpha: the portrait's transparency comes back in the result.
    vae_tiling: large pictures pass through the VAE in overlapping tiles, which needs less memory.
    neutral_frame: the driver's frame without expression; None: the one with the least.
    guidance: classifier-free guidance; None: what the model's recipe recommends, else 3.5.
    chunk: frames that tiles and windows are laid over at once; longer videos are made in such parts, which fade into
    each other.
    """

    reference: Path = DEMO_PORTRAIT
    driving: Path = DEMO_DRIVING
    model: Path = SHIPPED_MODEL
    steps: int = 30
    guidance: float | None = None
    seed: int = 0
    frames: int | None = None
    fps: Fraction | None = None
    size: int | None = None
    long: Literal["auto", "progressive", "tiles", "uniform"] = "auto"
    cache: dict[str, Any] | None = field(default_factory=lambda: {"N": 3, "order": 2, "cut": "outer"})
    compare: bool = False
    watermark: bool = True
    no_face: NoFace = "interpolate"
    max_gap: float = DEFAULT_MAX_GAP
    unaligned: bool = False
    reference_landmarks: Path | None = None
    audio: bool = True
    allow_partial: bool = False
    max_pixels: int = MAX_PIXELS
    background: str = BACKGROUND
    alpha: bool = False
    framing: Framing | None = None
    crop_scale: float = DEFAULT_SCALE
    crop_shift: tuple[float, float] = DEFAULT_SHIFT
    face: str = "largest"
    min_face: int = MIN_FACE
    reference_frame: int | None = None
    neutral_frame: int | None = None
    regions: tuple[str, ...] = REGIONS
    intensity: float = 1.0
    pose: HeadPose = "absolute"
    dtype: DType = "auto"
    chunk: int = 240
    vae_tiling: bool = False

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "frames": 1,
            "size": 64,
            "max_gap": 0,
            "guidance": 0,
            "max_pixels": 1,
            "min_face": 1,
            "chunk": 24,
        }
        for name, lowest in (least | {"reference_frame": 0, "neutral_frame": 0}).items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise UserError(f"{name} must be >= {lowest}, got {value}.")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UserError(f"fps must be from 1 to 240, got {self.fps}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be >= 0 and < 2^63, got {self.seed}.")
        if not 0 <= self.intensity <= MOST_INTENSITY:
            raise UserError(f"intensity must be from 0 to {MOST_INTENSITY:g}, got {self.intensity:g}.")
        object.__setattr__(self, "regions", check_regions(self.regions))
        check_background(self.background)
        parse_choice(self.face)
        crop_around((0, 0, 1, 1), 64, 64, scale=self.crop_scale, shift=self.crop_shift)
        self._check_combination()

    def _check_combination(self) -> None:
        steered = self.regions != REGIONS or self.intensity != 1 or self.pose != "absolute"
        if self.unaligned and steered:
            raise UserError("regions, intensity and pose need the portrait's face: leave out --unaligned.")
        if not self.seeks_face and self.framing in ("paste", "crop"):
            raise UserError(
                "A crop needs a face to be found: leave out --unaligned and --reference-landmarks, or the crop."
            )

    @property
    def seeks_face(self) -> bool:
        """Whether a face is looked for in the portrait."""
        return not self.unaligned and self.reference_landmarks is None

    @property
    def resolved_framing(self) -> Framing:
        """What `framing` None stands for."""
        return self.framing or ("paste" if self.seeks_face else "whole")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: paths and fractions as text, the package's own files as `shipped:...`."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def to_json(self) -> str:
        """The settings as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the settings") -> AnimationSettings:
        """Settings from plain values, such as `to_dict` gives; what is left out has its default.

        Raises:
            UserError: an unknown name, or a value of the wrong kind; `source` says where it stands.
        """
        kinds = typing.get_type_hints(cls)
        unknown = sorted(set(values) - set(kinds))
        if unknown:
            known = ", ".join(each.name for each in fields(cls))
            raise UserError(f"{source}: there is no setting {', '.join(map(repr, unknown))}; there are {known}.")
        return cls(**{name: _parse(value, kinds[name], f"{source}: {name}") for name, value in values.items()})


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file, or those that an animated mp4 was made with, as plain values.

    Raises:
        UserError: absent, not JSON, or a video without settings.
    """
    path = existing_file(path, "the settings")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = _json_or_none(read_comment(path))
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):
        content = content["settings"]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: give JSON written by --save-config, or an mp4 made by fye animate.")
    return content


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        inside = value.is_relative_to(ASSETS)
        return f"{SHIPPED}{value.relative_to(ASSETS).as_posix()}" if inside else str(value)
    if isinstance(value, Fraction):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _parse(value: Any, kind: Any, where: str) -> Any:
    """A plain value as a field's type. Raises `UserError` where it is of another kind."""
    choices = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    for choice in choices:
        origin = typing.get_origin(choice)
        try:
            if choice is type(None):
                if value is None:
                    return None
            elif origin is Literal:
                if value in typing.get_args(choice):
                    return value
            elif origin is tuple:
                items = value.split(",") if isinstance(value, str) else list(typing.cast(Any, value))
                inner = typing.get_args(choice)
                if inner[-1] is not Ellipsis and len(inner) != len(items):
                    continue
                return tuple(inner[0](item.strip() if isinstance(item, str) else item) for item in items)
            elif origin is dict:
                if isinstance(value, dict):
                    return dict(value)
            elif (parsed := _parse_single(value, choice)) is not None:
                return parsed
        except (TypeError, ValueError, ZeroDivisionError):
            continue
    raise UserError(f"{where} cannot be {value!r}.")


def _parse_single(value: Any, kind: type) -> Any:
    if kind is Path and isinstance(value, str):
        return ASSETS / value.removeprefix(SHIPPED) if value.startswith(SHIPPED) else Path(value)
    if kind is bool:
        return {True: True, False: False, "true": True, "false": False, "1": True, "0": False}.get(
            value.lower() if isinstance(value, str) else value
        )
    if isinstance(value, bool) or value is None:
        return None
    if kind is int:
        return int(value) if int(value) == float(value) else None
    if kind is float:
        return float(value)
    if kind is Fraction:
        return Fraction(value)
    return value if isinstance(value, kind) else None

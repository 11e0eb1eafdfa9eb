"""Everything that decides an animation: checked once, saved as JSON, read back from JSON or from a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import MOST_INTENSITY, REGIONS, check_regions
from fye_pipeline.landmarks.retargeting import Pose as HeadPose
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace
from fye_pipeline.media.image import BACKGROUND, MAX_PIXELS, check_background
from fye_pipeline.media.video import read_comment
from fye_pipeline.models.dilation import Dilation
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.models.published import PUBLISHED, model_folder, published_name
from fye_pipeline.storage.files import existing_file

ASSETS = Path(__file__).parent.parent / "assets"
DEMO_PORTRAIT = ASSETS / "demo" / "portrait.png"
DEMO_PORTRAIT_LANDMARKS = ASSETS / "demo" / "portrait_landmarks.npz"
DEMO_DRIVING = ASSETS / "demo" / "driving.npz"
SHIPPED = "shipped:"  # stands for the package's assets in saved settings, which are read on other machines too

DEFAULT_SCALE = 2.0  # the square's side over the longer side of the face, which ends at the hairline
DEFAULT_SHIFT = (0.0, -0.08)  # shares of the side; upwards, where the hair is

CACHE = ("N", "order", "cut", "preset")  # columns that are no settings but options of the cache

Framing = Literal["paste", "crop", "whole"]
Detail = Literal["full", "none"]
DType = Literal["auto", "float32", "float16", "bfloat16"]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a yes or no is no number")
    return value


def _fraction(value: Any) -> Any:
    try:
        return Fraction(_number(value))
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError("no fraction") from error


def _path(value: Any) -> Any:
    return ASSETS / value.removeprefix(SHIPPED) if isinstance(value, str) and value.startswith(SHIPPED) else value


def _saved_path(path: Path) -> str:
    inside = path.is_relative_to(ASSETS)
    return f"{SHIPPED}{path.relative_to(ASSETS).as_posix()}" if inside else str(path)


def _model(value: Any) -> Any:
    path = _path(value)
    return model_folder(Path(path)) if str(path) in PUBLISHED else path


def _saved_model(path: Path) -> str:
    return (path.name in PUBLISHED and published_name(path)) or _saved_path(path)


def _items(value: Any) -> Any:
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Rate = Annotated[Fraction, BeforeValidator(_fraction), PlainSerializer(str)]
File = Annotated[Path, BeforeValidator(_path), PlainSerializer(_saved_path)]
ModelFolder = Annotated[Path, BeforeValidator(_model), PlainSerializer(_saved_model)]


class _WrongKind(UserError):
    """A value that is no value of its setting at all."""


class AnimationSettings(BaseModel):
    """Everything that decides the result; checked once, written into the video's metadata as JSON.

    reference: a picture, or a video of which one frame is used. driving: a video, an animated picture, a folder of
    pictures, a landmark sequence (.npz) or an official template (.npy). model: a pipeline folder, or the name of a
    published model that was fetched (`fye models get`). fps None: the
    driver's; another rate resamples it, its length stays. size None: the model's own; pixels a side. frames None: all.
    long: how more frames than one clip are made: `progressive` (keyframes, then the gaps; a UNet of 9 input channels),
    `tiles` or `uniform` (`sampling/clip_plan.py`); `auto`: progressive where the model can, else tiles.
    cache: arguments of `ticache.apply`, None to run without it. reference_landmarks: a one-frame sequence of the
    portrait, which then needs no detector. points: five points placed by hand in the portrait (JSON), likewise.
    framing: `paste`: the face is cropped, animated and pasted back into the portrait; `crop`: the animated crop alone;
    `whole`: the whole picture, letterboxed to the model's size. None: `paste`, but `whole` where no face is sought
    (`unaligned` or with `reference_landmarks`).
    face: which face of the portrait: largest, a number from 1 (left to right), or x,y in pixels.
    reference_frame: which frame of a portrait that is a video; None: the calmest one that looks ahead.
    background: laid under transparent pictures. alpha: the portrait's transparency comes back in the result.
    detail: `full`: the portrait bent at its full resolution, and over it what the model changed; `none`: the model's
    own pixels. None: `full` where the model takes the bent portrait as a hint.
    vae_tiling: large pictures pass through the VAE in overlapping tiles, which needs less memory.
    neutral_frame: the driver's frame from which its expressions are counted; None: the one that looks most like the
    portrait.
    guidance: classifier-free guidance; None: what the model's recipe recommends, else 3.5.
    dilation: `auto`: at a larger size than the model's own its deepest convolutions reach further in the early steps.
    chunk: frames that tiles and windows are laid over at once; longer videos are made in such parts, which fade into
    each other.

    Raises:
        UserError: a value that cannot be, in one sentence.
    """

    made_by: ClassVar[str] = "fye_pipeline.animate.run"
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False)

    reference: File = DEMO_PORTRAIT
    driving: File = DEMO_DRIVING
    model: ModelFolder = SHIPPED_MODEL
    steps: Whole = Field(30, ge=1)
    guidance: Real | None = Field(None, ge=0)
    seed: Whole = Field(0, ge=0, lt=2**63)
    frames: Whole | None = Field(None, ge=1)
    fps: Rate | None = Field(None, ge=1, le=240)
    size: Whole | None = Field(None, ge=64)
    dilation: Dilation = "auto"
    long: Literal["auto", "progressive", "tiles", "uniform"] = "auto"
    cache: dict[str, Any] | None = Field(default_factory=lambda: {"N": 3, "order": 2, "cut": "outer"})
    compare: bool = False
    watermark: bool = True
    no_face: NoFace = "interpolate"
    max_gap: Real = Field(DEFAULT_MAX_GAP, ge=0)
    unaligned: bool = False
    reference_landmarks: File | None = None
    points: File | None = None
    audio: bool = True
    allow_partial: bool = False
    max_pixels: Whole = Field(MAX_PIXELS, ge=1)
    background: str = BACKGROUND
    alpha: bool = False
    framing: Framing | None = None
    crop_scale: Real = Field(DEFAULT_SCALE, ge=1, le=8)
    crop_shift: Annotated[tuple[Real, Real], BeforeValidator(_items)] = DEFAULT_SHIFT
    face: str = "largest"
    min_face: Whole = Field(48, ge=1)
    reference_frame: Whole | None = Field(None, ge=0)
    neutral_frame: Whole | None = Field(None, ge=0)
    regions: Annotated[tuple[str, ...], BeforeValidator(_items)] = REGIONS
    intensity: Real = Field(1.0, ge=0, le=MOST_INTENSITY)
    pose: HeadPose = "absolute"
    dtype: DType = "auto"
    chunk: Whole = Field(240, ge=24)
    vae_tiling: bool = False
    detail: Detail | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_user_error(error, type(self)) from None

    @field_validator("regions")
    @classmethod
    def _known_regions(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        return check_regions(regions)

    @field_validator("background")
    @classmethod
    def _known_background(cls, background: str) -> str:
        check_background(background)
        return background

    @field_validator("face")
    @classmethod
    def _known_choice(cls, face: str) -> str:
        parse_choice(face)
        return face

    @field_validator("crop_shift")
    @classmethod
    def _face_stays_inside(cls, shift: tuple[float, float]) -> tuple[float, float]:
        if max(map(abs, shift)) > 0.5:
            raise UserError(f"crop_shift must be from -0.5 to 0.5 of the crop's side, got {shift[0]:g},{shift[1]:g}.")
        return shift

    @model_validator(mode="after")
    def _check_combination(self) -> AnimationSettings:
        steered = self.regions != REGIONS or self.intensity != 1 or self.pose != "absolute"
        if self.unaligned and steered:
            raise UserError("regions, intensity and pose need the portrait's face: leave out --unaligned.")
        if self.unaligned and self.framing in ("paste", "crop"):
            raise UserError("A crop needs a face: leave out --unaligned, or the crop.")
        if self.points is not None and (self.unaligned or self.reference_landmarks is not None):
            raise UserError("--points tells where the face is: leave out --unaligned and --reference-landmarks.")
        if self.points is not None and self.face != "largest":
            raise UserError("--points tells which face is meant: leave out --face.")
        return self

    def runner(self) -> ModuleType:
        """The module whose `animate` is for settings of this kind."""
        return import_module(self.made_by)

    def more_files(self) -> dict[str, Path]:
        """Files that decide the result beside the portrait, its landmarks and the driver, by what they are called."""
        return {} if self.points is None else {"points file": self.points}

    @property
    def seeks_face(self) -> bool:
        """Whether a face is looked for in the portrait."""
        return not self.unaligned and self.reference_landmarks is None and self.points is None

    @property
    def resolved_framing(self) -> Framing:
        """What `framing` None stands for."""
        return self.framing or ("paste" if self.seeks_face or self.points is not None else "whole")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: paths and fractions as text, the package's own files as `shipped:...`."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The settings as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the settings") -> Self:
        """Settings from plain values, such as `to_dict` gives; what is left out has its default.

        Raises:
            UserError: an unknown name, or a value of the wrong kind; `source` says where it stands.
        """
        unknown = sorted(set(values) - set(cls.model_fields))
        if unknown:
            known = ", ".join(cls.model_fields)
            raise UserError(f"{source}: there is no setting {', '.join(map(repr, unknown))}; there are {known}.")
        try:
            return cls(**values)
        except _WrongKind as error:
            raise UserError(f"{source}: {error}") from None


def _as_user_error(error: ValidationError, kind: type[AnimationSettings]) -> UserError:
    """The first fault of settings of a kind as one sentence."""
    fault = error.errors()[0]
    limits = fault.get("ctx", {})
    if isinstance(limits.get("error"), UserError):
        return limits["error"]
    name, value = str(fault["loc"][0]), fault["input"]
    if fault["type"] in ("greater_than_equal", "less_than_equal", "less_than"):
        bounds = {type(each).__name__: each for each in kind.model_fields[name].metadata}
        least, most = bounds.get("Ge"), bounds.get("Le")
        if least is not None and most is not None:
            return UserError(f"{name} must be from {least.ge:g} to {most.le:g}, got {value}.")
        relation = {"ge": ">=", "lt": "<"}
        wanted = " and ".join(f"{relation[key]} {limit}" for key, limit in limits.items() if key in relation)
        return UserError(f"{name} must be {wanted}, got {value}.")
    return _WrongKind(f"{name} cannot be {value!r}.")


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


def pipeline_class(folder: Any) -> str | None:
    """The pipeline that a folder of diffusers says it holds; None where it says nothing."""
    try:
        index = json.loads((Path(folder).expanduser() / "model_index.json").read_text(encoding="utf-8"))
        return str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def parse_choice(choice: str) -> tuple[str, tuple[float, ...]]:
    """`largest`, a number from 1, or `x,y` -> ("largest" | "number" | "point", values). Raises `UserError`."""
    if choice == "largest":
        return "largest", ()
    parts = choice.split(",")
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) == 2 and all(map(np.isfinite, values)):
        return "point", values
    if len(values) == 1 and parts[0].strip().isdigit() and values[0] >= 1:
        return "number", values
    raise UserError(f"face must be largest, a number from 1 (left to right) or x,y in pixels, got {choice!r}.")


def row_settings(
    base: Mapping[str, Any],
    row: Mapping[str, Any],
    name: str,
    check_cache: Callable[[dict[str, Any]], None],
    kind: type[AnimationSettings] = AnimationSettings,
) -> AnimationSettings:
    """The settings of one animation, of some kind: a manifest's row, if any, over what all have in common."""
    values = dict(base) | {key: value for key, value in row.items() if key not in CACHE}
    if "reference" in row:
        for name_of_its_own in {"reference_landmarks", "points"} - set(row):
            values.pop(name_of_its_own, None)
    elif (
        kind is AnimationSettings
        and "reference" not in values
        and values.get("framing") in (None, "whole")
        and "points" not in values
    ):
        values.setdefault("reference_landmarks", str(DEMO_PORTRAIT_LANDMARKS))
    if asked := {key: row[key] for key in CACHE if key in row}:
        try:
            numbers = {key: int(asked[key]) for key in ("N", "order") if key in asked}
        except (TypeError, ValueError):
            raise UserError(f"{name}: N and order are whole numbers, got {asked}.") from None
        values["cache"] = cache_options(asked | numbers, values.get("cache"))
    settings = kind.from_dict(values, source=name)
    if settings.cache is not None:
        check_cache(settings.cache)
    return settings


def cache_options(asked: dict[str, Any], saved: dict[str, Any] | None) -> dict[str, Any]:
    """What `ticache.apply` is given: what was asked for, over the saved options, or the defaults without a preset."""
    defaults = {"N": 3, "order": 2, "cut": "outer"} if asked.get("preset") in (None, "paper") else {}
    return (saved or defaults) | asked if "preset" not in asked else defaults | asked


def check_terms(*, watermark: bool, accepted: bool) -> None:
    """Raises `UserError` where the mark is left out and the terms are not accepted."""
    if not watermark and not accepted:
        raise UserError("--no-watermark needs --i-accept-the-terms; the terms are in USAGE.md.")

"""Still pictures of one person with another picture's expression, as the page makes them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.app.controls import Control, Files, Option, row_of
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.emoji.pipeline import SHIPPED, EmojiPipeline
from fye_pipeline.emoji.sheet import make_sheet, write_picture
from fye_pipeline.errors import UserError
from fye_pipeline.progress import OnProgress, collected_notes, silent

PICTURE = "picture.png"
COMMAND = ("emoji", "generate")
_MOST_STEPS, _MOST_PICTURES = 1000, 16  # of each expression


@dataclass(frozen=True)
class PictureSettings:
    """What decides the pictures; None is what the model recommends.

    number: of pictures of each expression. interval: one full step in so many, None without the cache.
    Raises `UserError` for a value that cannot be.
    """

    prompt: str
    identity: Path
    expressions: tuple[Path, ...]
    model: Path = SHIPPED
    steps: int = 30
    guidance: float | None = None
    seed: int = 0
    identity_scale: float | None = None
    expression_scale: float | None = None
    number: int = 1
    interval: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError("Write what to draw first, such as: an ink painting of a man.")
        for name, least, most in (("steps", 1, _MOST_STEPS), ("number", 1, _MOST_PICTURES), ("seed", 0, 2**63 - 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise UserError(f"{name} must be a whole number from {least} to {most}, got {value}.")
        for name in ("guidance", "identity_scale", "expression_scale"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{name} must be a number >= 0, got {value}.")


@dataclass(frozen=True)
class PictureResult:
    """What was made: a picture, or a sheet of several; size: its width and height in pixels; report: of the cache."""

    output: Path
    pictures: int
    size: tuple[int, int]
    seconds: float
    report: Any | None
    notes: list[str]


def picture_controls(model: EmojiSettings) -> tuple[Control, ...]:
    """The settings that the page offers; the defaults are what the model recommends."""
    return (
        Control(
            "identity_scale",
            "How much the person counts",
            "range",
            model.identity_scale,
            flag="--identity-scale",
            high=2,
            step=0.05,
        ),
        Control(
            "expression_scale",
            "How much the expression counts",
            "range",
            model.expression_scale,
            flag="--expression-scale",
            high=2,
            step=0.05,
        ),
        Control("number", "Pictures of each expression", "range", 1, "", "--number", low=1, high=4),
        Control("seed", "Seed", "whole", 0, flag="--seed"),
        Control("steps", "Denoising steps", "range", 30, flag="--steps", low=2, high=60, advanced=True),
        Control(
            "guidance",
            "Guidance",
            "range",
            model.guidance,
            "How closely the prompt is followed.",
            "--guidance",
            low=1,
            high=12,
            step=0.5,
            advanced=True,
        ),
        Control(
            "interval",
            "Cache",
            "choice",
            "none",
            "How many of the denoising steps are forecast instead of computed.",
            options={
                "none": Option("Off: every step in full"),
                "two": Option("One full step in two", {"interval": 2}, ("--N", "2")),
                "three": Option("One full step in three", {"interval": 3}, ("--N", "3")),
            },
            advanced=True,
        ),
    )


def picture_settings_of(
    files: Files, prompt: str, values: Sequence[Any], base: Mapping[str, Any], controls: Sequence[Control]
) -> PictureSettings:
    """The settings that the page's values mean. base: such as the model. Raises `UserError` for what cannot be."""
    row = row_of(values, controls)
    (identity,) = files["identity"]
    return PictureSettings(prompt.strip(), identity, tuple(files["expression"]), **{**base, **row})


def draw(
    settings: PictureSettings, output: Path, *, session: AnimationSession, on_progress: OnProgress = silent
) -> PictureResult:
    """Make the pictures with the session's detector and on its device, marked. Raises `UserError` for bad input."""
    began = time.perf_counter()
    total, done = settings.steps * len(settings.expressions), 0

    def tell(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done = min(done + 1, total)
        on_progress("drawing", done, total)
        return values

    with collected_notes() as notes:
        on_progress("starting", 0, None)
        pipe = EmojiPipeline.from_pretrained(
            settings.model, device=str(session.device), find_faces=session.detector.open().detect_all
        )
        if settings.interval is not None:
            pipe.enable_cache(N=settings.interval)
        images = pipe(
            settings.prompt,
            identity=settings.identity,
            expression=list(settings.expressions),
            identity_scale=settings.identity_scale,
            expression_scale=settings.expression_scale,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            num_images_per_prompt=settings.number,
            seed=settings.seed,
            callback_on_step_end=tell,
        ).images
        report = None if pipe.session is None else pipe.session.report()
    sheet = make_sheet(images, columns=settings.number if settings.number > 1 else len(images), mark=True)
    write_picture(output, sheet, prompt=settings.prompt)
    return PictureResult(output, len(images), sheet.size, time.perf_counter() - began, report, notes)

"""What decides an animation by Wan's pipeline: one person or several, each moved by a driver's expression."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from fye_pipeline.animate.config import DEMO_DRIVING, DType, File, Whole
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import REGIONS
from fye_pipeline.multi_portrait.settings import GroupSettings, driver_list

WAN = "WanImageToVideoPipeline"
OF_WAN = ("expression_adapter", "expression_weights")  # settings that no other host has
MOST_FRAMES = 81  # of a window: what the model was trained on


class WanSettings(GroupSettings):
    """As for several people, but:

    drivers: one without `assign` moves one face, the largest or `face`. expression_adapter: a published checkpoint;
    None: the adapter that lies in the model's folder. expression_weights: of the extractor `pdfgc`. size: pixels of the
    shorter side. guidance: of the expression; None: 4.5. chunk: most frames of a window; each window begins with the
    last frame of the one before.
    """

    made_by: ClassVar[str] = "fye_pipeline.multi_portrait.wan_run"

    expression_adapter: File | None = None
    expression_weights: File | None = None
    cache: dict[str, Any] | None = None
    chunk: Whole = Field(MOST_FRAMES, ge=5)
    dtype: DType = "auto"

    @model_validator(mode="before")
    @classmethod
    def _first_driver(cls, values: Any) -> Any:
        drivers = driver_list(values.get("drivers")) or [values.get("driving", DEMO_DRIVING)]
        return values | {"drivers": drivers, "driving": drivers[0]}

    @model_validator(mode="after")
    def _check_group(self) -> WanSettings:
        unfit = {
            **self.one_face_only(),
            "--crop-only": self.framing == "crop",
            "--compare": self.compare,
            "--alpha": self.alpha,
            "--regions": self.regions != REGIONS,
            "--intensity": self.intensity != 1,
            "--pose": self.pose != "absolute",
            "--neutral-frame": self.neutral_frame is not None,
            "--detail": self.detail == "full",
            "--long": self.long != "auto",
            "--N, --order, --cut, --preset": self.cache is not None,
        }
        if not self.moves_all:
            del unfit["--face"]
        if names := [flag for flag, given in unfit.items() if given]:
            raise UserError(f"{', '.join(names)} cannot be used with a Wan model: leave it out.")
        self.check_sound()
        return self

    def more_files(self) -> dict[str, Path]:
        """Also the adapter and the extractor's weights, where they are named."""
        named = {"expression adapter": self.expression_adapter, "expression weights": self.expression_weights}
        return super().more_files() | {name: path for name, path in named.items() if path is not None}

    @property
    def moves_all(self) -> bool:
        """Whether every face is given a driver or none; else one face is moved."""
        return len(self.drivers) > 1 or self.assign is not None

    @property
    def splits(self) -> bool:
        """Whether the drivers are the faces of a single file."""
        return len(self.drivers) == 1 and self.assign is not None


def window_starts(frames: int, most: int) -> list[tuple[int, int]]:
    """First frame and length of each window of a video; each begins with the last frame of the one before.

    most: frames of a window; those that are made are 4 k + 1, the last window's rest is thrown away.
    """
    length = (min(most, MOST_FRAMES) - 1) // 4 * 4 + 1
    starts = range(0, max(frames - 1, 1), length - 1)
    return [(start, min(length, (frames - start + 2) // 4 * 4 + 1)) for start in starts]

"""What decides an animation of several people: the settings of one, and who is moved by what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fye_pipeline.animate.config import AnimationSettings, File, Whole
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.assignment import Assignment, parse_assignment

# What is for one face alone, and what to do in its place.
_INSTEAD = {
    "--unaligned": "each is brought to its face; leave it out",
    "--reference-landmarks": "the faces are detected, or pointed to with --points",
    "--face": "--assign says who is moved",
    "--crop-only": "each face has a square of its own; animate it alone, with --face",
    "--whole": "each face has a square of its own; leave it out",
}
SEPARATOR = ";"  # between the drivers in a cell of a .csv manifest
OF_GROUPS = ("drivers", "assign", "until", "audio_from")  # settings that animations of one face do not have


def driver_list(value: Any) -> Any:
    """The drivers of plain values as a list: a `.csv` has them in one cell."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR)]
    return [value] if isinstance(value, os.PathLike) else value


class GroupSettings(AnimationSettings):
    """The settings of one face, for each, and beside them:

    drivers: a file for each driver, in the order of their numbers; or one whose faces, from the left, are the drivers.
    `driving` is the first of them. points: a list of them, five for each face of the picture. assign: such as "1,0,-":
    the driver of each face from the left, counted from 0, `-` for none; None: as many drivers as faces, left to right.
    until: where drivers differ in length, the video ends with the shortest, or with the longest, and the others hold
    their last frame. audio_from: the driver whose sound goes with the video.
    """

    made_by: ClassVar[str] = "fye_pipeline.multi_portrait.run"

    drivers: Annotated[tuple[File, ...], BeforeValidator(driver_list)] = Field(min_length=1)
    assign: str | None = None
    until: Literal["shortest", "longest"] = "shortest"
    audio_from: Whole = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _first_driver(cls, values: Any) -> Any:
        drivers = driver_list(values.get("drivers"))
        if drivers is None and "driving" in values and values.get("assign") is not None:
            drivers = [values["driving"]]
        if not isinstance(drivers, list | tuple) or not drivers or not all(drivers):
            raise UserError("assign, until and audio_from are for several drivers: give --driving more than once.")
        return values | {"drivers": drivers, "driving": drivers[0]}

    @field_validator("assign")
    @classmethod
    def _known_assignment(cls, assign: str | None) -> str | None:
        if assign is not None:
            parse_assignment(assign)
        return assign

    @model_validator(mode="after")
    def _check_group(self) -> GroupSettings:
        if "reference" not in self.model_fields_set:
            raise UserError("Several drivers need --reference, a picture of several people.")
        for flag, given in self.one_face_only().items():
            if given:
                raise UserError(f"{flag} is for one face: with several drivers {_INSTEAD[flag]}.")
        self.check_sound()
        return self

    def one_face_only(self) -> dict[str, bool]:
        """The flags that are for one face alone, and whether they were given."""
        return {
            "--unaligned": self.unaligned,
            "--reference-landmarks": self.reference_landmarks is not None,
            "--face": self.face != "largest",
            "--crop-only": self.framing == "crop",
            "--whole": self.framing == "whole",
        }

    def check_sound(self) -> None:
        """Raise `UserError` where the sound is of a driver that there is not."""
        if self.audio_from >= len(self.drivers):
            raise UserError(f"--audio-from names driver {self.audio_from} and there are {len(self.drivers)}, from 0.")

    def more_files(self) -> dict[str, Path]:
        """Also the drivers after the first."""
        return super().more_files() | {f"driver {n} file": path for n, path in enumerate(self.drivers[1:], 1)}

    @property
    def splits(self) -> bool:
        """Whether the drivers are the faces of a single file."""
        return len(self.drivers) == 1

    @property
    def assignment(self) -> Assignment | None:
        """What `assign` says."""
        return None if self.assign is None else parse_assignment(self.assign)


def without_group(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values without what only several people have: a driver that is named alone moves one face."""
    return {name: value for name, value in values.items() if name not in OF_GROUPS}

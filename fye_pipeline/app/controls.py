"""The settings that the page offers: one table, from which come the page's controls, the run and its command line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fye_pipeline.animate.config import AnimationSettings, row_settings
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.retargeting import MOST_INTENSITY, REGIONS
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.pipeline import check_cache_options

OUTPUT = "animated.mp4"


@dataclass(frozen=True)
class Option:
    """One of several choices. settings: as a manifest's row has them; flags: as `fye animate` takes them."""

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Control:
    """A setting on the page.

    kind: `choice` (one of `options`), `several` (some of `names`), `range` and `whole` (numbers from `low` to `high`),
    `switch`, `text`. A value that is the default, or none at all, changes nothing.
    name, flag: of the setting and of `fye animate`; a `choice` has its own in every option.
    """

    name: str
    label: str
    kind: Literal["choice", "several", "range", "whole", "switch", "text"]
    default: Any
    info: str = ""
    flag: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    low: float = 0
    high: float | None = None
    step: float = 1
    advanced: bool = False

    def settings(self, value: Any) -> dict[str, Any]:
        """What a value means, as a manifest's row has it; nothing where it is the default."""
        if self._is_default(value):
            return {}
        if self.kind == "choice":
            return dict(self._option(value).settings)
        return {self.name: self._plain(value)}

    def flags(self, value: Any) -> list[str]:
        """What a value means, as `fye animate` takes it; nothing where it is the default."""
        if self._is_default(value):
            return []
        if self.kind == "choice":
            return list(self._option(value).flags)
        if self.kind == "switch":
            return [self.flag]
        plain = self._plain(value)
        return [self.flag, ",".join(plain) if self.kind == "several" else str(plain)]

    def _is_default(self, value: Any) -> bool:
        return value is None or self._plain(value) == self.default

    def _plain(self, value: Any) -> Any:
        """A browser's number may be 7.0 where 7 is meant, and what is ticked comes in the order of the ticks."""
        if self.kind == "several":
            return tuple(name for name in self.names if name in value) or tuple(value)
        whole = self.kind == "whole" or (self.kind == "range" and isinstance(self.step, int))
        if whole and isinstance(value, float) and value.is_integer():
            return int(value)
        return str(value).strip() if self.kind == "text" else value

    def _option(self, value: Any) -> Option:
        if value not in self.options:
            raise UserError(f"{self.name} must be one of {', '.join(self.options)}, got {value!r}.")
        return self.options[value]


CONTROLS = (
    Control(
        "preset",
        "Cache",
        "choice",
        "standard",
        "How many of the denoising steps are forecast instead of computed.",
        options={
            "standard": Option("Standard: one full step in three"),
            "fast": Option("Fast", {"preset": "fast"}, ("--preset", "fast")),
            "balanced": Option("Balanced", {"preset": "balanced"}, ("--preset", "balanced")),
            "faithful": Option("Faithful", {"preset": "faithful"}, ("--preset", "faithful")),
            "none": Option("Off: every step in full", {"cache": None}, ("--no-cache",)),
        },
    ),
    Control(
        "framing",
        "Framing",
        "choice",
        "paste",
        options={
            "paste": Option("Pasted back into the picture"),
            "crop": Option("The animated crop alone", {"framing": "crop"}, ("--crop-only",)),
            "whole": Option("The whole picture", {"framing": "whole"}, ("--whole",)),
        },
    ),
    Control("regions", "What the driver moves", "several", REGIONS, flag="--regions", names=REGIONS),
    Control("intensity", "Intensity", "range", 1.0, "0 is still.", "--intensity", high=MOST_INTENSITY, step=0.05),
    Control("frames", "Length, in frames", "whole", 0, "0: as long as the driver.", "--frames"),
    Control("compare", "Side by side with the uncached run", "switch", False, "Takes longer.", "--compare"),
    Control(
        "detail",
        "Detail",
        "choice",
        "full",
        advanced=True,
        options={
            "full": Option("The portrait's own"),
            "none": Option("The model's own pixels", {"detail": "none"}, ("--detail", "none")),
        },
    ),
    Control("seed", "Seed", "whole", 0, flag="--seed", advanced=True),
    Control("steps", "Denoising steps", "range", 30, flag="--steps", low=2, high=60, advanced=True),
    Control(
        "pose",
        "Head pose",
        "choice",
        "absolute",
        advanced=True,
        options={
            "absolute": Option("As the driver's head"),
            "relative": Option("From the portrait's own", {"pose": "relative"}, ("--pose", "relative")),
        },
    ),
)


# Several faces: each has a square of its own.
GROUP_CONTROLS = (
    Control(
        "assign",
        "Who is moved by which driver",
        "text",
        "",
        "For each face from the left its driver, counted from 0, such as 1,0; - leaves a face still. "
        "Empty: the first driver moves the leftmost face, and so on.",
        "--assign",
    ),
    Control(
        "until",
        "Drivers of different length",
        "choice",
        "shortest",
        options={
            "shortest": Option("End with the shortest"),
            "longest": Option("The others hold their last frame", {"until": "longest"}, ("--until", "longest")),
        },
        advanced=True,
    ),
    *(control for control in CONTROLS if control.name != "framing"),
)


@dataclass(frozen=True)
class Files:
    """The files of a run in the order of the command line, each with its flag; what is not given is what ships."""

    given: tuple[tuple[str, Path], ...] = ()

    @classmethod
    def of(cls, **named: str | Path | Sequence[str | Path] | None) -> Files:
        """From one path or several for a flag; None and nothing are left out."""
        lists = {name: [paths] if isinstance(paths, str | Path) else list(paths or ()) for name, paths in named.items()}
        return cls(tuple((name, Path(path)) for name, paths in lists.items() for path in paths))

    def __getitem__(self, flag: str) -> list[Path]:
        return [path for name, path in self.given if name == flag]

    def names(self) -> Files:
        """The same without their folders, which are the server's."""
        return Files(tuple((flag, Path(path.name)) for flag, path in self.given))

    def copied(self, place: Path) -> Files:
        """The same, copied under their own names, each into a numbered folder; the absent stay as they are."""

        def copy(number: int, path: Path) -> Path:
            if not path.is_file():
                return path
            target = place / str(number) / path.name
            target.parent.mkdir()
            shutil.copyfile(path, target)
            return target

        return Files(tuple((flag, copy(number, path)) for number, (flag, path) in enumerate(self.given)))


def row_of(values: Sequence[Any], controls: Sequence[Control]) -> dict[str, Any]:
    """The settings that the values of controls mean, in their order. Raises `UserError` for an unknown choice."""
    row: dict[str, Any] = {}
    for control, value in zip(controls, values, strict=True):
        row |= control.settings(value)
    return row


def settings_of(
    files: Files, values: Sequence[Any], base: Mapping[str, Any], controls: Sequence[Control] = CONTROLS
) -> AnimationSettings:
    """The settings of one face that the page's values mean, checked as those of the command line are.

    base: settings that the page does not offer, such as the model.

    Raises:
        UserError: a value that cannot be, in one sentence.
    """
    row = row_of(values, controls) | {flag: str(path) for flag, path in files.given}
    return row_settings(base, row, "The settings", check_cache_options)


def group_settings_of(files: Files, values: Sequence[Any], base: Mapping[str, Any]) -> GroupSettings:
    """The settings of several people that the page's values mean; arguments and errors as `settings_of`."""
    row = row_of(values, GROUP_CONTROLS)
    row |= {"reference": str(files["reference"][0]), "drivers": [str(path) for path in files["driving"]]}
    if len(row["drivers"]) == 1 and "assign" not in row:
        raise UserError(
            "A single driver needs to be told who is moved: 0,1 takes the first two faces of that video, from the left."
        )
    settings = row_settings(base, row, "The settings", check_cache_options, GroupSettings)
    assert isinstance(settings, GroupSettings)
    return settings


def command_line(
    files: Files,
    values: Sequence[Any],
    model: str | None = None,
    controls: Sequence[Control] = CONTROLS,
    *,
    command: Sequence[str] = ("animate",),
    output: str = OUTPUT,
) -> str:
    """The `fye` command that makes the same from files of these names, quoted for this system's shell."""
    words = ["fye", *command]
    for flag, path in files.given:
        words += [f"--{flag}", str(path)]
    words += [] if model is None else ["--model", model]
    for control, value in zip(controls, values, strict=True):
        words += control.flags(value)
    words += ["--output", output]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)

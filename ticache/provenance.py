"""Where a tuned setting comes from: model, scheduler, steps, size, metric and figures; and whether it is met again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ticache.schedule import map_steps

ON_MISMATCH = ("map", "error")
_SAMPLES = 16  # values per tensor that stand for a model's weights


@dataclass(frozen=True)
class Provenance:
    """What a tuned `CacheConfig` was found on, and what it reached there. Plain values throughout.

    model: the UNet's `class`, a digest of its `config` and one of samples of its `weights`. scheduler: its `class` and
    `settings`, None where there was none. num_steps: T. size: shape of one result, [..., C, H, W].
    metric: "psnr", or the name of the callable. region: was the metric taken within a region? goal: the target, or the
    number of full steps asked for.
    figures: means over `calibration` calls (searched on) and `check` calls (never seen by the search) of the tuned
    setting (`tuned`), the late schedule with as many full steps (`late`) and, after a search for a target, the best
    found with one full step fewer (`fewer`). trials: how many were made. notes: what falls short.
    """

    model: dict[str, str]
    scheduler: dict[str, Any] | None
    num_steps: int
    size: list[int]
    metric: str
    region: bool
    goal: dict[str, Any]
    figures: dict[str, Any]
    trials: int
    seed: int
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Read what `to_dict` wrote. ValueError for anything else."""
        known = {each.name for each in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            raise ValueError(f"provenance must be an object with {sorted(known)}, got {values!r}")
        return cls(**values)

    def __str__(self) -> str:
        figures, tuned, late = self.figures, self.figures["tuned"], self.figures["late"]
        unit = " dB" if self.metric == "psnr" else ""
        lines = [
            f"tuned on {self.model['class']}, {self.num_steps} steps"
            + (f" of {self.scheduler['class']}" if self.scheduler else "")
            + f", {self.metric}{' within the region' if self.region else ''}, {self.trials} trials"
        ]
        for name, row in (("tuned", tuned), ("late", late), ("one full step fewer", figures.get("fewer"))):
            if row is not None:
                check = "not checked" if row["check"] is None else f"{row['check']:.2f}{unit} on unseen calls"
                lines.append(f"{name:<20}{row['calibration']:.2f}{unit} in calibration, {check}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def model_identity(unet: nn.Module) -> dict[str, str]:
    """Class, digest of the configuration, digest of a few values of every weight (the same in any precision that keeps
    them). Reads 16 values a tensor.
    """
    digest = hashlib.sha256()
    for name, value in sorted(unet.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if value.device.type != "meta" and value.numel():
            flat = value.detach().reshape(-1)
            picked = torch.linspace(0, len(flat) - 1, min(_SAMPLES, len(flat)), device=flat.device).long()
            digest.update(flat[picked].cpu().float().numpy().tobytes())
    return {**architecture(unet), "weights": digest.hexdigest()[:16]}


def architecture(unet: nn.Module) -> dict[str, str]:
    """Class, and digest of the configuration. Reads no weight."""
    settings = {name: value for name, value in dict(getattr(unet, "config", {})).items() if not name.startswith("_")}
    text = json.dumps([type(unet).__name__, settings], sort_keys=True, default=str)
    return {"class": type(unet).__name__, "config": hashlib.sha256(text.encode()).hexdigest()[:16]}


def scheduler_identity(scheduler: Any) -> dict[str, Any] | None:
    """Class and settings, as JSON has them; None without a scheduler."""
    if scheduler is None:
        return None
    settings = {name: value for name, value in dict(getattr(scheduler, "config", {})).items() if name[:1] != "_"}
    return {
        "class": type(scheduler).__name__,
        "settings": json.loads(json.dumps(settings, sort_keys=True, default=str)),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("ticache", "diffusers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class TuningCheck:
    """Compares a run with where its settings come from, and maps their full steps onto it, or refuses.

    on_mismatch: "map": full steps lie at the same shares of a run of another length, and a warning, once, says what
    differs. "error": ValueError instead.
    """

    def __init__(self, provenance: Provenance | None, on_mismatch: str = "map"):
        if on_mismatch not in ON_MISMATCH:
            raise ValueError(f"on_mismatch must be one of {', '.join(map(repr, ON_MISMATCH))}, got {on_mismatch!r}")
        self.provenance = provenance
        self.on_mismatch = on_mismatch
        self.notes: list[str] = []

    def check_model(self, unet: nn.Module) -> None:
        """Tell of a model with another configuration than the tuned one's; other weights of it are well."""
        if self.provenance is None:
            return
        there = self.provenance.model
        if architecture(unet) != {name: there[name] for name in ("class", "config")}:
            self._tell(f"for a {there['class']} of another configuration")

    def steps(self, steps: Sequence[int], num_steps: int | None, scheduler: Any) -> tuple[int, ...] | None:
        """The full steps for a run of `num_steps` steps; None where they stay as they are.

        Tells of another scheduler too, or of one with other settings.
        """
        if self.provenance is None:
            return None
        difference = _difference(self.provenance.scheduler, scheduler_identity(scheduler))
        if difference is not None:
            self._tell(f"with {difference}")
        if num_steps in (None, self.provenance.num_steps):
            return None
        mapped = map_steps(steps, self.provenance.num_steps, num_steps)
        self._tell(
            f"for {self.provenance.num_steps} steps, not {num_steps}", f": full steps are {', '.join(map(str, mapped))}"
        )
        return mapped

    def _tell(self, how: str, instead: str = "") -> None:
        if self.on_mismatch == "error":
            raise ValueError(f"this config was tuned {how}; tune again, or pass on_mismatch='map'")
        note = f"this config was tuned {how}{instead}"
        if note not in self.notes:
            self.notes.append(note)
            warnings.warn(f"ticache: {note}; its figures do not hold here", UserWarning, stacklevel=4)


def _difference(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str | None:
    """How one scheduler differs from another; None where it does not, or either is unknown."""
    if then is None or now is None or then == now:
        return None
    if then["class"] != now["class"]:
        return f"{then['class']}, not {now['class']}"
    before, after = then["settings"], now["settings"]
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return f"{then['class']} of " + ", ".join(f"{n}={before.get(n)!r} (here {after.get(n)!r})" for n in names)

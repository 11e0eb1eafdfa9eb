"""The settings of a cache: frozen, checked once, written to and read from JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ticache.calibration import Calibration
from ticache.forecast import FORECASTERS
from ticache.ops import BACKENDS
from ticache.provenance import Provenance

CUTS = ("output", "outer", "branches")
AXES = ("step", "timestep", "logsnr")
SCHEDULES = ("spread", "late", "uniform", "auto", "steps")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_NESTED: dict[str, Any] = {"provenance": Provenance, "calibration": Calibration}  # settings with a form of their own

# A preset gives values for what the caller leaves out; explicit arguments win.
PRESETS: dict[str, dict[str, Any]] = {
    # Eq. 4 and section 4.4 of Follow-Your-Emoji-Faster to the letter. Sets no N, order or cut.
    "paper": {"forecaster": "taylor", "schedule": "uniform", "boundary": 0.72, "noise_order": None},
    "fast": {"N": 5, "order": 2, "cut": "outer"},
    "balanced": {"N": 3, "order": 2, "cut": "outer"},
    "faithful": {"N": 2, "order": 2, "cut": "outer"},
}


@dataclass(frozen=True)
class CacheConfig:
    """How a cache predicts. ValueError or TypeError, naming the setting, for a value that cannot be.

    N: refresh interval, >= 1; on average one call in N is full. 1 caches nothing and is bit-identical.
    order: highest finite difference used, 0 to 4; 0 is plain reuse.
    cut: "outer" (default), "output" (cheapest) or "branches" (most faithful): what is predicted.
    depth: with cut="outer", how many more up layers stay live: 0 to the number of up layers - 1 (DeepCache's branch).
    resnets: with cut="branches", predict the residual branch of every resnet too.
    forecaster: "newton" (default), "taylor" (Eq. 4), "chebyshev" (Spectrum) or "reuse"; see `ticache.forecast`.
    schedule: "spread" (default), "late", "uniform", "auto", a list of full steps (kept in `steps`), or a callable
        `step -> bool` or `(step, num_steps) -> bool`. "auto" makes the first run of a kind in full and records it;
        later ones have the ceil(T / N) full steps, the forecaster and the order that the recording says are best.
    axis: "step" (default), "timestep" or "logsnr": the variable in which features are extrapolated.
    boundary: G of Eq. 4: an int, or a fraction of the steps; before it only tokens in the region are predicted.
    warmup: the first steps that are full in any case.
    dtype: of what is kept; None keeps the feature's.
    offload: "cpu" keeps it in host memory (for the very large; slow), None on the device.
    keep: after the run hold what was kept, and copies of some calls' inputs, for `kept()` and `report(reference=True)`.
    noise_order: the order allowed with samplers that add noise (DDPM, DDIM with eta, ancestral, LCM), where higher ones
        amplify it; None lifts the cap.
    backend: "auto", "triton" or "reference": what computes differences and predictions.
    calibration: with schedule="auto", recordings of earlier runs (`session.calibration`): no run is made in full then.
    provenance: what `ticache.tune` found these settings on, and what they reached there; None for settings of your own.
    """

    N: int = 3
    order: int = 2
    cut: str = "outer"
    depth: int = 0
    resnets: bool = False
    forecaster: str = "newton"
    schedule: str | Callable[..., bool] = "spread"
    steps: tuple[int, ...] | None = None
    axis: str = "step"
    boundary: float | int = 0
    warmup: int = 0
    dtype: torch.dtype | None = None
    offload: str | None = None
    keep: bool = False
    noise_order: int | None = 1
    backend: str = "auto"
    calibration: Calibration | None = field(default=None, hash=False)
    provenance: Provenance | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        self._take_steps()
        for name, lowest in (("N", 1), ("order", 0), ("depth", 0), ("warmup", 0)):
            _check_int(name, getattr(self, name), lowest)
        if self.order > 4:
            raise ValueError(f"order must be 0 to 4, got {self.order}")
        if self.noise_order is not None:
            _check_int("noise_order", self.noise_order, 0)
        _check_choice("cut", self.cut, CUTS)
        _check_choice("forecaster", self.forecaster, FORECASTERS)
        _check_choice("axis", self.axis, AXES)
        _check_choice("offload", self.offload, (None, "cpu"))
        _check_choice("backend", self.backend, BACKENDS)
        if not callable(self.schedule):
            _check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("resnets", "keep"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.depth and self.cut != "outer":
            raise ValueError(f"depth goes with cut='outer' only, got depth={self.depth} with cut={self.cut!r}")
        if self.resnets and self.cut != "branches":
            raise ValueError(f"resnets goes with cut='branches' only, got cut={self.cut!r}")
        for name, kind in _NESTED.items():
            if not isinstance(getattr(self, name), kind | None):
                raise TypeError(f"{name} must be a {kind.__name__} or None, got {type(getattr(self, name)).__name__}")
        if self.calibration is not None and self.schedule != "auto":
            raise ValueError(f"calibration goes with schedule='auto' only, got schedule={self.schedule!r}")
        if self.dtype is not None and self.dtype not in DTYPES.values():
            raise ValueError(f"dtype must be a floating-point torch dtype or None, got {self.dtype!r}")
        self._check_boundary()

    @property
    def needs_num_steps(self) -> bool:
        """Do these settings make sense only where the number of steps is known?"""
        named = self.schedule in ("spread", "late", "auto")
        return named or isinstance(self.boundary, float) or self.forecaster == "chebyshev"

    @classmethod
    def from_preset(cls, preset: str | None, **given: Any) -> CacheConfig:
        """The settings of a preset ("paper", "fast", "balanced", "faithful" or None), with `given` on top."""
        if preset is None:
            return cls(**given)
        _check_choice("preset", preset, tuple(PRESETS))
        return cls(**{**PRESETS[preset], **given})

    def replaced(self, **given: Any) -> CacheConfig:
        """A copy with some settings changed; other full steps than the tuned ones have no provenance."""
        if "schedule" in given and "steps" not in given:
            given["steps"] = None
        if {"schedule", "steps"} & set(given):
            given.setdefault("provenance", None)
            if given.get("schedule") != "auto":
                given.setdefault("calibration", None)
        return dataclasses.replace(self, **given)

    def to_json(self) -> str:
        """The settings as JSON text. ValueError for a callable schedule: a function cannot be written down."""
        if callable(self.schedule):
            raise ValueError("schedule is a callable, which cannot be written as JSON; pass the list of its full steps")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: values[name].to_dict() for name in _NESTED if values[name] is not None}
        values["dtype"] = next((name for name, dtype in DTYPES.items() if dtype == self.dtype), None)
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CacheConfig:
        """Read what `to_json` wrote. ValueError for text that is no such object or holds an unknown setting."""
        values = json.loads(text)
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            unknown = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"a cache's settings are an object with some of {sorted(known)}, got {unknown}")
        if isinstance(values.get("dtype"), str):
            _check_choice("dtype", values["dtype"], tuple(DTYPES))
            values["dtype"] = DTYPES[values["dtype"]]
        nested = {name: kind.from_dict(values[name]) for name, kind in _NESTED.items() if values.get(name) is not None}
        return cls(**values | nested)

    def _take_steps(self) -> None:
        """`schedule=[0, 3, 6]` and `steps=(0, 3, 6)` mean the same."""
        steps = self.steps
        if not callable(self.schedule) and not isinstance(self.schedule, str):
            if not isinstance(self.schedule, Sequence):
                names = ", ".join(map(repr, SCHEDULES[:-1]))
                raise TypeError(f"schedule must be {names}, a list of steps or a callable, got {self.schedule!r}")
            steps = tuple(self.schedule)
        if steps is None:
            if self.schedule == "steps":
                raise ValueError("schedule='steps' needs steps=, the list of full steps")
            return
        for step in steps:
            _check_int("steps", step, 0)
        if not steps or 0 not in steps:
            raise ValueError(f"the list of full steps must begin with 0: nothing can be predicted before; got {steps}")
        object.__setattr__(self, "steps", tuple(sorted(set(steps))))
        object.__setattr__(self, "schedule", "steps")

    def _check_boundary(self) -> None:
        value = self.boundary
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"boundary must be an int or a fraction of the steps, got {value!r}")
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError(f"boundary must be an int, or a fraction in [0, 1], got {value}")
        if value < 0:
            raise ValueError(f"boundary must be >= 0, got {value}")


def _check_int(name: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < lowest:
        raise ValueError(f"{name} must be >= {lowest}, got {value}")


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")

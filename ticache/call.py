"""One UNet call: what its hooks note at a full step, and put out at a predicted one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ticache.cuts import Unit
from ticache.ghosts import Spec, feature_in, spec_of, wrap_like

# Which feature: a unit and the how-manieth time it ran in this call, or a residual that ControlNet adds.
Key = tuple[str | int, int]


class Call:
    """The state of one call in flight, read and written by the hooks within it.

    shapes: of every unit's output, by unit, shared by calls whose inputs have the same shapes.
    writable: ghosts and features are written into in place (FreeU, T2I-Adapter), so they need memory of their own.
    poison: ghosts are NaN, to show whether anything reads them.
    """

    def __init__(
        self,
        *,
        full: bool,
        shapes: dict[int, Spec | None],
        writable: bool,
        site: int | None = None,
        poison: bool = False,
    ):
        self.full = full
        self.shapes = shapes
        self.writable = writable
        self.site = site
        self.poison = poison
        self.passed = False
        self.take: Callable[[Key, Tensor], None] | None = None
        self.predict: Callable[[Key], Tensor | None] | None = None
        self.features: dict[Key, Tensor] = {}
        self.predictions: dict[Key, Tensor] = {}
        self._runs: dict[int, int] = {}

    def seen(self, unit: Unit, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what a unit put out at a full step."""
        if unit.role in ("dead", "site"):
            self.shapes[unit.index] = spec_of(output)
        if unit.role == "dead":
            return
        feature = feature_in(output)
        if feature is None:
            return
        if unit.role == "site":
            # The last site to run is the one. Cloned where it will be written into before the call ends.
            self.site = unit.index
            self.features = {("site", 0): feature.clone() if self.writable else feature}
            return
        if unit.role == "residual":
            feature = feature * _rescale(unit) - _input(args, kwargs)
        self._capture(self._key(unit), feature)

    def predicted_site(self) -> Any:
        """The output of the site at a predicted step."""
        self.passed = True
        assert self.site is not None
        spec = self.shapes[self.site]
        assert spec is not None
        return wrap_like(spec, self.predictions["site", 0])

    def predicted_branch(self, unit: Unit) -> Tensor | None:
        """The output of a residual branch at a predicted step, None if nothing is kept of it."""
        key = self._key(unit)
        if key in self.predictions:
            return self.predictions[key]
        assert self.predict is not None
        return self.predict(key)

    def predicted_residual(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The output of a module that adds its own input to its branch, at a predicted step, None as above."""
        branch = self.predicted_branch(unit)
        return None if branch is None else (_input(args, kwargs) + branch) / _rescale(unit)

    def _key(self, unit: Unit) -> Key:
        count = self._runs.get(unit.index, 0)
        self._runs[unit.index] = count + 1
        return unit.index, count

    def _capture(self, key: Key, feature: Tensor) -> None:
        # A compiled graph only hands the feature out; eagerly it is taken in at once and need not be held.
        # (Asked first, so that the graph does not depend on whether this step's features are kept.)
        if torch.compiler.is_compiling() or self.take is None:
            self.features[key] = feature
        else:
            self.take(key, feature)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _rescale(unit: Unit) -> float:
    return getattr(unit.module, "rescale_output_factor", 1.0)

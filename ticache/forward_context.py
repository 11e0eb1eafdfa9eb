"""One forward of the UNet: what its modules note at a full step, and put out at a predicted one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ticache.cut_plan import CutModule

# Which feature: a module and the how-manieth time it ran in this call, the cache point, or one of ControlNet's.
Key = tuple[str | int, int]
POINT: Key = ("site", 0)
# What tensors a module puts out, nested as it nests them: (shape, dtype, device) or (type, keys or None, specs).
Spec = tuple[Any, Any, Any]


@dataclass(kw_only=True, eq=False)
class ForwardContext:
    """One call, read and written by the hooks within it; it also keeps the time.

    shapes: of every cut module's output, by module, shared by calls whose inputs have the same shapes.
    writable: placeholders and features are written into in place (FreeU, T2I-Adapter): they need memory of their own.
    point: the module whose output is the cache point. nan_filled: placeholders are NaN, to show whether anything reads
    them. store: takes in a feature of a full step. predict: the prediction of a feature, None where none is kept.
    """

    full: bool
    shapes: dict[int, Spec | None]
    writable: bool
    point: int | None = None
    nan_filled: bool = False
    device: torch.device | None = None
    is_past_point: bool = False
    store: Callable[[Key, Tensor], None] | None = None
    predict: Callable[[Key], Tensor | None] | None = None
    features: dict[Key, Tensor] = field(default_factory=dict)
    predictions: dict[Key, Tensor] = field(default_factory=dict)
    stream: Any = None
    inputs: Any = None
    watch: Any = None
    events: list[Any] | None = None
    _runs: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record(torch.cuda.current_stream(self.device))
        self.seconds = -time.perf_counter()

    def end(self) -> None:
        """The call has ended: stop the clock."""
        self.seconds += time.perf_counter()
        if self.events is not None:
            self.events[1].record(torch.cuda.current_stream(self.device))

    def seen(self, cut: CutModule, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what a module put out at a full step."""
        if cut.role in ("skipped", "point"):
            self.shapes[cut.index] = spec_of(output)
        if cut.role == "skipped":
            return
        feature = feature_in(output)
        if feature is None:
            return
        if cut.role == "point":
            # The last cache point to run is the one. Cloned where it will be written into before the call ends.
            self.point = cut.index
            self.features = {POINT: feature.clone() if self.writable else feature}
            return
        if cut.role == "residual":
            feature = feature * _rescale(cut) - _input(args, kwargs)
        key = self._key(cut)
        # A compiled graph only hands the feature out; eagerly it is stored at once and need not be held.
        # (Asked first, so that the graph does not depend on whether this step's features are kept.)
        if torch.compiler.is_compiling() or self.store is None:
            self.features[key] = feature
        else:
            self.store(key, feature)

    def output_of(self, cut: CutModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a module puts out at a predicted step, without running; None where it must run."""
        if cut.role in ("branch", "residual"):
            key = self._key(cut)
            branch = self.predictions.get(key)
            if branch is None and self.predict is not None:
                branch = self.predict(key)
            if branch is None or cut.role == "branch":
                return branch
            return (_input(args, kwargs) + branch) / _rescale(cut)
        spec = self.shapes.get(cut.index)
        if self.point == cut.index:
            assert spec is not None
            self.is_past_point = True
            kind, keys, _ = spec
            feature = self.predictions[POINT]
            if not isinstance(kind, type):
                return feature
            return kind([feature]) if keys is None else kind(**{keys[0]: feature})
        if spec is None or self.is_past_point:
            return None
        return placeholder(spec, self.writable, self.nan_filled)

    def _key(self, cut: CutModule) -> Key:
        count = self._runs.get(cut.index, 0)
        self._runs[cut.index] = count + 1
        return cut.index, count


class CurrentForward:
    """The forward that each thread is in, if any. A compiled graph knows one at a time."""

    def __init__(self) -> None:
        self.compiled = False
        self._local = threading.local()
        self._shared: ForwardContext | None = None

    def get(self) -> ForwardContext | None:
        """This thread's, None between calls."""
        if torch.compiler.is_compiling():
            self.compiled = True
            return self._shared
        return getattr(self._local, "context", None)

    def set(self, context: ForwardContext | None) -> None:
        """A forward of this thread begins, or has ended."""
        self._local.context = self._shared = context

    def __reduce__(self) -> tuple[Any, ...]:
        """A copied UNet is in no forward."""
        return CurrentForward, ()


def spec_of(output: Any) -> Spec | None:
    """The shapes of a module's output, nested as it is; None for what holds anything but tensors."""
    if isinstance(output, Tensor):
        return tuple(output.shape), output.dtype, output.device
    if type(output) in (list, tuple):
        specs = [spec_of(item) for item in output]
        return None if None in specs else (type(output), None, specs)
    if isinstance(output, OrderedDict):  # diffusers' output dataclasses
        specs = [spec_of(item) for item in output.values()]
        return None if None in specs else (type(output), list(output), specs)
    return None


def placeholder(spec: Spec, writable: bool = False, nan_filled: bool = False) -> Any:
    """An output of the right shapes that nobody reads: one element, expanded, unless somebody writes into it.

    nan_filled: so that whoever does read it is found out.
    """
    kind, keys, rest = spec
    if isinstance(kind, type):
        items = [placeholder(item, writable, nan_filled) for item in rest]
        return kind(items) if keys is None else kind(**dict(zip(keys, items, strict=True)))
    if nan_filled and keys.is_floating_point:
        return torch.full(kind, float("nan"), dtype=keys, device=rest)
    if writable:
        return torch.empty(kind, dtype=keys, device=rest)
    return torch.empty((), dtype=keys, device=rest).expand(kind)


def feature_in(output: Any) -> Tensor | None:
    """The one tensor of an output that is a tensor or wraps one; None for others."""
    if isinstance(output, Tensor):
        return output
    if type(output) in (list, tuple) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, OrderedDict) and len(output) == 1:
        return feature_in(next(iter(output.values())))
    return None


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _rescale(cut: CutModule) -> float:
    return getattr(cut.module, "rescale_output_factor", 1.0)

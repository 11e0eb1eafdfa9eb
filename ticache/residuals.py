"""What a ControlNet or a T2I-Adapter adds to the skips: kept at full steps, predicted where a live layer reads it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ticache.call import Call, Key
from ticache.cuts import Plan
from ticache.ghosts import Spec, ghost, spec_of
from ticache.host import tensors_in

if TYPE_CHECKING:
    from ticache.cache import StreamCache
    from ticache.hooks import ControlNetHook

DOWN, MID, ADAPTER = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


def has_adapter(bound: dict[str, Any]) -> bool:
    """Does a T2I-Adapter add features to this call?"""
    return bound.get(ADAPTER) is not None or (bound.get(DOWN) is not None and bound.get(MID) is None)


def live(bound: dict[str, Any], plan: Plan) -> dict[Key, Tensor]:
    """Of what a ControlNet adds in this call, the residuals that a predicted step reads."""
    down, mid = bound.get(DOWN), bound.get(MID)
    if down is None or mid is None:
        return {}
    found: dict[Key, Tensor] = {("down", index): residual for index, residual in enumerate(down[: plan.live_skips])}
    return found | ({("mid", 0): mid} if plan.live_mid else {})


def take(bound: dict[str, Any], plan: Plan, cache: StreamCache) -> None:
    """Take in, at a full step, the residuals that a predicted step reads."""
    for key, residual in live(bound, plan).items():
        cache.take(key, residual)


def predicted(bound: dict[str, Any], plan: Plan, call: Call) -> dict[str, Any]:
    """The arguments of a predicted call: live residuals predicted, dead ones nothing."""
    bound = dict(bound)
    down, mid = bound.get(DOWN), bound.get(MID)
    if down is not None and mid is not None:
        if plan.live_skips == 0:
            bound[DOWN] = bound[MID] = None
        else:
            keys: list[Key] = [("down", index) for index in range(len(down))]
            bound[DOWN] = type(down)([_predicted(call, key, r) for key, r in zip(keys, down, strict=True)])
            bound[MID] = _predicted(call, ("mid", 0), mid)
    elif down is not None and plan.live_down_blocks is not None:
        # Before diffusers had an argument for it, a T2I-Adapter's features came this way.
        bound[DOWN] = down[: plan.live_down_blocks] or None
    if bound.get(ADAPTER) is not None and plan.live_down_blocks is not None:
        bound[ADAPTER] = bound[ADAPTER][: plan.live_down_blocks] or None
    return bound


def _predicted(call: Call, key: Key, residual: Tensor) -> Tensor:
    assert call.predict is not None
    prediction = call.predict(key)
    return residual.new_zeros(()) if prediction is None else prediction


class _LastCall(threading.local):
    """A thread's last call of the ControlNet: how it was weighted, and where it was left out, what it would run."""

    scale: Any = None
    skipped: tuple[ControlNetHook, tuple[Any, ...], dict[str, Any], Any] | None = None


class Control:
    """A pipeline's ControlNet: each thread's last call of it, and whether it was left out."""

    def __init__(self) -> None:
        self._specs: dict[Any, Spec | None] = {}
        self._last = _LastCall()

    @property
    def scale(self) -> Any:
        """How the ControlNet was weighted when this thread last ran it."""
        return self._last.scale

    def run(
        self, hook: ControlNetHook, args: tuple[Any, ...], kwargs: dict[str, Any], bound: dict[str, Any], skip: bool
    ) -> Any:
        """The ControlNet's output, or ghosts of it where its next reader will be predicted."""
        scale = bound.get("conditioning_scale")
        key = tuple((t.shape, t.dtype, t.device) for t in tensors_in(bound)), bound.get("return_dict")
        spec = self._specs.get(key)
        if skip and spec is not None and scale == self.scale:
            output = ghost(spec)
            self._last.skipped = hook, args, kwargs, output
            return output
        self._last.scale = scale
        self._last.skipped = None
        output = hook.original(*args, **kwargs)
        self._specs[key] = spec_of(output)
        return output

    def scale_changed(self, cache: StreamCache) -> bool:
        """Is the ControlNet weighted otherwise than when what is kept was computed?"""
        return self.scale != cache.control_scale

    def forget(self) -> None:
        """The call that the ControlNet was left out for is predicted indeed."""
        self._last.skipped = None

    def restored(self, bound: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments of a full call; where the ControlNet was left out after all, it runs now."""
        if self._last.skipped is None:
            return bound, False
        hook, args, kwargs, output = self._last.skipped
        self._last.skipped = None
        if bound.get(DOWN) is None:
            return bound, False
        if not any(a is b for a in tensors_in(bound[DOWN]) for b in tensors_in(output)):
            raise RuntimeError(
                "a step expected to be predicted has to run in full, and ControlNet's output, left out for it, was "
                "changed on the way; run this pipeline with session.paused()"
            )
        output = hook.original(*args, **kwargs)
        down, mid = output.values() if isinstance(output, dict) else output
        return {**bound, DOWN: down, MID: mid}, True

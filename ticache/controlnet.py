"""What a ControlNet or a T2I-Adapter adds to the skips: kept at full steps, predicted where it is read."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from ticache.cut_plan import CutPlan
from ticache.forward_context import ForwardContext, Key, Spec, placeholder, spec_of
from ticache.hooks import ControlNetHook
from ticache.inputs import RESIDUALS, CallInputs, tensors_in

DOWN, MID, ADAPTER = RESIDUALS


def has_adapter(bound: dict[str, Any]) -> bool:
    """Does a T2I-Adapter add features to this call?"""
    return bound.get(ADAPTER) is not None or (bound.get(DOWN) is not None and bound.get(MID) is None)


def read_residuals(bound: dict[str, Any], plan: CutPlan) -> dict[Key, Tensor]:
    """Of what a ControlNet adds in this call, the residuals that a predicted step reads."""
    down, mid = bound.get(DOWN), bound.get(MID)
    if down is None or mid is None:
        return {}
    found: dict[Key, Tensor] = {("down", index): residual for index, residual in enumerate(down[: plan.executed_skips])}
    return found | ({("mid", 0): mid} if plan.executed_mid else {})


def predicted(bound: dict[str, Any], plan: CutPlan, context: ForwardContext) -> dict[str, Any]:
    """The arguments of a predicted call: residuals that are read predicted, the others nothing; `bound` without any."""
    down, mid, adapter = bound.get(DOWN), bound.get(MID), bound.get(ADAPTER)
    if down is None and adapter is None:
        return bound
    changed = dict(bound)
    if down is not None and mid is not None:
        if plan.executed_skips == 0:
            changed[DOWN] = changed[MID] = None
        else:
            keys: list[Key] = [("down", index) for index in range(len(down))]
            changed[DOWN] = type(down)([_predicted(context, key, r) for key, r in zip(keys, down, strict=True)])
            changed[MID] = _predicted(context, ("mid", 0), mid)
    elif down is not None and plan.executed_down_blocks is not None:
        # Before diffusers had an argument for it, a T2I-Adapter's features came this way.
        changed[DOWN] = down[: plan.executed_down_blocks] or None
    if adapter is not None and plan.executed_down_blocks is not None:
        changed[ADAPTER] = adapter[: plan.executed_down_blocks] or None
    return changed


def _predicted(context: ForwardContext, key: Key, residual: Tensor) -> Tensor:
    assert context.predict is not None
    prediction = context.predict(key)
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
        self, hook: ControlNetHook, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: CallInputs, skip: bool
    ) -> Any:
        """The ControlNet's output, or placeholders of it where its next reader will be predicted."""
        scale = inputs.bound.get("conditioning_scale")
        key = tuple((t.shape, t.dtype, t.device) for t in tensors_in(inputs.bound)), inputs.bound.get("return_dict")
        spec = self._specs.get(key)
        if skip and spec is not None and scale == self.scale:
            output = placeholder(spec)
            self._last.skipped = hook, args, kwargs, output
            return output
        self._last.scale = scale
        self._last.skipped = None
        output = hook.original(*args, **kwargs)
        self._specs[key] = spec_of(output)
        return output

    def predicted(self, bound: dict[str, Any], plan: CutPlan, context: ForwardContext) -> dict[str, Any]:
        """As the function; the call that the ControlNet was left out for is predicted indeed."""
        self._last.skipped = None
        return predicted(bound, plan, context)

    def restored(self, bound: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a full call; where the ControlNet was left out after all, it runs now."""
        if self._last.skipped is None:
            return bound
        hook, args, kwargs, output = self._last.skipped
        self._last.skipped = None
        if bound.get(DOWN) is None:
            return bound
        if not any(a is b for a in tensors_in(bound[DOWN]) for b in tensors_in(output)):
            raise RuntimeError(
                "a step expected to be predicted has to run in full, and ControlNet's output, left out for it, was "
                "changed on the way; run this pipeline with session.paused()"
            )
        output = hook.original(*args, **kwargs)
        down, mid = output.values() if isinstance(output, dict) else output
        return {**bound, DOWN: down, MID: mid}

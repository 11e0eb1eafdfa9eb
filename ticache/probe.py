"""Does a cut fit a UNet whose class is not diffusers'? One more call, with placeholders of NaN, tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ticache import controlnet
from ticache.cut_plan import CutPlan
from ticache.forward_context import POINT, ForwardContext
from ticache.inputs import CallInputs, tensors_in

Forward = Callable[[ForwardContext, dict[str, Any], CallInputs], Any]


def probe(
    unet: nn.Module, plan: CutPlan, context: ForwardContext, output: Any, forward: Forward, compiled: bool
) -> tuple[bool, str | None]:
    """Do executed modules really read nothing of what is skipped? -> (is the question settled, why the cut is unfit).

    The full call of `context`, which put out `output`, is made once more by `forward`, as a predicted one with its own
    feature and placeholders of NaN. A class of diffusers' is known to fit.
    """
    feature = context.features.get(POINT)
    has_point = any(cut.role == "point" for cut in plan.modules)
    misfit = None
    if context.store is not None and context.point is None and has_point:
        misfit = "the module whose output is predicted never ran"
    known = type(unet).__module__.startswith("diffusers.")
    if known or compiled or feature is None or context.store is None:
        return known and (context.point is not None or not has_point), misfit
    again = ForwardContext(
        full=False, shapes=context.shapes, writable=context.writable, point=context.point, nan_filled=True
    )
    again.predictions[POINT] = feature.clone()
    again.predict = controlnet.read_residuals(context.inputs.bound, plan).get
    bound = controlnet.predicted(context.inputs.bound, plan, again)
    outputs, wanted = tensors_in(forward(again, bound, context.inputs)), tensors_in(output)
    if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(outputs, wanted, strict=True)):
        misfit = "it reads features taken for dead"
    return True, misfit

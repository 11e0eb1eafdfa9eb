"""Does a cut fit a UNet whose class is not diffusers'? One more call, with placeholders of NaN, tells."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ticache import controlnet
from ticache.cut_plan import CutPlan
from ticache.forward_context import POINT, ForwardContext
from ticache.inputs import tensors_in


def prepare(
    unet: nn.Module, plan: CutPlan, context: ForwardContext, compiled: bool
) -> tuple[bool, str | None, tuple[ForwardContext, dict[str, Any]] | None]:
    """Do executed modules really read nothing of what is skipped? -> (is the question settled, why the cut is unfit,
    the call that will tell: a predicted one with the feature of the full call `context` and placeholders of NaN).

    A class of diffusers' is known to fit.
    """
    feature = context.features.get(POINT)
    has_point = any(cut.role == "point" for cut in plan.modules)
    misfit = None
    if context.store is not None and context.point is None and has_point:
        misfit = "the module whose output is predicted never ran"
    known = type(unet).__module__.startswith("diffusers.")
    if known or compiled or feature is None or context.store is None:
        return known and (context.point is not None or not has_point), misfit, None
    again = ForwardContext(
        full=False, shapes=context.shapes, writable=context.writable, point=context.point, nan_filled=True
    )
    again.predictions[POINT] = feature.clone()
    again.predict = controlnet.read_residuals(context.inputs.bound, plan).get
    return True, misfit, (again, controlnet.predicted(context.inputs.bound, plan, again))


def compare(outputs: Any, wanted: Any) -> str | None:
    """Why a cut is unfit whose predicted call put out `outputs` and the full one `wanted`; None where it fits."""
    pairs = zip(tensors_in(outputs), tensors_in(wanted), strict=True)
    same = all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs)
    return None if same else "it reads features taken for dead"

"""Are a call's latents those that the scheduler's last step gave? Asked by identity: no values are compared."""

from __future__ import annotations

import sys
import weakref
from collections import deque
from typing import Any

from torch import Tensor

REMEMBERED = 64  # several requests, or windows, may be under way at once


class KnownLatents:
    """The latest samples that the scheduler's steps gave, and what it scaled from them; held weakly."""

    def __init__(self) -> None:
        self._known: deque[tuple[weakref.ref[Tensor], int]] = deque(maxlen=REMEMBERED)

    def add(self, sample: Any) -> None:
        """Take in what the scheduler gave."""
        if isinstance(sample, Tensor):
            self._known.appendleft((weakref.ref(sample), _writes(sample)))

    def __contains__(self, latents: Tensor) -> bool:
        """Are these known latents, or a part of such, that nobody has written into since?"""
        place, writes = latents.untyped_storage().data_ptr(), _writes(latents)
        for reference, writes_then in self._known:
            known = reference()
            if known is not None and (known is latents or known.untyped_storage().data_ptr() == place):
                return writes == writes_then
        return False


def latents_of(pipe: Any, sample: Tensor) -> Tensor | None:
    """The latents behind a call's sample: in a loop of one's own the sample, None where nobody can have replaced them.

    A pipeline hands the UNet a copy of its latents, for both halves of guidance, and only its loop knows what
    `callback_on_step_end` gave back; so its own variables are looked at.
    """
    frame = sys._getframe(1)
    while frame is not None:
        names = frame.f_code.co_varnames
        if "callback_on_step_end" in names and pipe is not None and frame.f_locals.get("self") is pipe:
            values = frame.f_locals
            latents = values.get("latents") if values.get("callback_on_step_end") is not None else None
            return latents if isinstance(latents, Tensor) else None
        frame = frame.f_back
    return sample


def _writes(tensor: Tensor) -> int:
    """How often the tensor's memory was written into, as far as PyTorch counts it."""
    return 0 if tensor.is_inference() else tensor._version

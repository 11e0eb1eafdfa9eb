"""Functions of a user's own, named as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from fye_pipeline.errors import UserError


def load_function(name: str, flag: str, *, instead: str = "") -> Callable[..., Any]:
    """The function that a flag names. instead: what the flag takes too, as "mediapipe, points or ".

    Raises `UserError`, in one sentence, where it cannot be loaded or is no function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"{flag} must be {instead}package.module:function, got {name!r}.")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may fail at its import in any way
        raise UserError(f"{flag} {name} cannot be loaded ({type(error).__name__}: {error}).") from error
    if not callable(found):
        raise UserError(f"{flag} {name} is no function of a picture.")
    return found

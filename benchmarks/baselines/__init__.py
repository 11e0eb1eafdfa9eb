"""What a user would take instead, one file each: context managers that put a method on a pipeline and take it off.

DeepCache and tomesd come from PyPI; the others are short implementations of our own, after their papers and the
behaviour of their public code. Each yields a `Running`, which tells what the run that was just made did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def _nothing() -> int:
    return 0


@dataclass(frozen=True)
class Running:
    """A method in place.

    full_calls: full evaluations of the UNet in the last run, None if its own modules tell. bytes_held: between steps.
    """

    full_calls: Callable[[], int] | None = None
    bytes_held: Callable[[], int] = _nothing


def tensor_bytes(values: Any) -> int:
    """Bytes of memory behind all tensors in nested dicts, lists and tuples; memory that several share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(values)}
    return sum(storages.values())


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)

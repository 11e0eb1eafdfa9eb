"""One of several processes that `accelerate launch` or `torchrun` has started: which rows are its own, and the end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fye_pipeline.batch.manifest import Summary

_PATIENCE = timedelta(days=30)  # a rank whose rows are done waits for those whose are not


def own_share(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, count) of this process as its launcher tells it; (0, 1) where it is alone."""
    try:
        rank, count = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, count) if 0 <= rank < count else (0, 1)


def own_device(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """With `auto`, each process on a machine takes the GPU of its own number."""
    local = environment.get("LOCAL_RANK", "")
    return f"cuda:{local}" if name == "auto" and local.isdigit() and torch.cuda.is_available() else name


def gather(summary: Summary) -> Summary:
    """Wait for the other processes and add up what became of all rows.

    A launcher ends all processes when one ends with an error, so none may end before all have done their rows.
    """
    import torch.distributed as distributed

    if "MASTER_ADDR" not in os.environ:
        return summary
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        every: list[Summary | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, summary)
    finally:
        distributed.destroy_process_group()
    total = summary
    for index, other in enumerate(every):
        if other is not None and index != own_share()[0]:
            total = total + other
    return total

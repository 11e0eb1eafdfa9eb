"""DeepCache 0.1.1 and tomesd 0.1.3, as their own documentation puts them on a pipeline; T-GATE, which needs text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.baselines import Running, tensor_bytes


@contextmanager
def deepcache(pipe: Any, *, interval: int, branch: int) -> Iterator[Running]:
    """Reuse one feature of every `interval`-th step. `branch`: 3 x down block + layer; 0 is DeepCache's default."""
    from DeepCache import DeepCacheSDHelper

    helper: Any = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield Running(bytes_held=lambda: tensor_bytes(helper.cached_output))
    finally:
        helper.disable()


def deepest_branch(unet: Any) -> int:
    """DeepCache's branch that leaves the most live: the last layer of the last down block."""
    return 3 * (len(unet.down_blocks) - 1) + len(unet.down_blocks[-1].resnets) - 1


@contextmanager
def tomesd(pipe: Any, *, ratio: float) -> Iterator[Running]:
    """Merge `ratio` of the tokens around the self-attentions of the largest resolution."""
    if not isinstance(pipe.unet, UNet2DConditionModel):
        raise NotApplicable("n/a: it takes the frames of a video for the height of a picture")
    import tomesd as package

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        package.apply_patch(pipe, ratio=ratio)
        try:
            yield Running()
        finally:
            package.remove_patch(pipe)


@contextmanager
def tgate(_pipe: Any) -> Iterator[Running]:
    """T-GATE keeps the cross-attention to a text; it is in no package of ours and no model here reads a text."""
    raise NotApplicable("n/a: needs text")
    yield Running()


class NotApplicable(Exception):
    """A method that has nothing to work on in this model; the sentence stands in the row as it is."""

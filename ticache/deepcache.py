"""The calls of the package DeepCache's helper, with this package's predictions behind them.

Where a program imports `DeepCacheSDHelper` from `DeepCache`, it imports it from here instead (docs/deepcache.md).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ticache.api import apply, find_unet
from ticache.config import CacheConfig
from ticache.session import Session


class DeepCacheSDHelper:
    """Caches a pipeline's UNet between `enable` and `disable`, by the calls of DeepCache 0.1.1.

    pipe: a diffusers pipeline with a UNet; it may be set later, and exchanged. params: what `set_params` was given,
    under DeepCache's names. session: the `ticache.Session` of the last `enable`, None before; `session.report()` tells
    what was skipped.
    """

    def __init__(self, pipe: Any = None):
        self.pipe = pipe
        self.session: Session | None = None
        self._cached: tuple[Any, nn.Module] | None = None  # the pipeline and the UNet that `session` is of
        self.set_params()

    def set_params(self, cache_interval: int = 1, cache_branch_id: int = 0, skip_mode: str = "uniform") -> None:
        """Set how much is predicted, now or, while the cache is on, from the next call of the UNet on.

        cache_interval: one step in so many runs in full, as `N` of `ticache.apply`; 1, as before the first
            `set_params`, predicts nothing.
        cache_branch_id: 3 x up block + layer, both counted from the UNet's end: the innermost layer that still runs at
            a predicted step. One that the UNet does not have means its innermost.
        skip_mode: "uniform"; where the full steps lie is `ticache`'s own choice in any case.

        TypeError or ValueError for a value that cannot be; nothing is changed then.
        """
        interval = _whole_number("cache_interval", cache_interval, 1)
        branch = _whole_number("cache_branch_id", cache_branch_id, 0)
        if skip_mode != "uniform":
            raise ValueError(f"skip_mode must be 'uniform', the only one that DeepCache has, got {skip_mode!r}")
        self.params: dict[str, Any] = {
            "cache_interval": interval,
            "cache_layer_id": branch % 3,
            "cache_block_id": branch // 3,
            "skip_mode": skip_mode,
        }
        if self.session is not None and self.session.active:
            self.enable()

    def enable(self, pipe: Any = None) -> None:
        """Put the cache on the pipeline (`pipe`, from now on, where it is given); again, it stays as it is.

        ValueError where there is no pipeline, or its model cannot be cached.
        """
        if pipe is not None:
            self.pipe = pipe
        if self.pipe is None:
            raise ValueError("there is no pipeline to cache: DeepCacheSDHelper(pipe=pipe), or enable(pipe)")
        unet = find_unet(self.pipe)[2]
        depth = _depth(unet, self.params["cache_block_id"], self.params["cache_layer_id"])
        config = CacheConfig(N=self.params["cache_interval"], depth=depth)
        last = self.session
        if last is not None and last.active and self._cached == (self.pipe, unet) and last.config == config:
            return  # programs enable before every picture, and hooks hung anew would be compiled anew
        if last is not None:
            last.remove()
        self.session = apply(self.pipe, config)
        self._cached = (self.pipe, unet)

    def disable(self) -> None:
        """Take the cache off, exactly; without one it does nothing."""
        if self.session is not None:
            self.session.remove()


def _depth(unet: Any, block: int, layer: int) -> int:
    """`depth` of the cut "outer" at which the up layers run that DeepCache runs at this block and layer."""
    layers = [len(getattr(up_block, "resnets", ())) for up_block in reversed(unet.up_blocks)]
    if block >= len(layers):
        return max(sum(layers) - 1, 0)
    return max(sum(layers[:block]) + min(layer, layers[block] - 1), 0)


def _whole_number(name: str, value: object, lowest: int) -> int:
    """An int of at least `lowest`; a float that is whole, as sliders give them, is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < lowest:
        raise ValueError(f"{name} must be >= {lowest}, got {value!r}")
    return int(value)

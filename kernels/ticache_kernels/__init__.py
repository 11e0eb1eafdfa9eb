"""Fused Triton kernels for the cache: `update_differences` and `predict`, each one pass over memory.

Both are registered with `torch.library` (`torch.ops.ticache`), so `torch.compile(fullgraph=True)` sees them whole.
Callers go through `ticache.ops`, which checks the arguments; nothing here does.
"""

from ticache_kernels.predict import predict
from ticache_kernels.update_differences import update_differences

__all__ = ["predict", "update_differences"]

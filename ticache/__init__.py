"""A landmark-masked Taylor-interpolated cache for diffusers UNets.

session = ticache.apply(pipe, N=3, order=2)
frames = pipe(...).frames
print(session.report())
ticache.remove(pipe)

config = ticache.tune(pipe, calls=[{...}, ...], target_psnr=45)
"""

from ticache.api import apply, remove
from ticache.config import CacheConfig
from ticache.report import Report
from ticache.session import Session
from ticache.tuning.tune import tune

__all__ = ["CacheConfig", "Report", "Session", "apply", "remove", "tune"]

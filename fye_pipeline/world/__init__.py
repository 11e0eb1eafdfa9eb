"""A rendered world of faces: known landmarks, known truth, everything a function of a seed."""

from fye_pipeline.world.anatomy import EXPRESSIONS, STYLES, Head, Identity, sample_identity
from fye_pipeline.world.dataset import WORLD_VERSION, RenderedClip, World, contact_sheet
from fye_pipeline.world.motion import Motion, sample_motion, sample_portrait_motion

__all__ = [
    "EXPRESSIONS",
    "STYLES",
    "WORLD_VERSION",
    "Head",
    "Identity",
    "Motion",
    "RenderedClip",
    "World",
    "contact_sheet",
    "sample_identity",
    "sample_motion",
    "sample_portrait_motion",
]

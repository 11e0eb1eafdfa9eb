"""Follow-Your-Emoji-Faster: a still portrait and a driving face video give an animated portrait."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fye_pipeline.emoji.pipeline import EmojiPipeline
    from fye_pipeline.models.conditioning import AppearanceNet, LandmarkEncoder
    from fye_pipeline.models.denoising_unet import DenoisingUNet
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

__all__ = ["AppearanceNet", "DenoisingUNet", "EmojiPipeline", "FollowYourEmojiPipeline", "LandmarkEncoder"]

_HOMES = {
    "AppearanceNet": "fye_pipeline.models.conditioning",
    "DenoisingUNet": "fye_pipeline.models.denoising_unet",
    "EmojiPipeline": "fye_pipeline.emoji.pipeline",
    "FollowYourEmojiPipeline": "fye_pipeline.pipeline",
    "LandmarkEncoder": "fye_pipeline.models.conditioning",
    "ModelMixin": "diffusers",  # diffusers asks a part's library for the base class, to know how the part is loaded
}


def __getattr__(name: str) -> Any:
    """Import a public class on first use: `import fye_pipeline` alone loads neither torch nor diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fye_pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""The extractor whose features a model's encoder takes, told by their widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.expression import FACTORS, BlendshapeExtractor, ExpressionExtractor


def extractor_for(config: Mapping[str, Any]) -> ExpressionExtractor:
    """config: of an `ExpressionEncoder`. Raises `UserError` where no extractor makes such features."""
    dims = {name: config[f"{name}_dim"] for name in FACTORS}
    known: list[ExpressionExtractor] = [BlendshapeExtractor()]
    for extractor in known:
        if dims == dict(extractor.dims):
            return extractor
    listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
    names = ", ".join(extractor.name for extractor in known)
    raise UserError(f"The expression adapter takes features ({listed}) that no extractor makes: there is {names}.")

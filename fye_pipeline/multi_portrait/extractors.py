"""Extractors by name, and the one whose features a model's encoder takes, told by their widths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fye_pipeline.animate.driver import OpenDriver
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.multi_portrait.expression import FACTORS, BlendshapeExtractor, ExpressionExtractor, ExpressionSequence
from fye_pipeline.multi_portrait.pdfgc import DIMS as PDFGC_DIMS
from fye_pipeline.multi_portrait.pdfgc import PdFgcExtractor
from fye_pipeline.multi_portrait.rendered_features import DIMS as RENDERED_DIMS
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor

_DIMS: Mapping[str, Mapping[str, int]] = {
    "blendshapes": BlendshapeExtractor.dims,
    "rendered": RENDERED_DIMS,
    "pdfgc": PDFGC_DIMS,
}


def extractor_named(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> ExpressionExtractor:
    """The extractor of a name.

    weights: the user's file for `pdfgc`, or another than ships for `rendered`. Raises `UserError` for another name, or
    where a file is needed and none is given.
    """
    if name == "blendshapes":
        return BlendshapeExtractor()
    if name == "rendered":
        return RenderedExtractor() if weights is None else RenderedExtractor(weights)
    if name == "pdfgc":
        if weights is None:
            raise UserError(
                "The extractor pdfgc needs PD-FGC's motion weights, which do not ship: name the file with "
                "--expression-weights."
            )
        return PdFgcExtractor(weights, device=device)
    raise UserError(f"There is no extractor {name!r} of expressions; there are {', '.join(_DIMS)}.")


def extractor_for(
    config: Mapping[str, Any], weights: Path | None = None, device: torch.device | str = "cpu"
) -> ExpressionExtractor:
    """The extractor that an `ExpressionEncoder` of this config takes. Raises `UserError` where none makes its."""
    dims = {name: config[f"{name}_dim"] for name in FACTORS}
    for name, known in _DIMS.items():
        if dims == dict(known):
            return extractor_named(name, weights, device)
    listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
    raise UserError(
        f"The expression adapter takes features ({listed}) that no extractor makes: there are {', '.join(_DIMS)}."
    )


def extract(extractor: ExpressionExtractor, opened: OpenDriver, landmarks: LandmarkSequence) -> ExpressionSequence:
    """The features of a person in a driver's frames, which are read once more where the extractor looks at them.

    Raises `UserError` where it does and there are none, as of a landmark file.
    """
    frames = iter(()) if opened.source is None else opened.source.frames(opened.wanted)
    return extractor(frames, landmarks)

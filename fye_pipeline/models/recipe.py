"""What a model folder's `recipe.json` says about using the model, beside how it was trained."""

from __future__ import annotations

import json
from pathlib import Path

from fye_pipeline.errors import UserError

PAPER_GUIDANCE = 3.5


def recommended_guidance(folder: str | Path) -> float:
    """The guidance scale that a model was tuned for: `guidance` of its recipe.json, else the paper's 3.5.

    Raises UserError if the file is there and cannot be read.
    """
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        return PAPER_GUIDANCE
    try:
        return float(json.loads(path.read_text(encoding="utf-8")).get("guidance", PAPER_GUIDANCE))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}") from error

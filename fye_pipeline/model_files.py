"""The model files that `fye` knows: where each is expected, and whether what lies there is right."""

from __future__ import annotations

import os
from pathlib import Path

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.model_file import FILE_NAME, VARIABLE, cache_folder, find_face_landmarker

SHIPPED_MODEL = Path(__file__).parent / "assets" / "tiny"


def known_files() -> list[dict[str, str]]:
    """One row a file: name, licence, path, and state: ok, missing, or what is wrong with it."""
    landmarker = Path(os.environ.get(VARIABLE) or cache_folder() / FILE_NAME)
    shipped = SHIPPED_MODEL / "model_index.json"
    return [
        {
            "name": "face-landmarker",
            "licence": "Apache-2.0 (Google)",
            "path": str(landmarker),
            "state": _landmarker_state(landmarker),
        },
        {
            "name": "tiny",
            "licence": "Apache-2.0 (ships with this package)",
            "path": str(SHIPPED_MODEL),
            "state": "ok" if shipped.is_file() else "missing",
        },
    ]


def _landmarker_state(path: Path) -> str:
    if not path.is_file():
        return "missing"
    try:
        find_face_landmarker(path)
    except UserError as error:
        return str(error)
    return "ok"

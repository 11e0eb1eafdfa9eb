"""Still pictures as their authors saw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fye_pipeline.errors import UserError
from fye_pipeline.media.image import read_picture


def float_picture(path: Path, value: float) -> Path:
    Image.fromarray(np.full((64, 64), value, np.float32)).save(path)
    return path


@pytest.mark.parametrize("value", [0.0, 0.8, 1.0])
def test_floats_are_shares_of_white(tmp_path: Path, value: float) -> None:
    assert (read_picture(float_picture(tmp_path / "grey.tiff", value)) == round(value * 255)).all()


@pytest.mark.parametrize("value", [-0.5, 1.5, 200.0, np.nan])
def test_floats_whose_white_is_unknown_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match="between 0"):
        read_picture(float_picture(tmp_path / "grey.tiff", value))

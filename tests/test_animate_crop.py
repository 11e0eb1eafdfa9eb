"""The crop around a face, the way back, and which face is meant."""

from __future__ import annotations

import numpy as np
import pytest
from landmark_faces import face

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.portrait import SEAM, Crop, crop_around, pick_face
from fye_pipeline.errors import UserError


def picture(width: int = 200, height: int = 160) -> np.ndarray:
    """A smooth picture, so that resizing loses next to nothing."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)


def test_the_square_is_centred_on_the_face_and_scaled_and_shifted() -> None:
    crop = crop_around((0.4, 0.4, 0.6, 0.5), 200, 160, scale=2, shift=(0, 0))
    assert (crop.side, crop.left, crop.top) == (80, 60, 32)
    higher = crop_around((0.4, 0.4, 0.6, 0.5), 200, 160, scale=2, shift=(0.25, -0.1))
    assert (higher.left, higher.top) == (80, 24)


@pytest.mark.parametrize(
    "crop", [Crop(40, 30, 80, 200, 160), Crop(-20, -10, 90, 200, 160), Crop(130, 100, 90, 200, 160)]
)
@pytest.mark.parametrize("size", [64, 128])
def test_what_was_not_changed_comes_back_where_it_was(crop: Crop, size: int) -> None:
    portrait = picture()
    square = crop.cut(portrait, size)
    assert square.shape == (size, size, 3)
    returned = crop.paste(square, portrait)
    assert returned.shape == portrait.shape
    assert np.abs(returned.astype(int) - portrait).max() <= 4


def test_the_seam_is_soft_and_the_rest_untouched() -> None:
    crop, portrait = Crop(40, 30, 80, 200, 160), np.full((160, 200, 3), 60, np.uint8)
    pasted = crop.paste(np.full((64, 64, 3), 200, np.uint8), portrait)
    outside = np.ones((160, 200), bool)
    outside[30:110, 40:120] = False
    assert (pasted[outside] == 60).all()
    assert (pasted[70, 70] == 200).all()
    row = pasted[70, 40:120, 0].astype(int)
    assert row[0] < 70
    assert np.abs(np.diff(row)).max() < 40, "the seam is a step"
    assert (row[: int(80 * SEAM)] <= 200).all()
    assert (np.diff(row[:12]) >= 0).all()
    assert (portrait == 60).all()


def test_a_side_on_the_portraits_border_has_no_seam() -> None:
    crop = Crop(-10, 40, 80, 200, 160)
    seam = crop.seam()
    assert seam[40, 0] == 1
    assert seam[40, -1] < 0.05
    assert seam[0, 40] < 0.05


def test_the_matrix_takes_the_square_to_the_portrait() -> None:
    crop = Crop(40, 30, 80, 200, 160)
    matrix = np.array(crop.to_dict(64)["matrix"])
    assert np.allclose(matrix @ [0, 0, 1], [40, 30, 1])
    assert np.allclose(matrix @ [64, 64, 1], [120, 110, 1])


@pytest.mark.parametrize(("scale", "shift"), [(0.5, (0, 0)), (9, (0, 0)), (2, (0.6, 0)), (2, (0, -0.7))])
def test_a_crop_that_misses_the_face_is_refused(scale: float, shift: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="crop_s"):
        AnimationSettings(crop_scale=scale, crop_shift=shift)


def test_row_25_of_several_faces_the_largest_is_used_and_all_are_listed() -> None:
    near, far = face(-8, distance=45, width=640, height=480), face(20, distance=90, width=640, height=480)
    faces = sorted([near, far], key=lambda each: each.box[0])
    chosen, note = pick_face(faces, "largest", "group.jpg")
    assert chosen is near
    assert note is not None
    assert "2 faces" in note
    assert "1: " in note
    assert "2: " in note
    assert pick_face([near], "largest", "one.jpg") == (near, None)


def test_a_face_is_chosen_by_number_or_place() -> None:
    left, right = face(-8, width=640, height=480), face(8, width=640, height=480)
    assert pick_face([left, right], "1", "a.jpg")[0] is left
    assert pick_face([left, right], "2", "a.jpg")[0] is right
    assert pick_face([left, right], "639,240", "a.jpg")[0] is right
    assert pick_face([left, right], "5,240", "a.jpg")[0] is left
    with pytest.raises(UserError, match="no face 3"):
        pick_face([left, right], "3", "a.jpg")
    for wrong in ("0", "-1", "1,2,3", "left", "nan,1"):
        with pytest.raises(UserError, match="face must be"):
            pick_face([left, right], wrong, "a.jpg")

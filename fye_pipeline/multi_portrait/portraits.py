"""The people of a picture: every face from the left, and the square around each that the model sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.animate.portrait import Portrait, box_in, crop_around, face_in, no_face_sentence, place_of
from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.points import fit_points, read_points_of_several
from fye_pipeline.landmarks.windows import find_in_windows, is_same
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.progress import logger


def find_people(settings: GroupSettings, picture: NDArray[np.uint8], detector: LazyDetector) -> list[Face]:
    """Every face of a picture uint8 [H, W, 3], left to right; those that were pointed to, where some were.

    Raises `UserError` where there is none, and for points that cannot be used.
    """
    name = str(settings.reference)
    if settings.points is not None:
        height, width = picture.shape[:2]
        placed = (fit_points(points, width, height) for points in read_points_of_several(settings.points))
        faces = sorted(placed, key=lambda face: face.box[0] + face.box[2])
    else:
        opened = detector.open()
        faces = find_in_windows(opened.detect_all, picture, opened.canonical)
    if not faces:
        raise UserError(no_face_sentence(name, detector.best_score(picture)))
    if len(faces) > 1:
        listed = "; ".join(f"{number}: {place_of(face)}" for number, face in enumerate(faces, 1))
        logger.info(f"{name} shows {len(faces)} faces, from the left {listed}.")
    return faces


def portrait_of(
    settings: GroupSettings, picture: NDArray[np.uint8], face: Face, number: int, detector: LazyDetector
) -> Portrait:
    """One person as a portrait of their own, cut out of the picture as a single face is.

    number: of the face, from 1. Raises `UserError` for a face with too few pixels.
    """
    if face.size < settings.min_face:
        raise UserError(
            f"Face {number} (left to right) in {settings.reference} is {face.size:.0f} pixels, at least "
            f"{settings.min_face} are needed (--min-face): use a larger picture, or leave it still with --assign."
        )
    height, width = picture.shape[:2]
    crop = crop_around(face.box, width, height, scale=settings.crop_scale, shift=settings.crop_shift)
    square = crop.cut(picture, DRAW_SIZE)
    known = face_in(crop, face)
    near = box_in(crop, face.box)
    seen: list[Face] = []
    if settings.points is None:
        seen = [each for each in detector.open().detect_all(square) if is_same(each, known)]
    best = min(seen, key=lambda each: np.abs(np.subtract(each.box, near)).sum(), default=known)
    return Portrait(picture, square, crop, best.as_sequence())

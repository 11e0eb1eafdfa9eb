"""The portrait: a picture or a frame of a video, the face in it, and the square of it that the model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.crop import Crop, crop_around, pick_face
from fye_pipeline.animate.driver import LazyDetector, OnNote, no_face_sentence, read_reference
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.landmarks.faces import Box, Face
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.image import is_heic, picture_frames, read_cover, read_picture
from fye_pipeline.media.source import open_source
from fye_pipeline.media.writer import Matte
from fye_pipeline.sampling.inputs import letterbox
from fye_pipeline.storage.files import existing_file

SEARCHED = 60  # frames of a portrait that is a video, spread over its length
_TURN = 15.0  # degrees away from the camera that weigh as much as one blendshape at its full


@dataclass(frozen=True)
class Portrait:
    """picture: as it was read, uint8 [H, W, 3]. square: what the model sees of it, [512, 512, 3]. crop: where that lies
    in the picture, None where it is the whole, letterboxed. face: in the square, one frame; None with `unaligned`.
    cover: the picture's alpha channel, uint8 [H, W], with `alpha`.
    """

    picture: NDArray[np.uint8]
    square: NDArray[np.uint8]
    crop: Crop | None
    face: LandmarkSequence | None
    cover: NDArray[np.uint8] | None = None

    def matte(self, settings: AnimationSettings, size: int) -> Matte | None:
        """The matte of the result, whose squares have `size` pixels a side; None where none was asked for."""
        if self.cover is None:
            return None
        if self.crop is None:
            cover = np.asarray(letterbox(Image.fromarray(self.cover), size, size).getchannel(0), np.uint8)
        else:
            cover = self.cover if settings.resolved_framing == "paste" else self.crop.cut(self.cover, size)
        return Matte(cover, settings.background)


def read_portrait(settings: AnimationSettings, detector: LazyDetector, on_note: OnNote) -> Portrait:
    """Read the reference and find its face.

    Raises:
        UserError: unreadable, no face (with the best score found), a face that is too small, or no such face.
    """
    name = str(settings.reference)
    picture = read_still(settings, detector, on_note)
    cover = _read_cover(settings) if settings.alpha else None
    faces = detector.open().detect_all(picture) if settings.seeks_face else []
    chosen = None
    if faces:
        chosen, note = pick_face(faces, settings.face, name)
        if note:
            on_note(note)
        _check_size(chosen, settings.min_face, name)
    if settings.resolved_framing == "whole":
        return replace(_whole(settings, picture, chosen, detector), cover=cover)
    if chosen is None:
        raise UserError(no_face_sentence(name, detector.best_score(picture)))
    height, width = picture.shape[:2]
    crop = crop_around(chosen.box, width, height, scale=settings.crop_scale, shift=settings.crop_shift)
    square = crop.cut(picture, DRAW_SIZE)
    face = read_reference(square, detector, name=f"the crop of {name}", near=box_in(crop, chosen.box))
    return Portrait(picture, square, crop, face, cover)


def _read_cover(settings: AnimationSettings) -> NDArray[np.uint8]:
    cover = None
    if picture_frames(settings.reference):
        cover = read_cover(settings.reference, max_pixels=settings.max_pixels)
    if cover is None:
        raise UserError(f"{settings.reference} has no transparency to give back: leave out --alpha.")
    return cover


def _whole(
    settings: AnimationSettings, picture: NDArray[np.uint8], chosen: Face | None, detector: LazyDetector
) -> Portrait:
    height, width = picture.shape[:2]
    square = np.asarray(letterbox(Image.fromarray(picture), DRAW_SIZE, DRAW_SIZE))
    side = max(width, height)
    near = chosen and box_in(Crop((width - side) // 2, (height - side) // 2, side, width, height), chosen.box)
    face = None
    if not settings.unaligned:
        landmarks, name = settings.reference_landmarks, str(settings.reference)
        face = read_reference(square, detector, landmarks=landmarks, name=name, near=near, least=settings.min_face)
    return Portrait(picture, square, None, face)


def read_still(settings: AnimationSettings, detector: LazyDetector, on_note: OnNote) -> NDArray[np.uint8]:
    """The reference as one picture: itself, or the frame of a video that was asked for, else its calmest.

    Raises:
        UserError: unreadable, a frame that the video does not have, or a video without a face.
    """
    path = existing_file(settings.reference, "the reference")
    options = {"max_pixels": settings.max_pixels, "background": settings.background}
    if picture_frames(path) or not _is_video(path):
        if settings.reference_frame:
            raise UserError(f"{path} is a picture; --reference-frame {settings.reference_frame} needs a video.")
        return read_picture(path, what="the reference", on_note=on_note, **options)
    source = open_source(path, what="the reference", allow_partial=settings.allow_partial, on_note=on_note, **options)
    wanted = settings.reference_frame
    if wanted is None:
        step = max((source.frame_count or 0) // SEARCHED, 1)
        frames = ((index, frame) for index, frame in enumerate(source.frames()) if index % step == 0)
        best = calmest_frame(islice(frames, SEARCHED), detector.open().detect_all)
        if best is None:
            raise UserError(f"No face was found in any frame of {path}: choose another video or a picture.")
        index, frame = best
    else:
        index, frame = wanted, next(islice(source.frames(), wanted, None), None)
        if frame is None:
            raise UserError(f"{path} has no frame {wanted} for --reference-frame.")
    on_note(f"{path} is a video; its frame {index} ({float(index / source.fps):.2f} s) is the portrait.")
    return np.ascontiguousarray(frame)


def _is_video(path: Path) -> bool:
    """Whether a file that is no picture should be read as a video: judged by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(12)
    iso = head[4:8] == b"ftyp" and head[8:12] != b"avif" and not is_heic(head)
    return iso or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF", b"FLV\x01") or head[4:8] in (b"moov", b"wide", b"mdat")


def calmest_frame(
    frames: Iterable[tuple[int, NDArray[np.uint8]]], find_faces: Callable[[NDArray[np.uint8]], list[Face]]
) -> tuple[int, NDArray[np.uint8]] | None:
    """The numbered frame whose largest face has the least expression and looks straightest ahead, if any has a face."""
    best: tuple[int, NDArray[np.uint8]] | None = None
    least = np.inf
    for index, frame in frames:
        faces = find_faces(np.ascontiguousarray(frame))
        if faces and (unrest := _unrest(max(faces, key=lambda face: face.size))) < least:
            least, best = unrest, (index, frame)
    return best


def _unrest(face: Face) -> float:
    turn = np.degrees(Rotation.from_matrix(face.transform[:3, :3]).magnitude())
    return float(face.blendshapes[1:].sum() + turn / _TURN)


def box_in(crop: Crop, box: Box) -> Box:
    """A box in 0..1 of a crop's picture -> in 0..1 of its square."""
    left, top, right, bottom = box
    return (
        (left * crop.width - crop.left) / crop.side,
        (top * crop.height - crop.top) / crop.side,
        (right * crop.width - crop.left) / crop.side,
        (bottom * crop.height - crop.top) / crop.side,
    )


def _check_size(face: Face, least: int, name: str) -> None:
    if face.size < least:
        raise UserError(
            f"The face in {name} is {face.size:.0f} pixels, at least {least} are needed (--min-face): "
            "use a larger picture."
        )

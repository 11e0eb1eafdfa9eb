"""The portrait: which picture, which face in it, the square around it that the model sees, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from fye_pipeline.animate.config import AnimationSettings, parse_choice
from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.landmarks.faces import Box, Face, choose, make_face
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.file_type import is_video
from fye_pipeline.media.image import letterbox, picture_frames, read_cover, read_picture, resized
from fye_pipeline.media.source import open_source
from fye_pipeline.media.writer import Matte
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import existing_file

SEAM = 0.12  # width of the soft seam, as a share of the side
LARGEST = 2048  # pixels a side of a square that is animated at its full resolution
SEARCHED = 60  # frames of a portrait that is a video, spread over its length
_TURN = 15.0  # degrees away from the camera that weigh as much as one blendshape at its full


@dataclass(frozen=True)
class Crop:
    """A square of whole pixels in a portrait; it may reach beyond the picture, where the border's colour goes on.

    left, top, side: pixels of the portrait. width, height: the portrait's size.
    """

    left: int
    top: int
    side: int
    width: int
    height: int

    def cut(self, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """The square, resized. uint8 [H, W, 3] -> [size, size, 3], or one channel [H, W] -> [size, size]."""
        rows, columns = self.inside()
        before = rows.start - self.top, columns.start - self.left
        after = self.top + self.side - rows.stop, self.left + self.side - columns.stop
        edges = ((before[0], after[0]), (before[1], after[1]), (0, 0))[: picture.ndim]
        return resized(np.pad(picture[rows, columns], edges, mode="edge"), size)

    def seam(self) -> NDArray[np.float32]:
        """How much of the animated square is seen at each of its pixels: 1 inside, falling to 0 at its sides.

        A side that lies on or beyond the portrait's border has no neighbour to blend with and does not fall.
        -> [side, side].
        """
        across = self._fall(self.left > 0, self.left + self.side < self.width)
        down = self._fall(self.top > 0, self.top + self.side < self.height)
        return np.minimum(down[:, None], across[None, :])

    def _fall(self, first: bool, last: bool) -> NDArray[np.float32]:
        place = (np.arange(self.side) + 0.5) / self.side
        share = np.minimum(place if first else 1.0, 1 - place if last else 1.0) / SEAM
        rise = np.clip(np.broadcast_to(share, self.side), 0, 1)
        return (rise * rise * (3 - 2 * rise)).astype(np.float32)

    def paste(
        self, frame: NDArray[np.uint8], portrait: NDArray[np.uint8], share: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Lay an animated square [S, S, 3] back into the portrait [H, W, 3] -> a new picture of the portrait's size.

        share: how much of the square is seen at each of its pixels, [side, side]; None: as `seam` says. Where it is 0
        the portrait stays exactly as it is.
        """
        (rows, columns), inner = self.inside(), self.inner()
        alpha = (self.seam() if share is None else share)[inner][..., None]
        square = resized(frame, self.side)[inner].astype(np.float32)
        result = portrait.copy()
        under = portrait[rows, columns].astype(np.float32)
        result[rows, columns] = (under + alpha * (square - under) + 0.5).astype(np.uint8)
        return result

    def to_dict(self, size: int) -> dict[str, Any]:
        """The transform as plain values; `matrix` takes pixels of the result (`size` a side) to the portrait's."""
        scale = self.side / size
        return {
            "left": self.left,
            "top": self.top,
            "side": self.side,
            "portrait": [self.width, self.height],
            "size": size,
            "seam": SEAM,
            "matrix": [[scale, 0.0, float(self.left)], [0.0, scale, float(self.top)], [0.0, 0.0, 1.0]],
        }

    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the square that lie in the portrait."""
        rows, columns = self.inside()
        return (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )

    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the portrait that the square covers."""
        return (
            slice(max(self.top, 0), min(self.top + self.side, self.height)),
            slice(max(self.left, 0), min(self.left + self.side, self.width)),
        )


def crop_around(box: Box, width: int, height: int, *, scale: float, shift: tuple[float, float]) -> Crop:
    """The square around a face: its longer side times `scale`, moved by `shift` (shares of the square's side).

    box: left, top, right, bottom of the face in 0..1 of a picture of width x height pixels.
    """
    left, top, right, bottom = box
    side = max(round(max((right - left) * width, (bottom - top) * height) * scale), 2)
    centre = (left + right) / 2 * width + shift[0] * side, (top + bottom) / 2 * height + shift[1] * side
    return Crop(round(centre[0] - side / 2), round(centre[1] - side / 2), side, width, height)


def pick_face(faces: list[Face], choice: str, name: str) -> tuple[Face, str | None]:
    """The face that `choice` names, and a sentence that lists them where there were several and none was chosen.

    choice: `largest`, a number from 1 (left to right), or `x,y` in pixels of the picture: the face that holds the
    point, else the nearest to it. Raises `UserError` for another choice, or a number that is too high.
    """
    if choice == "largest":
        face = max(faces, key=lambda each: each.size)
        if len(faces) == 1:
            return face, None
        listed = "; ".join(f"{number}: {place_of(each)}" for number, each in enumerate(faces, 1))
        chosen = next(number for number, each in enumerate(faces, 1) if each is face)
        return face, f"{name} shows {len(faces)} faces, the largest ({chosen}) is used; choose with --face: {listed}."
    kind, values = parse_choice(choice)
    if kind == "number":
        number = int(values[0])
        if number > len(faces):
            raise UserError(f"{name} shows {len(faces)} face{'s' * (len(faces) > 1)}; there is no face {number}.")
        return faces[number - 1], None
    return min(faces, key=lambda each: _distance(each, values[0], values[1])), None


def place_of(face: Face) -> str:
    """How large a face is and where, in words."""
    left, top, right, bottom = face.box
    centre = (left + right) / 2 * face.width, (top + bottom) / 2 * face.height
    return f"{face.size:.0f} pixels at {centre[0]:.0f},{centre[1]:.0f}"


def _distance(face: Face, x: float, y: float) -> float:
    """Pixels from a point to a face's box; inside it, minus one over its size, so that the smallest box wins."""
    left, top, right, bottom = face.box
    dx = max(left * face.width - x, 0, x - right * face.width)
    dy = max(top * face.height - y, 0, y - bottom * face.height)
    return float(np.hypot(dx, dy)) or -1 / face.size


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

    def at_full_size(self, settings: AnimationSettings, size: int) -> NDArray[np.uint8]:
        """The square as large as the picture shows it, or as `settings.size` asks where it is the result itself.

        Never larger than 2048 pixels a side, and where it is not pasted back never smaller than the model's `size`.
        -> uint8 [S, S, 3].
        """
        paste = settings.resolved_framing == "paste"
        full = max(self.picture.shape[:2]) if self.crop is None else self.crop.side
        side = min(full, LARGEST) if paste else settings.size or min(max(full, size), LARGEST)
        if self.crop is not None:
            return self.crop.cut(self.picture, side)
        return np.asarray(letterbox(Image.fromarray(self.picture), side, side))

    def matte(self, settings: AnimationSettings, size: int) -> Matte | None:
        """The matte of the result, whose squares have `size` pixels a side; None where none was asked for."""
        if self.cover is None:
            return None
        if self.crop is None:
            cover = np.asarray(letterbox(Image.fromarray(self.cover), size, size).getchannel(0), np.uint8)
        else:
            cover = self.cover if settings.resolved_framing == "paste" else self.crop.cut(self.cover, size)
        return Matte(cover, settings.background)


def read_portrait(settings: AnimationSettings, detector: LazyDetector) -> Portrait:
    """Read the reference and find its face.

    Raises:
        UserError: unreadable, no face (with the best score found), a face that is too small, or no such face.
    """
    name = str(settings.reference)
    picture = read_still(settings, detector)
    cover = cover_of(settings) if settings.alpha else None
    height, width = picture.shape[:2]
    faces = detector.open().detect_all(picture) if settings.seeks_face else []
    chosen = known_face(settings, width, height)
    if faces:
        chosen, note = pick_face(faces, settings.face, name)
        if note:
            logger.info(note)
    if chosen is not None and settings.reference_landmarks is None:
        _check_size(chosen, settings.min_face, name)
    if settings.resolved_framing == "whole":
        return replace(_whole(settings, picture, chosen, detector), cover=cover)
    if chosen is None:
        if not settings.seeks_face:
            raise UserError(
                f"{settings.reference_landmarks} belongs to the letterboxed picture, not to the {width} x {height} "
                f"pixels of {name}: use --whole, or landmarks that fye landmarks made of that very file."
            )
        raise UserError(no_face_sentence(name, detector.best_score(picture)))
    crop = crop_around(chosen.box, width, height, scale=settings.crop_scale, shift=settings.crop_shift)
    square = crop.cut(picture, DRAW_SIZE)
    if settings.seeks_face:
        face = read_reference(square, detector, name=f"the crop of {name}", near=box_in(crop, chosen.box))
    else:
        face = face_in(crop, chosen).as_sequence()
    return Portrait(picture, square, crop, face, cover)


def known_face(settings: AnimationSettings, width: int, height: int) -> Face | None:
    """The face that points placed by hand, or a landmark file of this very picture, tell of; None where neither does.

    Raises:
        UserError: points or landmarks that cannot be used.
    """
    if settings.points is not None:
        from fye_pipeline.landmarks.points import fit_points, read_points

        return fit_points(read_points(settings.points), width, height)
    if settings.reference_landmarks is None:
        return None
    sequence = read_landmarks(settings.reference_landmarks)
    if (sequence.width, sequence.height) != (width, height):
        return None
    landmarks, mesh, transform, blendshapes = (
        np.asarray(array[0]) for array in (sequence.landmarks, sequence.mesh, sequence.transforms, sequence.blendshapes)
    )
    return Face(landmarks, mesh, transform, blendshapes, width, height)


def read_landmarks(path: Path) -> LandmarkSequence:
    """A portrait's landmarks, one frame. Raises `UserError` for any other file."""
    sequence = LandmarkSequence.load(existing_file(path, "the reference's landmarks"))
    if len(sequence) != 1:
        raise UserError(f"{path} has {len(sequence)} frames; the landmarks of a portrait are one frame.")
    return sequence


def face_in(crop: Crop, face: Face) -> Face:
    """A face of the whole portrait as it stands in a square of it, with the mesh and pose that it has there."""
    if (crop.left, crop.top, crop.side, crop.side) == (0, 0, face.width, face.height):
        return face
    x, y, z = np.asarray(face.landmarks, np.float64).T
    moved = np.column_stack(
        [(x * face.width - crop.left) / crop.side, (y * face.height - crop.top) / crop.side, z * face.width / crop.side]
    )
    return make_face(moved, face.blendshapes, DRAW_SIZE, DRAW_SIZE, CanonicalFace.load())


def cover_of(settings: AnimationSettings) -> NDArray[np.uint8]:
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
    crop = Crop((width - side) // 2, (height - side) // 2, side, width, height)
    face = None
    is_square = settings.points is None and width == height  # landmarks of such a picture hold as they are
    if chosen is not None and not settings.seeks_face and not is_square:
        face = face_in(crop, chosen).as_sequence()
    elif not settings.unaligned:
        landmarks, name = settings.reference_landmarks, str(settings.reference)
        near = box_in(crop, chosen.box) if chosen is not None and settings.seeks_face else None
        face = read_reference(square, detector, landmarks=landmarks, name=name, near=near, least=settings.min_face)
    return Portrait(picture, square, None, face)


def read_still(settings: AnimationSettings, detector: LazyDetector) -> NDArray[np.uint8]:
    """The reference as one picture: itself, or the frame of a video that was asked for, else its calmest.

    Raises:
        UserError: unreadable, a frame that the video does not have, or a video without a face.
    """
    path = existing_file(settings.reference, "the reference")
    options = {"max_pixels": settings.max_pixels, "background": settings.background}
    if picture_frames(path) or not is_video(path):
        if settings.reference_frame:
            raise UserError(f"{path} is a picture; --reference-frame {settings.reference_frame} needs a video.")
        return read_picture(path, what="the reference", **options)
    source = open_source(path, what="the reference", allow_partial=settings.allow_partial, **options)
    wanted = settings.reference_frame
    if wanted is None and settings.points is not None:
        raise UserError(f"{path} is a video: say with --reference-frame to which of its frames the points belong.")
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
    logger.info(f"{path} is a video; its frame {index} ({float(index / source.fps):.2f} s) is the portrait.")
    return np.ascontiguousarray(frame)


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


def read_reference(
    portrait: NDArray[np.uint8],
    detector: LazyDetector,
    *,
    landmarks: Path | None = None,
    name: str = "the reference",
    near: Box | None = None,
    least: int = 0,
) -> LandmarkSequence:
    """The portrait's face as a sequence of one frame: from its landmark file where there is one, else detected.

    Args:
        portrait: the square that the model sees, uint8 RGB [S, S, 3].
        detector: opened only without `landmarks`.
        landmarks: a `.npz` of one frame that belongs to this picture.
        name: how the picture is called in an error.
        near: where the face was seen, in 0..1 of the square; None takes the largest.
        least: pixels that the longer side of the face must have.

    Raises:
        UserError: no face, a face that is too small, or a landmark file of several frames.
    """
    if landmarks is not None:
        return read_landmarks(landmarks)
    face = choose(detector.open().detect_all(portrait), last_box=near)
    if face is None:
        raise UserError(no_face_sentence(name, detector.best_score(portrait)))
    if face.size < least:
        raise UserError(
            f"The face in {name} is {face.size:.0f} pixels after letterboxing, at least {least} are needed: "
            "leave out --whole, or crop the portrait closer to the face."
        )
    return face.as_sequence()


def no_face_sentence(name: str, score: str) -> str:
    """What a user is told whose portrait shows no face; `score` says how near the detector came."""
    return (
        f"No face was found in {name} ({score}): choose a portrait that shows the whole face from the front, place "
        "five points by hand (--points), or pass --unaligned to draw the driver's own landmarks."
    )

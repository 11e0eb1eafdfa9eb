"""A face followed through a video by a detector, and how that compares with a driver: every figure about faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks import expression
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import N_BLENDSHAPES, N_MESH, N_POINTS

FindFace = Callable[[NDArray[np.uint8]], Face | None]

FACE_FIGURES = ("exp", "exp_mean", "lms", "lmd", "landmark_accuracy", "gaze", "aed", "apd_rotation", "apd_translation")


def track_face(frames: Iterable[NDArray[np.uint8]], find: FindFace) -> LandmarkSequence:
    """Seek a face in every frame, uint8 RGB [H, W, 3]. Entries of frames without one are nan, and `found` is False.

    Raises ValueError where there is no frame.
    """
    faces: list[Face | None] = []
    height, width = 0, 0
    face: Face | None = None
    last: NDArray[np.uint8] | None = None
    for frame in frames:
        height, width = frame.shape[:2]
        if last is None or not np.array_equal(frame, last):  # a still is sought once
            face, last = find(frame), frame
        faces.append(face)
    if not faces:
        raise ValueError("frames must hold at least one frame, got none")
    return as_track(faces, width, height)


def as_track(faces: Sequence[Face | None], width: int, height: int) -> LandmarkSequence:
    """One face frame by frame, in pictures of a size. Entries of frames without one are nan, and `found` is False."""
    empty = {
        "landmarks": np.full((N_POINTS, 3), np.nan),
        "mesh": np.full((N_MESH, 3), np.nan),
        "transforms": np.full((4, 4), np.nan),
        "blendshapes": np.full(N_BLENDSHAPES, np.nan),
    }
    rows: dict[str, list[NDArray]] = {name: [] for name in empty}
    for face in faces:
        track = empty if face is None else {
            "landmarks": face.landmarks, "mesh": face.mesh, "transforms": face.transform,
            "blendshapes": face.blendshapes,
        }  # fmt: skip
        for name, values in rows.items():
            values.append(np.asarray(track[name], np.float64))
    found = np.array([face is not None for face in faces])
    landmarks, mesh, transforms, blendshapes = (np.stack(values) for values in rows.values())
    return LandmarkSequence(landmarks, mesh, transforms, blendshapes, found, width, height)


def aspect(sequence: LandmarkSequence) -> float:
    """Height over width of the pictures."""
    return sequence.height / sequence.width


def landmark_error(track: LandmarkSequence, expected: LandmarkSequence) -> float:
    """Mean 2-D distance in picture widths over the frames where both have a face; nan where there is none.

    Both belong to the same pictures. The landmark error of the contract, as `metrics.landmark_error`.
    """
    both = track.found & expected.found
    if not both.any():
        return float("nan")
    difference = (track.landmarks[both, :, :2] - expected.landmarks[both, :, :2]) * (1.0, aspect(track))
    return float(np.linalg.norm(difference, axis=-1).mean())


def compare_faces(track: LandmarkSequence, driver: LandmarkSequence) -> dict[str, float]:
    """How well an output follows its driver: `FACE_FIGURES`, over the frames where both show a face.

    exp: Exp (sum; `exp_mean` its mean). lms: LMS. lmd: LMD, x 1e-3. landmark_accuracy: `alignment_error`, in face
    widths. gaze: degrees. aed: AED. apd_rotation: radians; apd_translation: cm. nan where no frame is left. Blendshapes
    that the driver does not have (all zero, as another detector gives them) leave exp and aed nan. Raises ValueError
    for another count of frames.
    """
    if len(track) != len(driver):
        raise ValueError(f"output and driver need the same frames, got {len(track)} and {len(driver)}")
    both = track.found & driver.found
    if not both.any():
        return dict.fromkeys(FACE_FIGURES, float("nan"))
    one, two = (_only(sequence, both) for sequence in (track, driver))
    aspects = aspect(track), aspect(driver)
    scored = bool(two.blendshapes.any() and one.blendshapes.any())
    sums = expression.blendshape_difference(one.blendshapes, two.blendshapes) if scored else (math.nan, math.nan)
    rotation, shift = expression.pose_distance(one.transforms, two.transforms)
    return {
        "exp": sums[0],
        "exp_mean": sums[1],
        "lms": expression.ratio_difference(one.landmarks, two.landmarks, aspects),
        "lmd": expression.landmark_distance(one.landmarks, two.landmarks),
        "landmark_accuracy": expression.alignment_error(one.landmarks, two.landmarks, aspects),
        "gaze": expression.gaze_error(one.landmarks, two.landmarks, aspects),
        "aed": expression.expression_distance(one.blendshapes, two.blendshapes) if scored else math.nan,
        "apd_rotation": rotation,
        "apd_translation": shift,
    }


def _only(sequence: LandmarkSequence, frames: NDArray[np.bool_]) -> LandmarkSequence:
    names = ("landmarks", "mesh", "transforms", "blendshapes", "found")
    return replace(sequence, **{name: getattr(sequence, name)[frames] for name in names})

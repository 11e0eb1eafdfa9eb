"""Motion alignment: the driver's expression and movement on the reference's own face."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import project, transform
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import LEFT_EYE_POINTS, LEFT_IRIS, RIGHT_EYE_POINTS, RIGHT_IRIS

_SMALLEST_EYE = 1e-9  # in picture widths: an eye seen exactly edge-on has no width to scale by


def align(
    reference: LandmarkSequence,
    driving: LandmarkSequence,
    width: int | None = None,
    height: int | None = None,
    *,
    neutral_frame: int | None = None,
) -> NDArray[np.float64]:
    """Landmarks [F, 478, 3] of the reference's face making the driver's expressions, normalised to width x height.

    `reference` has one frame, `driving` F. The mesh is the reference's plus the driver's offsets from its own neutral
    frame; the head turns as the driver's does and moves from the reference's place as the driver's moves from its own
    in frame 0; irises keep their place within the eye. All F frames are returned: the released code drops the first.

    width, height: the picture that the landmarks are projected on (default: the reference's); its aspect ratio must be
    the reference's. neutral_frame: the driver's frame without expression (default: the one whose blendshapes sum to
    the least). Raises `UserError` for a reference of several frames or without a face, and for an empty driver.
    """
    if len(reference) != 1 or not reference.found[0]:
        what = "no face" if len(reference) == 1 else f"{len(reference)} frames"
        raise UserError(f"The reference must be one picture with a face, got {what}; without it use --unaligned.")
    if len(driving) == 0:
        raise UserError("The driving sequence has no frames.")
    if neutral_frame is None:
        neutral_frame = int(np.argmin(driving.blendshapes[:, 1:].sum(axis=1)))  # `_neutral` itself does not count
    elif not 0 <= neutral_frame < len(driving):
        raise UserError(f"The neutral frame must be 0 to {len(driving) - 1}, got {neutral_frame}.")

    mesh = driving.mesh.astype(np.float64) - driving.mesh[neutral_frame] + reference.mesh[0]
    pose = np.tile(np.eye(4), (len(driving), 1, 1))
    # scipy returns the nearest rotation, which drops the scale that a pose matrix may hold.
    pose[:, :3, :3] = Rotation.from_matrix(driving.transforms[:, :3, :3]).as_matrix()
    place = driving.transforms[:, :3, 3].astype(np.float64)
    pose[:, :3, 3] = place - place[0] + reference.transforms[0, :3, 3]
    projected = project(transform(mesh, pose), width or reference.width, height or reference.height)

    irises = [
        _move_iris(driving.landmarks[:, iris], driving.landmarks[:, eye], projected[:, eye])
        for iris, eye in ((list(RIGHT_IRIS), list(RIGHT_EYE_POINTS)), (list(LEFT_IRIS), list(LEFT_EYE_POINTS)))
    ]
    return np.concatenate([projected, *irises], axis=1)


def _move_iris(iris: NDArray, eye: NDArray, target_eye: NDArray) -> NDArray[np.float64]:
    """Carry iris points [F, 5, 3] from the box around one eye [F, 16, 3] into that of another: linear in x and in y.

    z is the mean of the target eye: an iris has no measured depth there.
    """
    box_start, target_start = eye[..., :2].min(1, keepdims=True), target_eye[..., :2].min(1, keepdims=True)
    box_size = eye[..., :2].max(1, keepdims=True) - box_start
    target_size = target_eye[..., :2].max(1, keepdims=True) - target_start
    share = (iris[..., :2].astype(np.float64) - box_start) / np.maximum(box_size, _SMALLEST_EYE)
    depth = np.broadcast_to(target_eye[..., 2:].mean(1, keepdims=True), (*iris.shape[:2], 1))
    return np.concatenate([target_start + share * target_size, depth], axis=-1)

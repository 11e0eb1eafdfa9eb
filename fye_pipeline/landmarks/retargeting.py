"""The portrait's landmarks as the driver moves them: how much of its motion reaches which part of the face."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.landmarks.geometry import CanonicalFace, align, metric_mesh
from fye_pipeline.landmarks.sequence import LandmarkSequence, join
from fye_pipeline.landmarks.topology import (
    INNER_LIP_BOTTOM_LEFT,
    INNER_LIP_BOTTOM_RIGHT,
    INNER_LIP_TOP_LEFT,
    INNER_LIP_TOP_RIGHT,
    LEFT_BROW,
    LEFT_EYE_POINTS,
    LEFT_IRIS,
    N_MESH,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE_POINTS,
    RIGHT_IRIS,
)

Region = Literal["eyes", "lips", "brows", "pose"]
Pose = Literal["absolute", "relative"]
REGIONS: tuple[Region, ...] = get_args(Region)
MOST_INTENSITY = 2.0

_SEEDS: dict[str, tuple[int, ...]] = {
    "eyes": (*RIGHT_EYE_POINTS, *LEFT_EYE_POINTS),
    "brows": tuple(point for chain in (*LEFT_BROW, *RIGHT_BROW) for point in chain),
    "lips": (
        *(*INNER_LIP_BOTTOM_LEFT, *INNER_LIP_BOTTOM_RIGHT, *INNER_LIP_TOP_LEFT, *INNER_LIP_TOP_RIGHT),
        *(point for chain in OUTER_LIPS for point in chain),
    ),
}
_SMALLEST_EYE = 1e-9  # in picture widths
_BLOCK = 4096  # frames that are looked at together


def seen_in(driving: LandmarkSequence, left: float, top: float, side: float) -> LandmarkSequence:
    """A sequence as a camera would have taken it that saw only a square of the picture. Pixels of the driver's frames.

    A pose is told from where a face stands and how large it is in its picture. A face at the rim of a wide frame and
    the same face filling a square are turned differently; a portrait is seen in a square, so its driver must be too.
    """
    scale = np.array([driving.width, driving.height, driving.width]) / side
    shift = np.array([left, top, 0.0]) / side
    landmarks = np.asarray(driving.landmarks, np.float64) * scale - shift
    canonical = CanonicalFace.load()
    meshes, transforms = zip(*(metric_mesh(frame, 1, 1, canonical) for frame in landmarks), strict=True)
    return replace(
        driving,
        landmarks=landmarks.astype(np.float32),
        mesh=np.stack(meshes).astype(np.float32),
        transforms=np.stack(transforms),
        width=max(round(side), 1),
        height=max(round(side), 1),
    )


def matching_square(driving: LandmarkSequence, face: LandmarkSequence) -> tuple[float, float, float]:
    """The square of the driver's frames in which its first face stands as the portrait's does in its own.

    -> left, top, side in pixels.
    """
    boxes = []
    for sequence in (driving, face):
        points = np.asarray(sequence[0].landmarks[0, :N_MESH, :2], np.float64) * (sequence.width, sequence.height)
        least, most = points.min(0), points.max(0)
        boxes.append(((least + most) / 2, float((most - least).max())))
    (centre, size), (own_centre, own_size) = boxes
    side = size / max(own_size, 1e-6) * face.width
    left, top = centre - own_centre / face.width * side
    return float(left), float(top), side


class RetargetedLandmarks:
    """What is drawn for the model: landmarks [F, 478, 3], normalised to the square, computed when they are asked for.

    Any frames give what the whole sequence gives: motion is counted from the driver's first frame and from its neutral
    one, which are kept.

    Args:
        driving: F frames.
        face: the portrait's own, one frame; None: the driver's landmarks as they are.
        regions, intensity, pose, neutral_frame: as for `retarget`.

    Raises:
        UserError: there is no such neutral frame.
    """

    def __init__(
        self,
        driving: LandmarkSequence,
        face: LandmarkSequence | None,
        *,
        regions: Collection[str] = REGIONS,
        intensity: float = 1.0,
        pose: Pose = "absolute",
        neutral_frame: int | None = None,
    ) -> None:
        if neutral_frame is not None and neutral_frame >= len(driving):
            raise UserError(f"neutral_frame must be below the driver's {len(driving)} frames, got {neutral_frame}.")
        self._driving, self._face = driving, face
        self._square = None if face is None or not len(driving) else matching_square(driving, face)
        self._regions, self._intensity = regions, intensity
        self._pose: Pose = pose
        self._base = 0 if neutral_frame is None else 1  # which of the two turns are counted from
        if face is not None:
            neutral = neutral_of(driving, face) if neutral_frame is None else neutral_frame
            self._anchors = join(driving[0], driving[neutral])

    def __len__(self) -> int:
        return len(self._driving)

    def __getitem__(self, frames: slice) -> NDArray[np.floating]:
        """Landmarks of some frames. -> [n, 478, 3]."""
        part = self._driving[frames]
        if self._face is None or not len(part):
            return part.landmarks
        assert self._square is not None
        moved = retarget(
            self._face,
            seen_in(join(self._anchors, part), *self._square),
            regions=self._regions,
            intensity=self._intensity,
            pose=self._pose,
            neutral_frame=1,
            base_frame=self._base,
        )
        return align(self._face, moved, DRAW_SIZE, DRAW_SIZE, neutral_frame=1)[len(self._anchors) :]


def check_regions(names: Collection[str]) -> tuple[Region, ...]:
    """The regions in their usual order. Raises `UserError` for an unknown one, or for none."""
    unknown = sorted(set(names) - set(REGIONS))
    if unknown or not names:
        what = ", ".join(map(repr, unknown)) or "none"
        raise UserError(f"regions must be some of {', '.join(REGIONS)}, got {what}.")
    return tuple(name for name in REGIONS if name in names)


def retarget(
    reference: LandmarkSequence,
    driving: LandmarkSequence,
    *,
    regions: Collection[str] = REGIONS,
    intensity: float = 1.0,
    pose: Pose = "absolute",
    neutral_frame: int | None = None,
    base_frame: int | None = None,
) -> LandmarkSequence:
    """The driver with only some of its motion, for `alignment.align`; with the defaults it comes back as it is.

    Motion of `regions` is scaled by `intensity`, that of the others held still: expressions (mesh and irises) about the
    driver's neutral frame, turns of the head about the portrait's own, its way about its place in frame 0.

    Args:
        reference: the portrait's face, one frame.
        driving: F frames.
        regions: some of eyes, lips, brows, pose; points of the mesh between them go with the nearest.
        intensity: 0 (still) to 2 (twice the motion).
        pose: `absolute`: the head turns as the driver's is turned; `relative`: it turns from the portrait's own pose as
            the driver's does from its pose in `base_frame`.
        neutral_frame: the driver's frame without expression (default: the one whose blendshapes sum to the least).
        base_frame: default: the neutral frame where one is named, else 0.

    Raises:
        UserError: unknown regions, or an intensity out of range.
    """
    chosen = check_regions(regions)
    if not 0 <= intensity <= MOST_INTENSITY:
        raise UserError(f"intensity must be from 0 to {MOST_INTENSITY:g}, got {intensity:g}.")
    if chosen == REGIONS and intensity == 1 and pose == "absolute":
        return driving
    neutral = neutral_of(driving) if neutral_frame is None else neutral_frame
    base = (neutral_frame or 0) if base_frame is None else base_frame
    weight = {name: intensity if name in chosen else 0.0 for name in REGIONS}
    groups = point_groups(driving.mesh[neutral])
    point_weight = np.array([weight[group] for group in groups])[:, None]  # [468, 1]
    rest = driving.mesh[neutral]
    return replace(
        driving,
        mesh=rest + point_weight * (driving.mesh - rest),
        landmarks=_scale_gaze(driving.landmarks, neutral, weight["eyes"]),
        transforms=_scale_pose(reference, driving, base, weight["pose"], pose),
    )


def neutral_of(driving: LandmarkSequence, face: LandmarkSequence | None = None) -> int:
    """The driver's frame that looks most like the portrait, from which its expressions are counted.

    A portrait that smiles, driven by a smile, then smiles once and not twice. Without a portrait, or where its
    blendshapes are not known (all zero), it is the frame with the least expression, as `align` chooses it.
    """
    own = 0.0 if face is None else np.asarray(face.blendshapes[0])[1:]
    differences = [
        np.abs(np.asarray(driving.blendshapes[start : start + _BLOCK])[:, 1:] - own).sum(axis=1)
        for start in range(0, len(driving), _BLOCK)
    ]
    return int(np.argmin(np.concatenate(differences)))


def point_groups(mesh: NDArray) -> list[str]:
    """The region of each of the 468 points of a mesh in cm: that of the nearest point of eyes, brows or lips."""
    names = [name for name, seeds in _SEEDS.items() for _ in seeds]
    seeds = mesh[[point for seeds in _SEEDS.values() for point in seeds]]
    distance = np.linalg.norm(mesh[:, None] - seeds[None], axis=-1)  # [468, seeds]
    return [names[index] for index in distance.argmin(axis=1)]


def _scale_gaze(landmarks: NDArray, neutral: int, weight: float) -> NDArray:
    """Move the irises of [F, 478, 3] within their eyes: their place in the eye's box is scaled about the neutral's."""
    scaled = landmarks.copy()
    for iris, eye in ((RIGHT_IRIS, RIGHT_EYE_POINTS), (LEFT_IRIS, LEFT_EYE_POINTS)):
        box = landmarks[:, list(eye), :2]
        start = box.min(axis=1, keepdims=True)
        size = np.maximum(box.max(axis=1, keepdims=True) - start, _SMALLEST_EYE)
        share = (landmarks[:, list(iris), :2] - start) / size
        scaled[:, list(iris), :2] = start + (share[neutral] + weight * (share - share[neutral])) * size
    return scaled


def _scale_pose(
    reference: LandmarkSequence, driving: LandmarkSequence, base: int, weight: float, pose: Pose
) -> NDArray[np.float64]:
    """Transforms [F, 4, 4] whose turn from the portrait's own, and whose way from frame 0, is scaled."""
    own = Rotation.from_matrix(reference.transforms[0, :3, :3])
    turns = Rotation.from_matrix(driving.transforms[:, :3, :3])
    if pose == "relative":
        turns = turns * turns[base].inv() * own
    away = turns * own.inv()
    scaled = driving.transforms.astype(np.float64)
    scaled[:, :3, :3] = (Rotation.from_rotvec(weight * away.as_rotvec()) * own).as_matrix()
    place = driving.transforms[:, :3, 3].astype(np.float64)
    scaled[:, :3, 3] = place[0] + weight * (place - place[0])
    return scaled

"""The portrait's landmarks as the driver moves them, worked out a few frames at a time."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.alignment import align
from fye_pipeline.landmarks.control import REGIONS, Pose, neutral_of, steer
from fye_pipeline.landmarks.drawing import DRAW_SIZE
from fye_pipeline.landmarks.sequence import LandmarkSequence, join


class Motion:
    """What is drawn for the model: landmarks [F, 478, 3], normalised to the square, computed when they are asked for.

    Any frames give what the whole sequence gives: motion is counted from the driver's first frame and from its neutral
    one, which are kept.

    Args:
        driving: F frames.
        face: the portrait's own, one frame; None: the driver's landmarks as they are.
        regions, intensity, pose, neutral_frame: as for `control.steer`.

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
        self._regions, self._intensity = regions, intensity
        self._pose: Pose = pose
        self._base = 0 if neutral_frame is None else 1  # which of the two turns are counted from
        if face is not None:
            neutral = neutral_of(driving) if neutral_frame is None else neutral_frame
            self._anchors = join(driving[0], driving[neutral])

    def __len__(self) -> int:
        return len(self._driving)

    def __getitem__(self, frames: slice) -> NDArray[np.floating]:
        """Landmarks of some frames. -> [n, 478, 3]."""
        part = self._driving[frames]
        if self._face is None or not len(part):
            return part.landmarks
        moved = steer(
            self._face,
            join(self._anchors, part),
            regions=self._regions,
            intensity=self._intensity,
            pose=self._pose,
            neutral_frame=1,
            base_frame=self._base,
        )
        return align(self._face, moved, DRAW_SIZE, DRAW_SIZE, neutral_frame=1)[len(self._anchors) :]

    def frame(self, number: int) -> NDArray[np.floating]:
        """Landmarks of one frame. -> [478, 3]."""
        return self[number : number + 1][0]

"""Detectors that are not MediaPipe's: any function from a picture to landmarks, named as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Face, LandmarkModel, Picture, check_picture, choose, faces_by
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.spool import Spool
from fye_pipeline.landmarks.tracking import DEFAULT_MAX_GAP, NoFace, track


class ModelDetector:
    """A plain landmark model in the place of `FaceLandmarkDetector`, with the same methods.

    Raises `UserError` where the model gives landmarks of another shape or such as are not finite.
    """

    def __init__(self, model: LandmarkModel, name: str = "the detector") -> None:
        self.canonical = CanonicalFace.load()
        self._find, self._name = faces_by(model, self.canonical), name

    def __enter__(self) -> ModelDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def detect_all(self, image: Picture) -> list[Face]:
        """Every face in a uint8 RGB [H, W, 3] picture, left to right."""
        try:
            faces = self._find(check_picture(image))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self._name} gave no landmarks that can be used: {error}.") from error
        return sorted(faces, key=lambda face: face.box[0] + face.box[2])

    def detect(self, image: Picture, *, face_index: int | None = None) -> Face | None:
        """The largest face in a picture, or the `face_index`-th from the left; None where there is no such face."""
        return choose(self.detect_all(image), face_index=face_index)

    def detect_video(
        self,
        frames: Iterable[NDArray[np.uint8]],
        fps: Fraction | float,
        on_progress: Callable[[int], None] | None = None,
        no_face: NoFace = "interpolate",
        max_gap: float = DEFAULT_MAX_GAP,
        face_index: int | None = None,
        spool: Spool | None = None,
    ) -> LandmarkSequence:
        """One face through a video; the arguments and errors are those of `tracking.track`."""
        return track(
            self.detect_all,
            frames,
            fps,
            on_progress=on_progress,
            no_face=no_face,
            max_gap=max_gap,
            face_index=face_index,
            spool=spool,
        )


def load_detector(name: str) -> ModelDetector:
    """The detector `package.module:function`; the function is a `LandmarkModel`. Raises `UserError` in one sentence."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"--detector must be mediapipe, points or package.module:function, got {name!r}.")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may fail at its import in any way
        raise UserError(f"--detector {name} cannot be loaded ({type(error).__name__}: {error}).") from error
    if not callable(found):
        raise UserError(f"--detector {name} is no function of a picture.")
    model: Any = found
    return ModelDetector(model, name)

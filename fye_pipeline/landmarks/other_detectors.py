"""Detectors that are not MediaPipe's: any function from a picture to landmarks, named as `package.module:function`."""

from __future__ import annotations

from types import TracebackType

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Face, LandmarkModel, Picture, check_picture, faces_by
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.tracking import FaceDetector
from fye_pipeline.storage.functions import load_function


class ModelDetector(FaceDetector):
    """A plain landmark model in the place of `FaceLandmarkDetector`, with the same methods.

    Raises `UserError` where the model gives landmarks of another shape or such as are not finite.
    """

    def __init__(self, model: LandmarkModel, name: str = "the detector") -> None:
        self.canonical = CanonicalFace.load()
        self._find, self._name = faces_by(model, self.canonical), name

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


def load_detector(name: str) -> ModelDetector:
    """The detector `package.module:function`; the function is a `LandmarkModel`. Raises `UserError` in one sentence."""
    return ModelDetector(load_function(name, "--detector", instead="mediapipe, points or "), name)

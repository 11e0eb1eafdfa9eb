"""MediaPipe's face landmarker on pictures and videos. MediaPipe is imported when a detector is opened, not before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from itertools import count
from types import TracebackType
from typing import Any, Literal

import numpy as np

from fye_pipeline.landmarks.faces import Face, FindFaces, Picture, check_picture, make_face
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.model_file import find_face_landmarker
from fye_pipeline.landmarks.tracking import FaceDetector

Mode = Literal["image", "video"]
DEFAULT_MAX_FACES = 8


class FaceLandmarkDetector(FaceDetector):
    """MediaPipe's face landmarker; a context manager, because it must be closed before the interpreter ends.

    task_path: MediaPipe's task file (default: where `find_face_landmarker` finds it). mode: how videos are read:
    `image` detects every frame anew (as the released templates were made); `video` follows the face from frame to
    frame, which is faster and smoother. max_faces: how many faces are looked for. min_confidence: of the detector, 0
    to 1. Raises `UserError` where the task file is absent or another file.
    """

    def __init__(
        self,
        task_path: str | os.PathLike[str] | None = None,
        *,
        mode: Mode = "image",
        max_faces: int = DEFAULT_MAX_FACES,
        min_confidence: float = 0.5,
    ) -> None:
        if mode not in ("image", "video"):
            raise ValueError(f"mode must be image or video, got {mode!r}")
        path = find_face_landmarker(task_path)
        self.canonical = CanonicalFace.load()
        self._model = path.read_bytes()  # bytes, because MediaPipe cannot open every path on every system
        self._mode, self._max_faces, self._min_confidence = mode, max_faces, min_confidence
        self._stack = ExitStack()
        self._find: FindFaces | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._find = None
        self._stack.close()

    def detect_all(self, image: Picture) -> list[Face]:
        """Every face in a uint8 RGB [H, W, 3] picture, left to right."""
        if self._find is None:
            self._find = self._stack.enter_context(self._landmarker("image", self._max_faces))
        return self._find(check_picture(image))

    @contextmanager
    def following(
        self, first: list[Picture], fps: Fraction | float, face_index: int | None
    ) -> Iterator[tuple[FindFaces, bool]]:
        """In mode `video` every frame depends on those before it: nothing that a spool holds already is used."""
        if self._mode == "image" or not first:
            yield self.detect_all, self._mode == "image"
            return
        # MediaPipe smooths only where it follows a single face.
        several = face_index is not None or len(self.detect_all(first[0])) > 1
        with self._landmarker("video", self._max_faces if several else 1, fps) as find:
            yield find, False

    @contextmanager
    def _landmarker(self, mode: Mode, max_faces: int, fps: Fraction | float = 1) -> Iterator[FindFaces]:
        """An open MediaPipe task as a function of one picture; in video mode of one frame after the other."""
        import mediapipe
        from mediapipe.tasks.python.core.base_options import BaseOptions
        from mediapipe.tasks.python.vision import FaceLandmarker, FaceLandmarkerOptions, RunningMode

        options = FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=self._model),
            running_mode=RunningMode.VIDEO if mode == "video" else RunningMode.IMAGE,
            num_faces=max_faces,
            min_face_detection_confidence=self._min_confidence,
            output_face_blendshapes=True,
        )
        with ExitStack() as stack:
            with _quiet():
                landmarker = stack.enter_context(FaceLandmarker.create_from_options(options))
            numbers = count()

            def find(picture: Picture) -> list[Face]:
                image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
                number = next(numbers)
                with nullcontext() if number else _quiet():
                    if mode == "image":
                        return self._faces(landmarker.detect(image), picture)
                    # Whole milliseconds that rise strictly, also above 1000 frames a second.
                    stamp = max(int(number * 1000 / fps), number)
                    return self._faces(landmarker.detect_for_video(image, stamp), picture)

            yield find

    def _faces(self, result: Any, picture: Picture) -> list[Face]:
        faces, (height, width) = [], picture.shape[:2]
        for points, scores in zip(result.face_landmarks, result.face_blendshapes, strict=True):
            landmarks = np.array([(point.x, point.y, point.z) for point in points], np.float32)
            blendshapes = np.array([category.score for category in scores], np.float32)
            faces.append(make_face(landmarks, blendshapes, width, height, self.canonical))
        return sorted(faces, key=lambda face: face.box[0] + face.box[2])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MediaPipe's C++ logs at its start off standard error; it obeys no setting. Its errors are raised."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

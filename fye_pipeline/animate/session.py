"""What many animations share: the face detector and the model, each opened once."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import LazyDetector, OnNote
from fye_pipeline.animate.machine import Offload, check_offload, choose_device, choose_dtype, load_model
from fye_pipeline.pipeline import FollowYourEmojiPipeline


class Studio:
    """What many animations share: the face detector, opened when a face is first sought, and the last loaded model.

    Args:
        face_landmarker: MediaPipe's task file; None looks in the usual places and fetches it.
        device: auto, cpu, cuda, cuda:N or mps.
        offload: `model` or `sequential`: what is not needed stays out of the GPU (`machine.load_model`).
        on_note: told one sentence where something is worth knowing.
    """

    def __init__(
        self,
        face_landmarker: Path | None = None,
        *,
        device: str = "auto",
        offload: Offload = "none",
        on_note: OnNote = lambda text: None,
    ) -> None:
        self.on_note = on_note
        self.device = choose_device(device)
        self.offload: Offload = offload
        check_offload(offload, self.device)
        self.detector = LazyDetector(face_landmarker, self.note)
        self._notes: list[str] = []
        self._loaded: tuple[tuple[Any, ...], FollowYourEmojiPipeline] | None = None

    def __enter__(self) -> Studio:
        self.detector.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        self.detector.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Tell the user, and keep it for the report of the animation at hand."""
        self._notes.append(text)
        self.on_note(text)

    def take_notes(self) -> list[str]:
        """The notes since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def model(self, settings: AnimationSettings) -> FollowYourEmojiPipeline:
        """The model of these settings, loaded once while they stay the same. Raises `UserError` as `load_model`."""
        dtype = choose_dtype(settings.dtype, self.device)
        key = (settings.model, dtype, settings.vae_tiling)
        if self._loaded is None or self._loaded[0] != key or self._loaded[1].unet.dtype != dtype:
            self._loaded = None  # two models need not be held at once
            options: dict[str, Any] = {"offload": self.offload, "vae_tiling": settings.vae_tiling}
            self._loaded = (key, load_model(settings.model, self.device, dtype, **options))
        return self._loaded[1]


def native_size(pipe: FollowYourEmojiPipeline) -> int:
    """The side, in pixels, of the square pictures that a model was trained on."""
    return int(pipe.unet.config["sample_size"]) * pipe.vae_scale_factor

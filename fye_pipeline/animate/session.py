"""What many animations share, each opened once: the face detector and the model, on the device that was asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline import presets
from fye_pipeline.animate.config import AnimationSettings, DType, pipeline_class
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector, Mode
from fye_pipeline.landmarks.model_file import (
    FILE_NAME,
    VARIABLE,
    cache_folder,
    fetch_face_landmarker,
    find_face_landmarker,
)
from fye_pipeline.landmarks.other_detectors import load_detector
from fye_pipeline.landmarks.tracking import FaceDetector
from fye_pipeline.models.files import WEIGHTS
from fye_pipeline.models.layouts import is_published_folder
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import logger
from fye_pipeline.storage.files import digest_of_folder, is_pointer

Offload = Literal["none", "model", "sequential"]
PAPER_GUIDANCE = 3.5
MEDIAPIPE = "mediapipe"
_SCORES = (0.4, 0.3, 0.2, 0.1, 0.05)


class AnimationSession:
    """What many animations share: the face detector, opened when a face is first sought, and the last loaded model.

    Args:
        face_landmarker: MediaPipe's task file; None looks in the usual places and fetches it.
        device: auto, cpu, cuda, cuda:N or mps.
        offload: `model` or `sequential`: what is not needed stays out of the GPU (`load_model`).
        detector: `mediapipe`, or another as `package.module:function`.
    """

    def __init__(
        self,
        face_landmarker: Path | None = None,
        *,
        device: str = "auto",
        offload: Offload = "none",
        detector: str = MEDIAPIPE,
    ) -> None:
        self.device = choose_device(device)
        self.offload: Offload = offload
        check_offload(offload, self.device)
        self.detector = LazyDetector(face_landmarker, name=detector)
        self._loaded: tuple[tuple[Any, ...], Any] | None = None

    def __enter__(self) -> Self:
        self.detector.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        self.detector.__exit__(kind, error, trace)

    def model(self, settings: AnimationSettings) -> FollowYourEmojiPipeline:
        """The model of these settings, loaded once while its files stay. Raises `UserError` as `load_model`."""
        dtype = choose_dtype(settings.dtype, self.device)
        key = (settings.model, digest_of_folder(settings.model, but=(presets.FILE,)), dtype, settings.vae_tiling)
        if self._loaded is not None and self._loaded[0] == key and self._loaded[1].unet.dtype != dtype:
            self._loaded = None
        options: dict[str, Any] = {"offload": self.offload, "vae_tiling": settings.vae_tiling}
        return self.held(key, lambda: load_model(settings.model, self.device, dtype, **options))

    def held(self, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
        """A model of any kind, loaded once while `key` stays the same; two need not be held at once."""
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = (key, load())
        return self._loaded[1]


def native_size(pipe: FollowYourEmojiPipeline) -> int:
    """The side, in pixels, of the square pictures that a model was trained on."""
    return int(pipe.unet.config["sample_size"]) * pipe.vae_scale_factor


class LazyDetector:
    """A face landmarker that is fetched and opened when the first face is sought, and closed with the `with` block.

    name: `mediapipe`, or another as `package.module:function`, which `task_path` and `mode` do not concern.
    Raises `UserError` where that cannot be loaded.
    """

    def __init__(self, task_path: Path | None = None, mode: Mode = "image", name: str = MEDIAPIPE) -> None:
        self.name = name
        self._other = None if name == MEDIAPIPE else load_detector(name)
        self._task_path = task_path
        self._mode: Mode = mode
        self._stack = ExitStack()
        self._detector: FaceDetector | None = None

    def __enter__(self) -> LazyDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detector = None
        self._stack.close()

    def open(self) -> FaceDetector:
        """The open detector. Raises `UserError` where MediaPipe's task file can neither be found nor fetched."""
        if self._other is not None:
            return self._other
        if self._detector is None:
            path = obtain_face_landmarker(self._task_path)
            self._detector = self._stack.enter_context(FaceLandmarkDetector(path, mode=self._mode))
        return self._detector

    def best_score(self, picture: NDArray[np.uint8]) -> str:
        """About how sure the detector is of the likeliest face in a picture where it accepts none, in words."""
        if self._other is not None:
            return f"by {self.name}"
        path = obtain_face_landmarker(self._task_path)
        for score in _SCORES:
            with FaceLandmarkDetector(path, min_confidence=score) as detector:
                if detector.detect_all(picture):
                    return f"the best score is about {score:g}; 0.5 is needed"
        return "nothing scores above 0.05; 0.5 is needed"


def check_detector(name: str, points: Path | None) -> str:
    """The detector of what is not pointed at. Raises `UserError` for `points` without any."""
    if name != "points":
        return name
    if points is None:
        raise UserError("--detector points needs --points FILE, the five points.")
    return MEDIAPIPE


def obtain_face_landmarker(task_path: Path | None = None) -> Path:
    """MediaPipe's task file where it was named or lies in the cache folder, else fetched into it.

    Raises:
        UserError: it was named and is not there, has other bytes, or can neither be found nor fetched.
    """
    if task_path or os.environ.get(VARIABLE) or (cache_folder() / FILE_NAME).is_file():
        return find_face_landmarker(task_path)
    logger.info(f"fetching MediaPipe's {FILE_NAME} into {cache_folder()}")
    return fetch_face_landmarker()


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        UserError: it is none of auto, cpu, cuda, cuda:N, mps, or this machine (or this build of torch) lacks it.
    """
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name in there or (name == "cuda" and torch.cuda.is_available()):
        return torch.device(name)
    raise UserError(f"--device {name} is not there; this machine has {', '.join(there)}.")


def choose_dtype(name: DType, device: torch.device, on_gpu: torch.dtype = torch.float16) -> torch.dtype:
    """The numbers of the networks; `auto` is float32, and `on_gpu` on a CUDA GPU."""
    if name == "auto":
        return on_gpu if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def load_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    offload: Offload = "none",
    vae_tiling: bool = False,
) -> FollowYourEmojiPipeline:
    """Load a pipeline folder, or a folder with the published weights, onto a device.

    offload: `model` keeps one network at a time on the GPU, `sequential` one layer; both by accelerate, through
    diffusers. vae_tiling: the VAE works on overlapping tiles of large pictures.

    Raises:
        UserError: absent, another kind of model, incomplete, with Git-LFS pointers in place of the weights; or
            offloading that this device cannot do.
    """
    check_offload(offload, device)
    if not folder.is_dir():
        raise UserError(f"The model folder {folder} does not exist; leave out --model for the model that ships.")
    _check_kind(folder)
    for file in folder.rglob("*"):
        if file.suffix in WEIGHTS and file.is_file() and is_pointer(file):
            raise UserError(f"{file} is a Git-LFS pointer file, not the weights: run `git lfs pull` in that folder.")
    if not (folder / "model_index.json").is_file() and is_published_folder(folder):
        pipe = FollowYourEmojiPipeline.from_official(folder, dtype=dtype)
    else:
        pipe = FollowYourEmojiPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if vae_tiling:
        tile_vae(pipe)
    if offload == "none":
        return pipe.to(device)
    move = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
    move(device=device)
    return pipe


def check_offload(offload: Offload, device: torch.device) -> None:
    """Raise `UserError` where the device has no memory of its own that could be spared."""
    if offload != "none" and device.type != "cuda":
        raise UserError(
            f"--offload {offload} moves the model between main memory and a CUDA GPU, and the device is "
            f"{device.type}: leave it out."
        )


def tile_vae(pipe: FollowYourEmojiPipeline, side: int | None = None) -> None:
    """Let the VAE encode and decode in overlapping tiles; pictures that fit into one are not cut.

    side: of a tile in pixels, a multiple of the pixels a latent stands for; None: what the VAE was trained on.
    """
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    if side is not None:
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = side, side // pipe.vae_scale_factor


def _check_kind(folder: Path) -> None:
    kind = pipeline_class(folder)  # where it is unknown, loading says what is wrong
    if kind not in (None, "FollowYourEmojiPipeline"):
        raise UserError(
            f"{folder} holds a {kind}, not a FollowYourEmojiPipeline: it has no landmark encoder and no appearance net."
        )


def recommended_guidance(folder: str | Path) -> float:
    """The guidance scale that a model was tuned for: `guidance` of its recipe.json, else the paper's 3.5.

    Raises UserError if the file is there and cannot be read.
    """
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        return PAPER_GUIDANCE
    try:
        return float(json.loads(path.read_text(encoding="utf-8")).get("guidance", PAPER_GUIDANCE))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}") from error

"""Self-reenactment on the rendered world: a held-out head, one portrait of it, and the landmarks of a clip of it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.evaluation import metrics
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.regions import expression_mask
from fye_pipeline.world import WORLD_VERSION, RenderedClip, World

METRICS = ("l1", "psnr", "ssim", "landmark_error", "landmark_error_exact", "jitter")


@dataclass
class Row:
    """Sums over clips for one way to make the videos."""

    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in METRICS})
    frames_without_face: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Means over clips; None where nothing could be measured."""
        means = {n: (float(np.nanmean(v)) if np.isfinite(v).any() else None) for n, v in self.values.items()}
        return means | {"frames_without_face": self.frames_without_face}


@dataclass(frozen=True)
class Case:
    """One clip: its truth in [0, 1], the drawn landmarks, what the detector sees in the truth, and its portrait."""

    clip: RenderedClip
    truth: NDArray[np.floating]
    pictures: NDArray[np.uint8]
    seen: list[NDArray[np.floating] | None]
    portrait: NDArray[np.uint8]


def evaluate_rendered(
    model: FollowYourEmojiPipeline,
    *,
    split: str = "held",
    clips: int = 16,
    seed: int = 0,
    frames: int = 16,
    steps: int = 30,
    guidance: float = 3.5,
    cache: dict[str, Any] | None = None,
    face_landmarker: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure a model beside its baselines; the keys are those of `fye evaluate rendered --json`.

    `ours`; `repeat_reference` shows the portrait in every frame; `wrong_reference` gives the model another head's
    portrait; `shuffled_landmarks` gives it the next clip's landmarks; `cached` (only with `cache`, options of
    `ticache.apply`) is `ours` with the cache. `landmark_error` compares with what the detector sees in the true frames,
    `landmark_error_exact` with the landmarks that the truth was rendered from. Raises ValueError if clips < 2.
    """
    if clips < 2:
        raise ValueError(f"clips must be >= 2, so that references and landmarks can be exchanged, got {clips}")
    report = on_progress or (lambda message: None)
    names = ["ours", "repeat_reference", "wrong_reference", "shuffled_landmarks", *(["cached"] if cache else [])]
    rows = {name: Row() for name in names}
    model.set_progress_bar_config(disable=True)
    with FaceLandmarkDetector(face_landmarker, max_faces=1) as detector:

        def detect(picture: NDArray[np.uint8]) -> NDArray[np.floating] | None:
            face = detector.detect(picture)
            return None if face is None else face.landmarks

        size = int(model.unet.config["sample_size"]) * model.vae_scale_factor
        world = World(detector.canonical, size=size)
        cases = [_case(world, split, seed * 1000 + k, frames, detect) for k in range(clips)]
        for k, case in enumerate(cases):
            other = cases[(k + 1) % clips]
            run = {"steps": steps, "guidance": guidance, "seed": seed * 1000 + k}
            videos = {
                "ours": generate(model, case.portrait, case.pictures, **run),
                "repeat_reference": np.broadcast_to(case.portrait / 255.0, case.truth.shape),
                "wrong_reference": generate(model, other.portrait, case.pictures, **run),
                "shuffled_landmarks": generate(model, case.portrait, other.pictures, **run),
            }
            if cache:
                region = expression_mask(case.clip.sequence.landmarks, size, size)
                with model.enable_cache(**cache):
                    videos["cached"] = generate(model, case.portrait, case.pictures, region=region, **run)
            for name, video in videos.items():
                _measure(rows[name], video, case, detect)
            report(f"clip {k + 1}/{clips}: " + ", ".join(f"{n} L1 {rows[n].values['l1'][-1]:.4f}" for n in names))
    conditions = {
        "seed": seed,
        "split": split,
        "clips": clips,
        "frames": frames,
        "steps": steps,
        "guidance": guidance,
        "cache": cache,
        "size": size,
        "model_hash": model_hash(model),
        "world_version": WORLD_VERSION,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": str(model.device),
    }
    return {name: row.to_dict() for name, row in rows.items()} | {"conditions": conditions}


def generate(
    model: FollowYourEmojiPipeline,
    portrait: NDArray[np.uint8],
    pictures: NDArray[np.uint8],
    *,
    steps: int,
    guidance: float,
    seed: int,
    region: NDArray[np.float32] | None = None,
) -> NDArray[np.floating]:
    """One video from a portrait and drawn landmarks. -> [F, H, W, 3] in [0, 1]."""
    result = model(
        portrait,
        pictures,
        num_inference_steps=steps,
        guidance_scale=guidance,
        region=region,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    assert not isinstance(result, tuple)
    return result.frames[0]


def model_hash(model: FollowYourEmojiPipeline) -> str:
    """A short name for the exact weights of every part."""
    import hashlib

    digest = hashlib.sha256()
    for name in ("vae", "image_encoder", "appearance_net", "unet", "landmark_encoder"):
        for key, value in sorted(getattr(model, name).state_dict().items()):
            digest.update(f"{name}.{key}".encode())
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _case(world: World, split: str, index: int, frames: int, detect: metrics.Detect) -> Case:
    clip = world.clip(split, index, take=1, frames=frames)
    truth = clip.frames / 255.0
    return Case(
        clip=clip,
        truth=truth,
        pictures=draw_sequence(clip.sequence.landmarks, world.size),
        seen=[detect(frame) for frame in clip.frames],
        portrait=world.portrait(split, index).frames[0],
    )


def _measure(row: Row, video: NDArray[np.floating], case: Case, detect: metrics.Detect) -> None:
    """Add one video's figures to a row."""
    error, missing = metrics.landmark_error(video, case.seen, detect)
    exact, _ = metrics.landmark_error(video, list(case.clip.sequence.landmarks), detect)
    figures = (
        metrics.l1(video, case.truth),
        metrics.psnr(video, case.truth),
        metrics.ssim(video, case.truth),
        error,
        exact,
        metrics.jitter(video),
    )
    for name, value in zip(METRICS, figures, strict=True):
        row.values[name].append(value)
    row.frames_without_face += missing

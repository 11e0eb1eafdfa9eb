"""Self- and cross-reenactment on the rendered world: held-out heads, one portrait of each, landmarks of clips."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.animate.detail import BentPortraits, with_detail
from fye_pipeline.animate.session import choose_device, load_model
from fye_pipeline.evaluation import metrics, summary
from fye_pipeline.evaluation.face_tracks import FindFace, compare_faces, landmark_error, track_face
from fye_pipeline.evaluation.run import Measure, Run, measure_all
from fye_pipeline.evaluation.world_identity import FITTED_PEOPLE, WorldIdentity, fit_identity, separation
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.drawing import draw_sequence, face_region, facial_mask
from fye_pipeline.landmarks.expression import landmark_jitter
from fye_pipeline.landmarks.geometry import align
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.progress import OnProgress, hush_libraries, logger, silent
from fye_pipeline.storage.files import weights_hash
from fye_pipeline.storage.run_log import Entry
from fye_pipeline.world import WORLD_VERSION, RenderedClip, World

Video = NDArray[np.floating]
LoadModel = Callable[[], FollowYourEmojiPipeline]


@dataclass(frozen=True)
class FolderModel:
    """Loads a model folder; unlike a loaded model it can go to other processes."""

    folder: Path
    device: str

    def __call__(self) -> FollowYourEmojiPipeline:
        hush_libraries()
        return load_model(self.folder, choose_device(self.device), torch.float32)


@dataclass(frozen=True)
class Plan:
    """What is measured: everything that decides the figures, beside the model.

    cache: options of `ticache.apply`, None to leave the cached rows out. cross: also the portrait of one head with the
    driving clip of another. identity_people: heads that the identity measure is fitted to. detail: as `fye animate
    --detail full`. world: the version of the rendered world.
    """

    split: str = "held"
    clips: int = 16
    seed: int = 0
    frames: int = 16
    steps: int = 30
    guidance: float = 3.5
    cache: dict[str, Any] | None = None
    cross: bool = True
    identity_people: int = FITTED_PEOPLE
    detail: bool = True
    world: int = WORLD_VERSION

    def __post_init__(self) -> None:
        if self.clips < 2:
            raise ValueError(f"clips must be >= 2, so that references and landmarks can be exchanged, got {self.clips}")


@dataclass(frozen=True)
class Case:
    """One clip: its truth in [0, 1], its portrait, and the face that the detector finds in both.

    portrait_face: the portrait's exact landmarks.
    """

    clip: RenderedClip
    truth: Video
    track: LandmarkSequence
    portrait: NDArray[np.uint8]
    portrait_face: LandmarkSequence
    portrait_track: LandmarkSequence


def make_case(world: World, plan: Plan, k: int, find: FindFace) -> Case:
    """Clip number `k` of a plan."""
    index = head_of(plan, k)
    clip = world.clip(plan.split, index, take=1, frames=plan.frames)
    portrait = world.portrait(plan.split, index)
    return Case(
        clip=clip,
        truth=clip.frames / 255.0,
        track=track_face(clip.frames, find),
        portrait=portrait.frames[0],
        portrait_face=portrait.sequence,
        portrait_track=track_face(portrait.frames, find),
    )


def head_of(plan: Plan, k: int) -> int:
    """Which head, and which noise."""
    return plan.seed * 1000 + k


def evaluate_rendered(
    load: LoadModel,
    plan: Plan,
    run: Run = Run(),  # noqa: B008
    *,
    face_landmarker: Path | None = None,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Measure a model beside its baselines; the keys are those of `fye evaluate rendered --json`.

    `ours`; `repeat_reference` shows the portrait in every frame; `wrong_reference` gives the model another head's
    portrait; `shuffled_landmarks` gives it the next clip's landmarks; `cached` (with `plan.cache`) is `ours` with the
    cache. `cross`: the portrait driven by the next head's clip: `ours`, `repeat_reference`, `repeat_driver` (the
    driver's own frames) and `cached`. What the columns mean: docs/evaluation.md.

    load: gives the model; with several jobs it goes to other processes, so it must pickle. Raises `UserError` as `Run`,
    RuntimeError as `run_parts`.
    """
    model = load()
    size = picture_size(model)
    conditions = asdict(plan) | {
        "size": size,
        "model_hash": model_hash(model),
        "world_version": plan.world,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": str(model.device),
    }
    if (before := run.made_before(conditions)) is not None:
        return before
    notes = run.journal(conditions)
    if notes.entries:
        logger.info(f"{len(notes.entries)} of {plan.clips} clips were measured before")
    with FaceLandmarkDetector(face_landmarker, max_faces=1) as detector:
        world = World(detector.canonical, size=size, version=plan.world)
        identity = fit_identity(
            world,
            detector.detect,
            people=plan.identity_people,
            on_progress=lambda done, total: on_progress("people", done, total),
        )
        people = [head_of(plan, k) for k in range(plan.clips)]
        conditions["identity"] = separation(identity, world, detector.detect, split=plan.split, people=people)
    evaluator = ClipEvaluator(load, plan, identity, face_landmarker, None if run.jobs > 1 else model)
    del model
    names = [str(k) for k in range(plan.clips)]
    clips = measure_all(evaluator.open, names, notes, jobs=run.jobs, stage="clips", on_progress=on_progress)
    result = summary.summarise(list(clips.values()))
    result |= {"thresholds": summary.check_thresholds(result), "conditions": conditions}
    run.write(result)
    notes.close()
    return result


@dataclass(frozen=True)
class ClipEvaluator:
    """Measures clips in one process; the model is loaded here unless it is given."""

    load: LoadModel
    plan: Plan
    identity: WorldIdentity
    face_landmarker: Path | None
    model: FollowYourEmojiPipeline | None = None

    @contextmanager
    def open(self) -> Iterator[Measure]:
        model = self.model or self.load()
        model.set_progress_bar_config(disable=True)
        with FaceLandmarkDetector(self.face_landmarker, max_faces=1) as detector:
            world = World(detector.canonical, size=picture_size(model), version=self.plan.world)

            def measure(name: str) -> Entry:
                k = int(name)
                own, other = (
                    make_case(world, self.plan, each % self.plan.clips, detector.detect) for each in (k, k + 1)
                )
                rows = self._self(model, own, other, k, detector.detect)
                if not self.plan.cross:
                    return {"rows": rows}
                return {"rows": rows, "cross": self._cross(model, own, other, k, detector.detect)}

            yield measure

    def _self(self, model: FollowYourEmojiPipeline, own: Case, other: Case, k: int, find: FindFace) -> dict[str, Entry]:
        """A head's own clip from its portrait, beside the baselines."""
        seed = head_of(self.plan, k)
        landmarks, others = own.clip.sequence.landmarks, other.clip.sequence.landmarks
        plain, cached, gain = self._plain_and_cached(model, own, landmarks, seed)
        videos = {
            **plain,
            "wrong_reference": self._generate(model, other, landmarks, seed)[0],
            "shuffled_landmarks": self._generate(model, own, others, seed)[0],
            **cached,
        }
        face = facial_mask(landmarks, *own.truth.shape[1:3])
        rows = {}
        for name, video in videos.items():
            track = track_face(metrics.to_uint8(video), find)
            rows[name] = {
                "l1": metrics.l1(video, own.truth),
                "psnr": metrics.psnr(video, own.truth),
                "psnr_face": metrics.psnr(video, own.truth, face),
                "ssim": metrics.ssim(video, own.truth),
                "landmark_error": landmark_error(track, own.track),
                "landmark_error_exact": landmark_error(track, own.clip.sequence),
                "jitter_truth": metrics.jitter(own.truth),
                **self._faces(video, track, own, own),
            }
        return rows | {name: rows[name] | gain for name in cached}

    def _cross(
        self, model: FollowYourEmojiPipeline, own: Case, driver: Case, k: int, find: FindFace
    ) -> dict[str, Entry]:
        """A portrait with another head's clip: its face must make the driver's expressions and stay itself."""
        seed, size = head_of(self.plan, k), own.truth.shape[1]
        asked = align(own.portrait_face, driver.clip.sequence, size, size)
        plain, cached, gain = self._plain_and_cached(model, own, asked, seed)
        videos = {**plain, "repeat_driver": driver.truth, **cached}
        wanted = replace(driver.clip.sequence, landmarks=asked)
        rows = {}
        for name, video in videos.items():
            track = track_face(metrics.to_uint8(video), find)
            rows[name] = {"landmark_error": landmark_error(track, wanted), **self._faces(video, track, own, driver)}
        return rows | {name: rows[name] | gain for name in cached}

    def _plain_and_cached(
        self, model: FollowYourEmojiPipeline, own: Case, landmarks: NDArray[np.floating], seed: int
    ) -> tuple[dict[str, Video], dict[str, Video], Entry]:
        """`ours` and `repeat_reference`; with a cache `cached`, and what it gains."""
        ours, seconds = self._generate(model, own, landmarks, seed)
        plain = {"ours": ours, "repeat_reference": np.broadcast_to(own.portrait / 255.0, own.truth.shape)}
        if not self.plan.cache:
            return plain, {}, {}
        cached, shorter = self._generate(model, own, landmarks, seed, cached=True)
        gain = {"psnr_uncached": metrics.psnr(cached, ours), "time_ratio": seconds / shorter}
        return plain, {"cached": cached}, gain

    def _faces(self, video: Video, track: LandmarkSequence, own: Case, driver: Case) -> Entry:
        """Identity against the portrait, expression against the driver, what flickers."""
        portrait = self.identity.embed([own.portrait], own.portrait_track)
        return {
            "identity": self.identity.distance(self.identity.embed(list(metrics.to_uint8(video)), track), portrait),
            **compare_faces(track, driver.track),
            "jitter": metrics.jitter(video),
            "landmark_jitter": landmark_jitter(track.landmarks, track.found),
            "frames_without_face": int((~track.found).sum()),
        }

    def _generate(
        self,
        model: FollowYourEmojiPipeline,
        portrait: Case,
        landmarks: NDArray[np.floating],
        seed: int,
        *,
        cached: bool = False,
    ) -> tuple[Video, float]:
        """A portrait's video with landmarks [F, 478, 3] and the seconds it took, as `fye animate` makes it."""
        run = {"steps": self.plan.steps, "guidance": self.plan.guidance, "seed": seed}
        face = portrait.portrait_face.landmarks[0]
        began = time.perf_counter()
        if not cached:
            video = generate(model, portrait.portrait, face, landmarks, detail=self.plan.detail, **run)
            return video, time.perf_counter() - began
        with model.enable_cache(**(self.plan.cache or {})):
            video = generate(model, portrait.portrait, face, landmarks, detail=self.plan.detail, region=True, **run)
        return video, time.perf_counter() - began


def generate(
    model: FollowYourEmojiPipeline,
    portrait: NDArray[np.uint8],
    face: NDArray[np.floating],
    landmarks: NDArray[np.floating],
    *,
    steps: int,
    guidance: float,
    seed: int,
    detail: bool = True,
    region: bool = False,
) -> Video:
    """One video from a portrait [S, S, 3] with its landmarks [478, 3] and those asked for [F, 478, 3].

    detail: lay the portrait's own detail over it, where the model takes the bent portrait. region: tell a cache where
    the face is. -> [F, S, S, 3] in [0, 1].
    """
    size = len(portrait)
    bent = BentPortraits(portrait, face, landmarks, size) if model.unet.config["bent_hint"] else None
    result = model(
        portrait,
        draw_sequence(landmarks, size),
        num_inference_steps=steps,
        guidance_scale=guidance,
        region=face_region(landmarks, size, size) if region else None,
        bent=None if bent is None else bent.stack(0, len(landmarks)),
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    assert not isinstance(result, tuple)
    made = result.frames[0]
    if bent is None or not detail:
        return made
    return np.stack([with_detail(model, frame, bent, number, portrait) for number, frame in enumerate(made)])


def model_hash(model: FollowYourEmojiPipeline) -> str:
    """A short name for the exact weights of every part."""
    parts = ("vae", "image_encoder", "appearance_net", "unet", "landmark_encoder")
    return weights_hash(
        (f"{part}.{name}", value) for part in parts for name, value in sorted(getattr(model, part).state_dict().items())
    )


def picture_size(model: FollowYourEmojiPipeline) -> int:
    """Pixels a side that the model was made for."""
    return int(model.unet.config["sample_size"]) * model.vae_scale_factor

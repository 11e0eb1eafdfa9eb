"""Measure pairs of portrait and driver: made by a model here, or finished videos of any method."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline import presets
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.driver import Driver, open_driver, open_driver_of
from fye_pipeline.animate.run import AnimationSession, animate
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation import metrics
from fye_pipeline.evaluation.face_tracks import FindFace, aspect, compare_faces, track_face
from fye_pipeline.evaluation.metric_networks import MetricNetworks, Weights
from fye_pipeline.evaluation.pairs import VIDEOS, Pair, finished_video
from fye_pipeline.evaluation.run import Measure, Run, measure_all, telling_errors
from fye_pipeline.evaluation.summary import pair_tables, summarise_pairs
from fye_pipeline.landmarks.drawing import facial_mask
from fye_pipeline.landmarks.expression import landmark_jitter
from fye_pipeline.landmarks.model_file import task_file
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.image import read_picture
from fye_pipeline.media.source import open_source
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import digest_of_folder, digest_of_text, remembered_digest
from fye_pipeline.storage.run_log import Entry

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class PairEvaluator:
    """Measures pairs of portrait and driver in one process.

    settings: how the model animates; reference, driving and frames are filled in. outputs: a folder with finished
    videos `<name>.mp4`, which are measured instead. folder: where videos, drivers' landmarks and features are kept.
    """

    pairs: tuple[Pair, ...]
    settings: AnimationSettings
    folder: Path
    weights: Weights
    outputs: Path | None = None
    face_landmarker: Path | None = None
    device: str = "auto"

    def needs(self) -> dict[str, str]:
        """What the metrics without a network need."""
        needs = self.weights.needs()
        return needs | ({"kid": needs["fid"]} if "fid" in needs else {})

    @contextmanager
    def open(self) -> Iterator[Measure]:
        pairs = {pair.name: pair for pair in self.pairs}
        networks = MetricNetworks.load(self.weights)
        with AnimationSession(self.face_landmarker, device=self.device) as session:
            yield telling_errors(lambda name: self._measure(pairs[name], session, networks))

    def _measure(self, pair: Pair, session: AnimationSession, networks: MetricNetworks) -> Entry:
        if pair.error is not None:
            raise UserError(pair.error)
        landmarks = self.landmarks_of(pair.driving)
        driver = self._driver(pair.driving, landmarks, session)
        video = self._output(pair, landmarks, session)
        frames = read_video(video, self.settings.frames)
        truth_path = pair.truth or (pair.driving if pair.portrait is None else None)
        truth = None if truth_path is None else read_video(truth_path, self.settings.frames)
        count = min(len(frames), len(driver.sequence), *([] if truth is None else [len(truth)]))
        portrait = read_video(pair.driving, 1)[0] if pair.portrait is None else read_picture(pair.portrait)
        find = session.detector.open().detect
        small = np.asarray(cv2.resize(portrait, frames.shape[2:0:-1], interpolation=cv2.INTER_AREA), np.uint8)
        scene = Scene(portrait, driver.sequence[:count], None if truth is None else truth[:count], find, networks)
        features = self.features_of(pair)
        return {
            "made_from": self.made_from(pair),
            "kind": "cross" if truth is None else "self",
            "group": pair.group,
            "frames": count,
            "output_frames": len(frames),
            "method": scene.measure(frames[:count], features),
            "still": scene.measure(np.repeat(small[None], count, axis=0)),
        }

    def landmarks_of(self, driving: Path) -> Path:
        """Where a driver's landmarks are kept: another file for other contents, or for settings that change them."""
        settings = self.settings
        read_with = (settings.frames, settings.fps, settings.max_pixels, settings.background, settings.allow_partial)
        detected_with = (remembered_digest(task_file(self.face_landmarker)), settings.no_face, settings.max_gap)
        key = _short((remembered_digest(driving), read_with, detected_with))
        return self.folder / f"{driving.stem}-{key}.landmarks.npz"

    def features_of(self, pair: Pair) -> Path:
        """Where a pair's features are kept: another file for whatever gives other figures."""
        return self.folder / f"{pair.name}-{self.made_from(pair)}.features.npz"

    def made_from(self, pair: Pair) -> str:
        """A short name for all that decides a pair's figures: contents of its files, and `made_with`."""
        files = (pair.portrait, pair.driving, pair.truth)
        finished = () if self.outputs is None else [self.outputs / f"{pair.name}{suffix}" for suffix in VIDEOS]
        contents = [None if file is None else remembered_digest(file) for file in (*files, *finished)]
        return _short((contents, self.made_with()))

    def still_valid(self, rows: Mapping[str, Entry]) -> dict[str, Entry]:
        """Those of an earlier run's rows whose files are as they were."""
        known = {pair.name: self.made_from(pair) for pair in self.pairs if pair.name in rows}
        return {name: row for name, row in rows.items() if row.get("made_from") == known.get(name, "")}

    def made_with(self) -> dict[str, Any]:
        """What decides the figures of all pairs, for JSON: files by their contents, a preset by its schedule."""
        settings, made = self.settings, self.outputs is None
        return {
            "frames": settings.frames,
            "settings": settings.to_dict() if made else None,
            "schedule": presets.own_schedule(settings.cache, settings.model) if made else None,
            "model_state": digest_of_folder(settings.model, but=(presets.FILE,))[:16] if made else None,
            "weights": self.weights.to_dict(),
            "weights_hash": {
                name: None if path is None else remembered_digest(Path(path))[:16]
                for name, path in self.weights.to_dict().items()
            },
            "face_landmarker": remembered_digest(task_file(self.face_landmarker))[:16],
            "device": self.device,
        }

    def _driver(self, path: Path, landmarks: Path, session: AnimationSession) -> Driver:
        """A driver's landmarks, detected once for all its rows."""
        settings = self.settings
        if landmarks.is_file():
            return open_driver(landmarks).read(session.detector)
        opened = open_driver_of(settings, path, settings.fps)
        driver = opened.read(session.detector, no_face=settings.no_face, max_gap=settings.max_gap)
        sequence = driver.sequence
        replace(sequence, fps=sequence.fps or Fraction(driver.fps)).save(landmarks)
        return driver

    def _output(self, pair: Pair, landmarks: Path, session: AnimationSession) -> Path:
        """The video to measure: a finished one, or one that is made now."""
        if self.outputs is not None:
            return finished_video(self.outputs, pair.name)
        own = {"reference": pair.driving, "reference_frame": 0} if pair.portrait is None else {}
        settings = self.settings.model_copy(update={"reference": pair.portrait, "driving": landmarks} | own)
        target = self.folder / f"{pair.name}.mp4"
        # The one place where the animator is called.
        animate(settings, target, overwrite=True, session=session)
        return target


@dataclass(frozen=True)
class Scene:
    """What a video of one pair is measured against."""

    portrait: Frames
    driver: LandmarkSequence
    truth: Frames | None
    find: FindFace
    networks: MetricNetworks

    def measure(self, frames: Frames, features: Path | None = None) -> dict[str, float | None]:
        """Every figure of one video; None where it cannot be had. FID's and FVD's features go to a file."""
        networks = self.networks
        track = track_face(frames, self.find)
        figures: dict[str, float | None] = dict(compare_faces(track, self.driver))
        figures["jitter"] = metrics.jitter(frames / 255.0)
        figures["landmark_jitter"] = landmark_jitter(track.landmarks, track.found, aspect(track))
        figures["frames_without_face"] = int((~track.found).sum())
        if networks.hyperiqa is not None:
            figures["hyperiqa"] = networks.hyperiqa(frames)
        if networks.arcface is not None:
            face = self.find(self.portrait)
            known = None if face is None else networks.arcface.embed(self.portrait, face.landmarks)
            figures["arcface"] = None if known is None else networks.arcface.similarity(frames, track, known)
        if self.truth is not None:
            figures |= self._against_truth(frames, self.truth)
            if networks.features is not None and features is not None:
                sets = {"": networks.features(frames), "_truth": networks.features(self.truth)}
                arrays = {f"{name}{end}": values for end, found in sets.items() for name, values in found.items()}
                np.savez(features, allow_pickle=False, **arrays)
        return {name: None if value is None or math.isnan(value) else value for name, value in figures.items()}

    def _against_truth(self, frames: Frames, truth: Frames) -> dict[str, float | None]:
        video, target = (each / 255.0 for each in same_size(frames, truth))
        height, width = target.shape[1:3]
        track = track_face(metrics.to_uint8(target), self.find)
        outline = facial_mask(np.nan_to_num(track.landmarks), height, width) * track.found[:, None, None]
        lpips = self.networks.lpips
        return {
            "l1": metrics.l1(video, target),
            "psnr": metrics.psnr(video, target),
            "psnr_face": metrics.psnr(video, target, outline) if outline.any() else None,
            "ssim": metrics.ssim(video, target),
            **({} if lpips is None else {"lpips": lpips(video, target)}),
        }


def read_video(path: Path, limit: int | None = None) -> Frames:
    """The frames of a video, an animated picture, a folder of pictures or a picture. -> [F, H, W, 3]."""
    return np.stack(list(open_source(path, what="the video to measure").frames(limit)))


def same_size(frames: Frames, truth: Frames) -> tuple[Frames, Frames]:
    """Both at the output's size; an output that was padded to an even side is cut instead."""
    height, width = truth.shape[1:3]
    if all(0 <= out - true <= 1 for out, true in zip(frames.shape[1:3], (height, width), strict=True)):
        return frames[:, :height, :width], truth
    size = frames.shape[2], frames.shape[1]
    return frames, np.stack([cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in truth])


def _short(values: object) -> str:
    """A short name for plain values."""
    return digest_of_text(repr(values))[:16]


def evaluate_pairs(
    evaluator: PairEvaluator, run: Run, *, method: str = "this model", on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Measure every pair. -> `self` and `cross` (means, where there are such pairs), `groups`, `rows`, `failed`.

    A pair that fails is named in `failed` with its reason, and the others are measured; with `run.resume` it is tried
    again. FID, KID and FVD are of the whole set. method: what the measured method is called in the tables.

    Raises:
        UserError: weights that cannot be read, or what `Journal` refuses.
    """
    MetricNetworks.load(evaluator.weights)  # a wrong file is told before any long work
    conditions = _conditions(evaluator, method)
    before = run.finished(conditions)
    kept = {} if before is None else evaluator.still_valid(before["rows"])
    if before is not None and not before["failed"] and len(kept) == len(evaluator.pairs):
        return run.as_it_was(before)
    journal = run.journal(conditions)
    for name, row in kept.items():
        journal.add(name, row)
    journal.entries = evaluator.still_valid(journal.entries)
    evaluator.folder.mkdir(parents=True, exist_ok=True)
    names = [pair.name for pair in evaluator.pairs]
    entries = measure_all(evaluator.open, names, journal, jobs=run.jobs, stage="rows", on_progress=on_progress)
    features = {pair.name: evaluator.features_of(pair) for pair in evaluator.pairs if "error" not in entries[pair.name]}
    result = summarise_pairs(entries, method, features, evaluator.needs()) | {"conditions": conditions}
    run.write(result, pair_tables(result))
    journal.close()
    return result


def _conditions(evaluator: PairEvaluator, method: str) -> dict[str, Any]:
    """What decides the figures of all pairs; what decides those of one is kept with it."""
    pairs = [[p.name, str(p.portrait), str(p.driving), str(p.truth), p.group, p.error] for p in evaluator.pairs]
    return {
        "method": method,
        "pairs": len(pairs),
        "pairs_hash": digest_of_text(json.dumps(pairs))[:16],
        "outputs": None if evaluator.outputs is None else str(evaluator.outputs),
        **evaluator.made_with(),
    }

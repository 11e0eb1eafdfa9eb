"""`fye evaluate exprbench`: how well each person in a picture follows their own driver, and nobody else's.

The figures of FantasyPortrait's tables (`multi_portrait.metrics`), for each person, from what MediaPipe sees in the
videos as they were written; expression coefficients and gaze are its blendshapes, also on rendered heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline import presets
from fye_pipeline.animate.config import AnimationSettings, pipeline_class
from fye_pipeline.animate.driver import open_driver
from fye_pipeline.animate.portrait import crop_around, face_in, pick_face
from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation import metrics
from fye_pipeline.evaluation.exprbench_entries import BenchEntry
from fye_pipeline.evaluation.face_tracks import as_track, aspect
from fye_pipeline.evaluation.pair_evaluator import read_video, same_size
from fye_pipeline.evaluation.pairs import finished_video
from fye_pipeline.evaluation.run import Measure, Run, measure_all, telling_errors
from fye_pipeline.evaluation.summary import leak_of, mean_of
from fye_pipeline.evaluation.tables import Column, Table
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.geometry import CanonicalFace, metric_mesh
from fye_pipeline.landmarks.model_file import task_file
from fye_pipeline.landmarks.people import match
from fye_pipeline.landmarks.retargeting import matching_square
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.windows import find_in_windows
from fye_pipeline.media.image import read_picture
from fye_pipeline.multi_portrait import metrics as figures
from fye_pipeline.multi_portrait.assignment import STILL, Assignment, assign, parse_assignment
from fye_pipeline.multi_portrait.drivers import read_people
from fye_pipeline.multi_portrait.ownership import face_masks
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.multi_portrait.wan_settings import WAN, WanSettings
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import digest_of_folder, digest_of_text, remembered_digest
from fye_pipeline.storage.run_log import Entry

Frames = NDArray[np.uint8]
COLUMNS = (
    Column("lmd", "LMD", ".4f", "down"),
    Column("mae", "gaze °", ".2f", "down"),
    Column("aed", "AED", ".4f", "down"),
    Column("apd", "APD rad", ".4f", "down"),
    Column("leak_pixels", "leak px", ".3f", "down"),
    Column("leak_landmarks", "leak lm", ".3f", "down"),
    Column("ssim", "SSIM", ".3f", "up"),
    Column("frames_without_face", "no face", "d", "down"),
)
LABELS = {
    "lmd": "landmarks: MediaPipe, against the truth's",
    "mae": "gaze: MediaPipe's blendshapes",
    "aed": "expression: MediaPipe's 52 blendshapes",
    "apd": "head: MediaPipe's pose",
    "leak": "frames before they are encoded (finished videos and Wan: as written), drivers exchanged one at a time",
}
ROWS = OURS, REPEATED = "ours", "repeat_reference"


@dataclass(frozen=True)
class BenchEvaluator:
    """Measures entries in one process.

    settings: how the model animates, as plain values without reference and drivers. outputs: a folder with finished
    videos `<name>.mp4`, which are measured instead. folder: where videos and drivers' landmarks are kept. leak: also
    exchange drivers, which takes two more videos of two people.
    """

    entries: tuple[BenchEntry, ...]
    settings: Mapping[str, Any]
    folder: Path
    outputs: Path | None = None
    leak: bool = True
    face_landmarker: Path | None = None
    device: str = "auto"

    @contextmanager
    def open(self) -> Iterator[Measure]:
        entries = {entry.name: entry for entry in self.entries}
        with AnimationSession(self.face_landmarker, device=self.device) as session:
            yield telling_errors(lambda name: self._measure(entries[name], session))

    def conditions(self) -> dict[str, Any]:
        """What decides the figures, for JSON: files by their contents."""
        model = Path(self.settings["model"])
        files = [
            [entry.name, entry.assign, entry.error, *(remembered_digest(path)[:16] for path in entry.files)]
            for entry in self.entries
        ]
        made = self.outputs is None
        return {
            "entries": len(files),
            "entries_hash": digest_of_text(json.dumps(files))[:16],
            "settings": json.loads(json.dumps(dict(self.settings), default=str)),
            "model_state": digest_of_folder(model, but=(presets.FILE,))[:16] if made else None,
            "outputs": None if self.outputs is None else digest_of_folder(self.outputs)[:16],
            "leak": self.leak,
            "face_landmarker": remembered_digest(task_file(self.face_landmarker))[:16],
            "device": self.device,
        }

    def _measure(self, entry: BenchEntry, session: AnimationSession) -> Entry:
        if entry.error is not None:
            raise UserError(entry.error)
        picture = read_picture(entry.portrait, what="the portrait")
        detector = session.detector.open()
        faces = find_in_windows(detector.detect_all, picture, detector.canonical)
        if not faces:
            raise UserError(f"No face was found in {entry.portrait}.")
        drivers = self._drivers(entry, session)
        assignment = _assignment(entry, faces, len(drivers))
        moved = {face: driver for face, driver in enumerate(assignment) if driver is not None}
        animator = _Animator(self, entry, drivers, session)
        made = animator.video(assignment, entry.name)
        frames = made.written
        truth = None if entry.truth is None else read_video(entry.truth, self.settings.get("frames"))
        videos = [frames] if truth is None else [frames, truth]
        count = min(*map(len, videos), *(len(drivers[driver]) for driver in moved.values()))
        bench = _Bench(session, picture, faces, moved, count)
        wanted = None if truth is None else bench.tracks(truth)
        still = np.repeat(picture[None], count, axis=0)
        rows: dict[str, list[Entry]] = {}
        for row, video in ((OURS, frames), (REPEATED, still)):
            found = bench.tracks(video)
            rows[row] = [
                {"face": face + 1, "driver": driver, **bench.against(found[face], drivers[driver], face, wanted)}
                for face, driver in moved.items()
            ]
            if truth is not None:
                one, two = same_size(video[:count], truth[:count])
                ssim = metrics.ssim(one / 255.0, two / 255.0)
                rows[row] = [each | {"ssim": ssim} for each in rows[row]]
        if self.leak and self.outputs is None and len(set(moved.values())) > 1:
            leaks = _leaks(animator, assignment, bench, made)
            rows[OURS] = [each | next(leaks) for each in rows[OURS]]
        return {"multi": entry.is_multi, "frames": count, "people": rows}

    def _drivers(self, entry: BenchEntry, session: AnimationSession) -> list[LandmarkSequence]:
        """What MediaPipe sees in every driver; of the faces of one file where there is `assign`."""
        opened = [open_driver(path, frames=self.settings.get("frames")) for path in entry.drivers]
        if len(opened) == 1 and entry.is_multi:
            return read_people(opened[0], session.detector, no_face="interpolate", max_gap=0.5)
        return [each.read(session.detector).sequence for each in opened]


@dataclass(frozen=True)
class _Made:
    """One video: its frames as read from the file, and before they were encoded, where that is known."""

    written: Frames
    frames: Frames


@dataclass(frozen=True)
class _Animator:
    """Makes the videos of one entry, or finds finished ones."""

    evaluator: BenchEvaluator
    entry: BenchEntry
    drivers: Sequence[LandmarkSequence]
    session: AnimationSession

    def video(self, assignment: Assignment, name: str) -> _Made:
        """A video with these drivers."""
        evaluator, settings = self.evaluator, self.evaluator.settings
        if evaluator.outputs is not None:
            finished = read_video(finished_video(evaluator.outputs, name), settings.get("frames"))
            return _Made(finished, finished)
        values = dict(settings) | {"reference": self.entry.portrait}
        if pipeline_class(values["model"]) == WAN:
            made = WanSettings(**values, **self._driven(list(self.entry.drivers), assignment))
        else:
            driven = self._driven(self._landmark_files(), assignment)
            made = (GroupSettings if self.entry.is_multi else AnimationSettings)(**values, **driven)
        target = evaluator.folder / f"{name}.mp4"
        kept: list[Frames] = []
        told = {"on_frame": kept.append} if type(made) is GroupSettings else {}
        made.runner().animate(made, target, overwrite=True, session=self.session, **told)
        written = read_video(target, settings.get("frames"))
        return _Made(written, np.stack(kept) if kept else written)

    def _landmark_files(self) -> list[Path]:
        """What was seen in the drivers, as files: they are looked at once for all videos."""
        files = [self.evaluator.folder / f"{self.entry.name}-{number}.npz" for number in range(len(self.drivers))]
        for file, driver in zip(files, self.drivers, strict=True):
            driver.save(file)
        return files

    def _driven(self, files: list[Path], assignment: Assignment) -> dict[str, Any]:
        """The settings that name drivers; of files that move nobody, none."""
        if not self.entry.is_multi:
            return {"driving": files[0]}
        if len(files) < len(self.drivers):  # the faces of one file
            return {"driving": files[0], "assign": _text(assignment)}
        used = sorted({driver for driver in assignment if driver is not None})
        numbers = tuple(None if driver is None else used.index(driver) for driver in assignment)
        return {"drivers": [files[driver] for driver in used], "assign": _text(numbers)}


def _text(assignment: Assignment) -> str:
    return ",".join(STILL if driver is None else str(driver) for driver in assignment)


def _leaks(
    animator: _Animator,
    assignment: Assignment,
    bench: _Bench,
    first: _Made,
) -> Iterator[dict[str, float | None]]:
    """For each moved person: how far the others' drivers move their face, over how far their own does.

    A codec alone changes a face a little where another moves: what is compared are frames that it has not touched.
    """
    frames = first.frames
    made: dict[Assignment, Frames] = {assignment: frames}
    tracks = bench.tracks(frames)
    order = sorted(set(bench.moved.values()))
    following = {driver: order[(place + 1) % len(order)] for place, driver in enumerate(order)}

    def changed(face: int, *, own: bool) -> Frames:
        drivers = tuple(
            driver if driver is None or (index == face) != own else following[driver]
            for index, driver in enumerate(assignment)
        )
        if drivers not in made:
            made[drivers] = animator.video(drivers, f"{animator.entry.name}_{_text(drivers)}").frames
        return made[drivers]

    for face in bench.moved:
        videos = frames, changed(face, own=False), changed(face, own=True)
        count = min(map(len, [*videos, tracks[face]]))
        made_pixels, other_pixels, own_pixels = (each[:count] / 255.0 for each in videos)
        seen = [tracks[face], *(bench.tracks(each)[face] for each in videos[1:])]
        width, height = frames.shape[2], frames.shape[1]
        area = np.stack([face_masks([points], width, height)[0] for points in seen[0].landmarks[:count]])
        both = np.logical_and.reduce([each.found[:count] for each in seen])
        leaks = {
            "leak_pixels": figures.pixel_leak(made_pixels, other_pixels, own_pixels, area),
            "leak_landmarks": figures.landmark_leak(*(each.landmarks[:count] for each in seen), seen=both),
        }
        yield {name: _known(value) for name, value in leaks.items()}


def _assignment(entry: BenchEntry, faces: Sequence[Face], drivers: int) -> Assignment:
    """The driver of each face, as `fye animate` has it. Raises `UserError` where counts do not fit."""
    if not entry.is_multi:
        largest, _ = pick_face(list(faces), "largest", str(entry.portrait))
        return tuple(0 if face is largest else None for face in faces)
    asked = None if entry.assign is None else parse_assignment(entry.assign)
    return assign(len(faces), drivers, asked, str(entry.portrait), spare=len(entry.drivers) == 1)


@dataclass(frozen=True)
class _Bench:
    """One entry while it is measured. moved: face -> driver, both from 0."""

    session: AnimationSession
    picture: Frames
    faces: Sequence[Face]
    moved: Mapping[int, int]
    count: int

    def tracks(self, video: Frames) -> dict[int, LandmarkSequence]:
        """Every moved face through a video of the picture; it begins where the picture shows it."""
        detector = self.session.detector.open()
        sights: dict[int, list[Face | None]] = {face: [] for face in self.moved}
        last = list(self.faces)
        for frame in video[: self.count]:
            near = [face.box for face in last]
            seen = find_in_windows(detector.detect_all, frame, detector.canonical, near=near)
            scaled = [replace(face, width=frame.shape[1], height=frame.shape[0]) for face in last]
            owners = match(scaled, seen)
            for face in self.moved:
                own = seen[owners.index(face)] if face in owners else None
                sights[face].append(own)
                last[face] = own or last[face]
        return {face: as_track(rows, video.shape[2], video.shape[1]) for face, rows in sights.items()}

    def against(
        self,
        found: LandmarkSequence,
        driver: LandmarkSequence,
        face: int,
        wanted: Mapping[int, LandmarkSequence] | None,
    ) -> dict[str, float | None]:
        """One person's figures against their driver, and against the truth where there is one.

        Poses are told as if both had been seen in the square in which the person is animated.
        """
        own, driver = found[: self.count], driver[: self.count]
        seen = own.found & driver.found
        directions, closed = figures.blendshape_gaze(driver.blendshapes[:])
        portrait = self.faces[face]
        crop = crop_around(portrait.box, portrait.width, portrait.height, scale=2.0, shift=(0.0, -0.08))
        scale = own.width / portrait.width
        square = (crop.left * scale, crop.top * scale, crop.side * scale)
        poses = _poses(own, square, seen)
        asked = _poses(driver, matching_square(driver, face_in(crop, portrait).as_sequence()), seen)
        values = {
            "lmd": float("nan"),
            "mae": figures.mae(figures.blendshape_gaze(own.blendshapes)[0], directions, closed=closed, seen=seen),
            "aed": figures.aed(own.blendshapes, driver.blendshapes[:], seen=seen),
            "apd": figures.apd(poses, asked),
            "frames_without_face": float((~own.found).sum()),
        }
        if wanted is not None:
            truth = wanted[face][: self.count]
            both = own.found & truth.found
            values["lmd"] = figures.lmd(own.landmarks, truth.landmarks, seen=both, aspect=aspect(truth))
        return {name: _known(value) for name, value in values.items()}


def _poses(
    sequence: LandmarkSequence, square: tuple[float, float, float], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Turns of the head as a camera tells them that sees only a square (left, top, side in pixels). -> [n, 3]."""
    left, top, side = square
    canonical = CanonicalFace.load()
    scale = np.array([sequence.width, sequence.height, sequence.width]) / side
    points = np.asarray(sequence.landmarks[:], np.float64)[seen] * scale - np.array([left, top, 0.0]) / side
    matrices = [metric_mesh(each, 1, 1, canonical)[1] for each in points]
    return figures.rotation_vectors(np.stack(matrices)) if matrices else np.zeros((0, 3))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate_exprbench(evaluator: BenchEvaluator, run: Run, *, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Measure every entry. -> `single` and `multi` (rows of means over people), `entries`, `failed`, `labels`.

    An entry that fails is named with its reason, and the others are measured; with `run.resume` it is tried again.

    Raises:
        UserError: what `Journal` refuses.
    """
    conditions = evaluator.conditions()
    if (before := run.made_before(conditions)) is not None:
        return before
    journal = run.journal(conditions)
    evaluator.folder.mkdir(parents=True, exist_ok=True)
    names = [entry.name for entry in evaluator.entries]
    measured = measure_all(evaluator.open, names, journal, jobs=run.jobs, stage="entries", on_progress=on_progress)
    result = summarise(measured) | {"labels": LABELS, "conditions": conditions}
    run.write(result, tables(result))
    journal.close()
    return result


def summarise(measured: Mapping[str, Entry]) -> dict[str, Any]:
    """Means over the people of all entries with one face, and of those with several; `leak` as an object."""
    fine = {name: entry for name, entry in measured.items() if "error" not in entry}
    result: dict[str, Any] = {}
    for kind, multi in (("single", False), ("multi", True)):
        own = [entry["people"] for entry in fine.values() if entry["multi"] == multi]
        if own:
            result[kind] = {row: _mean_row([person for people in own for person in people[row]]) for row in ROWS}
    failed = {name: entry["error"] for name, entry in measured.items() if "error" in entry}
    return result | {"entries": fine, "failed": failed}


def _mean_row(people: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = mean_of(people)
    told = ("face", "driver", "leak_pixels", "leak_landmarks")
    return {name: value for name, value in means.items() if name not in told} | {"leak": leak_of(means)}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """A table for one face and one for several."""
    titles = {"single": "ExprBench, one face", "multi": "ExprBench, several faces (means over people)"}
    found = []
    for kind, title in titles.items():
        if kind in result:
            rows = {
                row: {**values, **{f"leak_{part}": value for part, value in values["leak"].items()}}
                for row, values in result[kind].items()
            }
            columns = tuple(column for column in COLUMNS if kind == "multi" or not column.name.startswith("leak"))
            found.append(Table(title, columns, rows))
    return found


def describe(result: Mapping[str, Any]) -> str:
    """The tables, what the figures are taken from, and the entries that failed, as text."""
    labels = "\n".join(f"{name}: {text}" for name, text in result["labels"].items())
    failed = [f"{name}: {reason}" for name, reason in result["failed"].items()]
    counts = f"{len(result['entries'])} entries measured, {len(failed)} failed"
    return "\n\n".join([*map(str, tables(result)), labels, "\n".join([*failed, counts])])

"""`fye prepare --people`: which videos of a folder show several people well enough, by the filters of Multi-Expr.

FantasyPortrait's data are chosen by the number of people, how sharp faces are, how a picture pleases, and how much
faces move; its thresholds are not published. Here they are percentiles of the folder itself.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fye_pipeline.animate.portrait import crop_around
from fye_pipeline.batch.pool import run_parts
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.expression import landmark_ratios
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.people import match
from fye_pipeline.landmarks.tracking import FaceDetector
from fye_pipeline.landmarks.windows import find_in_windows
from fye_pipeline.media.source import open_source
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import write_json, write_text
from fye_pipeline.storage.functions import load_function
from fye_pipeline.training.prepare import LEDGER, REPORT, entry_of, find_videos, name_in, open_output, undone
from fye_pipeline.training.segment import UNREADABLE

KEPT = "people.jsonl"
CROP = 256  # pixels a side of a face whose sharpness is measured
STEADY = 0.8  # of the sampled frames that must show the number of people that most of them show
PEOPLE, UNSTEADY, BLURRED, DULL, STILL = (
    *("another number of people", "people come and go", "blurred faces", "low aesthetics"),
    "faces that hardly move",
)
NO_MODEL = "n/a: needs a model"
_EVERYWHERE = 8  # sampled frames, of which one is searched everywhere and not only near the known faces
# Brow and upper lid, and the corners of that eye: what the height of a brow is told from.
_BROWS = ((105, 159, 133, 33), (334, 386, 263, 362))
Scorer = Callable[[NDArray[np.uint8]], float]


@dataclass(frozen=True)
class PeopleOptions:
    """least, most: people; most None: any number. drop: percent of the folder that each filter may take.

    rate: frames looked at in a second. aesthetics: a scorer of pictures as `package.module:function`. Raises
    `UserError` where a value makes no sense.
    """

    least: int = 2
    most: int | None = None
    drop: float = 10.0
    rate: str = "4"
    aesthetics: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 100:
            raise UserError(f"--drop must be from 0 to below 100 percent, got {self.drop:g}.")


@dataclass(frozen=True)
class Measures:
    """What was seen in a video's sampled frames. people: in most of them; steady: the share that shows so many.

    blur: variance of the Laplacian of the least sharp person's face. motion: ranges of the least moving person: lids,
    gaze, mouth and brows as ratios, head in degrees. aesthetics: mean score, None without a scorer. boxes: the faces of
    the first frame with so many people.
    """

    people: int
    steady: float
    frames: int
    blur: float = 0.0
    motion: Mapping[str, float] | None = None
    aesthetics: float | None = None
    boxes: Sequence[Sequence[float]] = ()


def parse_people(text: str) -> tuple[int, int | None]:
    """`2`, `2-3` or `2+` -> least and most. Raises `UserError` for anything else."""
    found = re.fullmatch(r"(\d+)(?:(\+)|-(\d+))?", text.strip())
    if found is None or int(found[1]) < 1 or (found[3] and int(found[3]) < int(found[1])):
        raise UserError(f"--people must be a number such as 2, 2-3 or 2+, got {text!r}.")
    least = int(found[1])
    return least, None if found[2] else int(found[3] or least)


def prepare_people(
    folder: Path,
    output: Path,
    options: PeopleOptions,
    *,
    jobs: int = 1,
    task: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Measure every video below `folder` and say which are kept. Returns the report, which is also written.

    output: gets `people.jsonl`, a line for each video that is kept, `report.json` with all and why, and `ledger`, from
    which a broken run goes on. Raises `UserError` where there are no videos, or `output` holds something else.
    """
    if options.aesthetics is not None:
        load_scorer(options.aesthetics)  # a bad one is told before the long work
    videos = find_videos(folder)
    if not videos:
        raise UserError(f"{folder} holds no videos and no folders of pictures.")
    open_output(output, {"people": asdict(options)}, resume=resume, overwrite=overwrite)
    ledger = output / LEDGER
    names = {name_in(folder, video): video for video in videos}
    todo = undone(names, ledger)
    tools = _Measurer(todo, ledger, options, task)
    on_progress("videos", 0, len(todo))
    for done, _ in enumerate(run_parts(tools.open, list(todo), jobs), 1):
        on_progress("videos", done, len(todo))
    measured = {name: json.loads(entry_of(ledger, name).read_text(encoding="utf-8")) for name in names}
    report = judge(measured, options)
    write_json(output / REPORT, report)
    kept = (row for row in report["videos"] if row["reason"] is None)
    lines = (json.dumps({"video": str(names[row["video"]]), **row["measures"]}) for row in kept)
    write_text(output / KEPT, "".join(f"{line}\n" for line in lines))
    return report


def judge(measured: Mapping[str, Mapping[str, Any]], options: PeopleOptions) -> dict[str, Any]:
    """Why each video is kept or not, and the thresholds that the folder gave.

    measured: by name `{"measures": ...}` of `Measures`, or `{"error": ...}`. The first reason that fits counts; blur,
    aesthetics and motion are judged among the videos with the right number of people.
    """
    reasons: dict[str, str | None] = {}
    for name, entry in measured.items():
        seen = entry.get("measures")
        if seen is None:
            reasons[name] = UNREADABLE
        elif seen["people"] < options.least or (options.most is not None and seen["people"] > options.most):
            reasons[name] = PEOPLE
        else:
            reasons[name] = UNSTEADY if seen["steady"] < STEADY else None
    fit = {name: measured[name]["measures"] for name, reason in reasons.items() if reason is None}
    scores = {BLURRED: {name: seen["blur"] for name, seen in fit.items()}}
    if options.aesthetics is not None:
        scores[DULL] = {name: seen["aesthetics"] for name, seen in fit.items()}
    scores[STILL] = motion_scores({name: seen["motion"] for name, seen in fit.items()})
    thresholds = {
        reason: float(np.percentile(list(values.values()), options.drop)) if values else None
        for reason, values in scores.items()
    }
    for reason, values in scores.items():
        for name, value in values.items():
            limit = thresholds[reason]
            if reasons[name] is None and limit is not None and value < limit:
                reasons[name] = reason
    if options.aesthetics is None:
        thresholds[DULL] = None
    counts = Counter(reason for reason in reasons.values() if reason is not None)
    return {
        "totals": {"videos": len(reasons), "kept": sum(reason is None for reason in reasons.values())},
        "dropped": {reason: counts[reason] for reason in sorted(counts)},
        "thresholds": thresholds,
        "aesthetics": NO_MODEL if options.aesthetics is None else options.aesthetics,
        "videos": [{"video": name, "reason": reasons[name], **measured[name]} for name in sorted(reasons)],
    }


def motion_scores(motions: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One figure for each video: the mean of its ranges, each over the folder's median of that range."""
    if not motions:
        return {}
    kinds = list(next(iter(motions.values())))
    middle = {kind: float(np.median([each[kind] for each in motions.values()])) or 1.0 for kind in kinds}
    return {name: float(np.mean([each[kind] / middle[kind] for kind in kinds])) for name, each in motions.items()}


@dataclass(frozen=True)
class _Measurer:
    """What a process needs to measure videos."""

    videos: dict[str, Path]
    ledger: Path
    options: PeopleOptions
    task: Path | None

    @contextmanager
    def open(self) -> Iterator[Callable[[str], None]]:
        scorer = None if self.options.aesthetics is None else load_scorer(self.options.aesthetics)
        with FaceLandmarkDetector(self.task) as detector:
            yield partial(self.measure_one, detector, scorer)

    def measure_one(self, detector: FaceDetector, scorer: Scorer | None, name: str) -> None:
        """One video into the ledger; one that cannot be read is an entry too."""
        try:
            source = open_source(self.videos[name], what="a video", fps=Fraction(self.options.rate), allow_partial=True)
            seen = sampled(detector, source.frames())
            entry: dict[str, Any] = {"measures": asdict(measure(seen, scorer))}
        except UserError as error:
            entry = {"error": str(error)}
        write_json(entry_of(self.ledger, name), entry)


def sampled(
    detector: FaceDetector, frames: Iterator[NDArray[np.uint8]]
) -> Iterator[tuple[NDArray[np.uint8], list[Face]]]:
    """Every frame with its faces: near those of the frame before, and now and then everywhere."""
    before: list[Face] = []
    for number, frame in enumerate(frames):
        near = [face.box for face in before] if before and number % _EVERYWHERE else None
        faces = find_in_windows(detector.detect_all, frame, detector.canonical, near=near)
        if near is not None and len(faces) < len(before):
            faces = find_in_windows(detector.detect_all, frame, detector.canonical)
        before = faces
        yield frame, faces


def measure(seen: Iterator[tuple[NDArray[np.uint8], list[Face]]], scorer: Scorer | None) -> Measures:
    """Of frames with their faces. People are followed; who is seen only now and then does not count.

    Raises `UserError` where there are no frames.
    """
    counts: list[int] = []
    blurs: list[list[float]] = []
    tracks: list[list[Face]] = []
    first: dict[int, list[Face]] = {}
    scores: list[float] = []
    for frame, faces in seen:
        counts.append(len(faces))
        first.setdefault(len(faces), faces)
        owners = match([track[-1] for track in tracks], faces)
        for face, owner in zip(faces, owners, strict=True):
            if owner is None:
                owner = len(tracks)
                tracks.append([])
                blurs.append([])
            tracks[owner].append(face)
            blurs[owner].append(sharpness(frame, face))
        if scorer is not None:
            scores.append(float(scorer(frame)))
    if not counts:
        raise UserError("It has no frames.")
    people = Counter(counts).most_common(1)[0][0]
    longest = sorted(range(len(tracks)), key=lambda track: -len(tracks[track]))[:people]
    ranges = [motion_of(tracks[track]) for track in longest]
    return Measures(
        people=people,
        steady=counts.count(people) / len(counts),
        frames=len(counts),
        blur=min((float(np.median(blurs[track])) for track in longest), default=0.0),
        motion={kind: min(each[kind] for each in ranges) for kind in ranges[0]} if ranges else None,
        aesthetics=float(np.mean(scores)) if scores else None,
        boxes=[list(map(float, face.box)) for face in first[people]],
    )


def sharpness(picture: NDArray[np.uint8], face: Face) -> float:
    """Variance of the Laplacian of a face cut out of its picture and brought to 256 pixels."""
    height, width = picture.shape[:2]
    crop = crop_around(face.box, width, height, scale=1.0, shift=(0.0, 0.0))
    grey = cv2.cvtColor(crop.cut(picture, CROP), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def motion_of(faces: Sequence[Face]) -> dict[str, float]:
    """How far one person's face moves through frames: greatest less smallest of each quantity."""
    landmarks = np.stack([face.landmarks for face in faces]).astype(np.float64)
    aspect = faces[0].height / faces[0].width
    ratios = landmark_ratios(landmarks, aspect)
    points = landmarks[..., :2] * (1.0, aspect)
    brows = np.mean([_distance(points, a, b) / _distance(points, c, d) for a, b, c, d in _BROWS], axis=0)
    turns = Rotation.from_matrix(np.stack([face.transform[:3, :3] for face in faces])).as_euler("yxz", degrees=True)
    return {
        "lids": float(np.ptp(ratios[:, [0, 2]].mean(axis=1))),
        "gaze": float(np.ptp(ratios[:, [1, 3]].mean(axis=1))),
        "mouth": float(np.ptp(ratios[:, 4])),
        "brows": float(np.ptp(brows)),
        "head": float(np.ptp(turns, axis=0).max()),
    }


def _distance(points: NDArray[np.float64], first: int, second: int) -> NDArray[np.float64]:
    return np.maximum(np.linalg.norm(points[:, first] - points[:, second], axis=-1), 1e-9)


def load_scorer(name: str) -> Scorer:
    """A scorer of pictures uint8 RGB [H, W, 3], as `package.module:function`. Raises `UserError` in one sentence."""
    return load_function(name, "--aesthetics")

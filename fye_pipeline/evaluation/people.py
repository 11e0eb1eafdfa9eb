"""Several people of the rendered world, each with a driver of their own: FantasyPortrait's table, and what leaks."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline import presets
from fye_pipeline.animate.session import choose_device, load_model, recommended_guidance
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation import metrics as pictures
from fye_pipeline.evaluation.face_tracks import FindFace, track_face
from fye_pipeline.evaluation.run import Run
from fye_pipeline.evaluation.summary import leak_of, mean_of
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.multi_portrait import metrics
from fye_pipeline.multi_portrait.group_model import (
    SHIPPED,
    DrivenFace,
    ExpressionBranch,
    Rule,
    enlarged,
    generate_group,
)
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import digest_of_folder
from fye_pipeline.world import World
from fye_pipeline.world.drivers import driven_face
from fye_pipeline.world.scenes import HEIGHT, WIDE, Scene, render_scene, sample_cast

Video = NDArray[np.floating]

ROWS = ("ours", "no_masks", "equation", "no_augmentation", "single_faces", "landmarks", "repeat_reference")
TRAINED_APART = ("no_augmentation", "single_faces")  # rows with weights of their own, in `ABLATIONS`
FIGURES = ("lmd", "mae", "aed", "apd", "l1", "ssim")
ABLATIONS = "benchmarks/assets/people"
SEEN_AT = 256  # pixels a side at which a person's square is shown to the detector
FIRST = 5000  # number of the first held-out scene
RATE = 6.0  # frames a second of the drivers


@dataclass(frozen=True)
class Plan:
    """What is measured. people: in each picture; clips: scenes, each of other people."""

    people: int = 2
    clips: int = 3
    frames: int = 8
    steps: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.people <= 3:
            raise UserError(f"--people must be 2 or 3, got {self.people}.")


@dataclass(frozen=True)
class Case:
    """A scene: its portrait, everybody's driver, an exchanged one for each, and the truth in [0, 1]."""

    portrait: Scene
    scene: Scene
    drivers: tuple[DrivenFace, ...]
    exchanged: tuple[DrivenFace, ...]

    @property
    def truth(self) -> Video:
        return self.scene.frames / 255.0

    def driven(self, exchanged: int | None = None) -> list[DrivenFace]:
        """Everybody's driver; that of one person may be exchanged."""
        return [
            other if number == exchanged else own
            for number, (own, other) in enumerate(zip(self.drivers, self.exchanged, strict=True))
        ]


def make_case(world: World, plan: Plan, clip: int, extract: RenderedExtractor) -> Case:
    """Scene number `clip` of a plan: held-out people, driven by single heads of their own with the same motion."""
    people = sample_cast(world, "held", FIRST + 1000 * plan.seed + clip, plan.people)
    portrait = render_scene(world, people, people.portrait_motions())
    motions = people.motions(plan.frames, fps=RATE)
    scene = render_scene(world, people, motions)
    others = people.motions(plan.frames, take=1, fps=RATE)
    return Case(
        portrait,
        scene,
        tuple(driven_face(world, people, portrait, k, motions[k], extract) for k in range(plan.people)),
        tuple(driven_face(world, people, portrait, k, others[k], extract) for k in range(plan.people)),
    )


def ablation_folder(row: str) -> Path:
    """Where the adapter of an ablation lies in a checkout. UserError where it does not."""
    folder = Path(__file__).resolve().parent.parent.parent / ABLATIONS / row
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the row {row} is measured in a checkout, from {ABLATIONS}.")
    return folder


@contextmanager
def branch_of(row: str, unet: Any) -> Iterator[tuple[ExpressionBranch | None, Rule]]:
    """The weights and the rule of a row, on the UNet for the length of a block."""
    if row in ("landmarks", "repeat_reference"):
        yield None, "exclusive"
        return
    branch = ExpressionBranch.load(ablation_folder(row) if row in TRAINED_APART else SHIPPED, unet)
    try:
        yield branch, cast("Rule", row if row in get_args(Rule) else "exclusive")
    finally:
        branch.remove()


def evaluate_people(
    plan: Plan,
    run: Run = Run(),  # noqa: B008
    *,
    face_landmarker: Path | None = None,
    device: str = "auto",
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Measure every row; the keys are those of `fye evaluate rendered --people N --json`.

    `ours`: landmarks tell the pose, features the face, exclusive masks; `no_masks`: all drivers reach every place;
    `equation`: Eq. 4 of the paper as printed; `no_augmentation`: trained without resamplers; `single_faces`: trained
    on pictures of one person; `landmarks`: whole landmarks, no features; `repeat_reference`: the portrait in every
    frame.
    Raises `UserError` where weights are absent, and as `Run`.
    """
    for row in TRAINED_APART:
        ablation_folder(row)
    pipe = load_model(SHIPPED_MODEL, choose_device(device), torch.float32)
    pipe.set_progress_bar_config(disable=True)
    guidance = recommended_guidance(SHIPPED_MODEL)
    world, extract = World(CanonicalFace.load()), RenderedExtractor()
    conditions = _conditions(plan, pipe, guidance, world)
    if (before := run.made_before(conditions)) is not None:
        return before
    notes = run.journal(conditions)
    cases = [make_case(world, plan, clip, extract) for clip in range(plan.clips)]
    with FaceLandmarkDetector(face_landmarker, max_faces=1) as detector:
        truths = [tracks_of(case, case.truth, detector.detect) for case in cases]
        for row in ROWS:
            with branch_of(row, pipe.unet) as (branch, rule):
                for clip, (case, truth) in enumerate(zip(cases, truths, strict=True)):
                    if _part(row, clip) in notes.entries:
                        continue
                    videos = [np.broadcast_to(case.portrait.frames / 255.0, case.truth.shape)] * (1 + plan.people)
                    if row != "repeat_reference":
                        videos = _videos(pipe, case, plan, clip, guidance, branch, rule)
                    notes.add(_part(row, clip), {"people": figures(case, videos, truth, detector.detect)})
                    on_progress("videos", len(notes.entries), plan.clips * len(ROWS))
    people = {
        row: [one for clip in range(plan.clips) for one in notes.entries[_part(row, clip)]["people"]] for row in ROWS
    }
    result = {"rows": {row: _mean_row(entries) for row, entries in people.items()}, "conditions": conditions}
    run.write(result)
    notes.close()
    return result


def _part(row: str, clip: int) -> str:
    """The journal's name of a row's figures of one scene."""
    return f"{row} {clip}"


def _conditions(plan: Plan, pipe: Any, guidance: float, world: World) -> dict[str, Any]:
    """Everything that decides the figures."""
    return asdict(plan) | {
        "size": [WIDE, HEIGHT],
        "seen_by": f"MediaPipe's face landmarker on each person's square at {SEEN_AT} pixels, also in the truth",
        "rate": RATE,
        "guidance": guidance,
        "model_state": digest_of_folder(SHIPPED_MODEL, but=(presets.FILE,))[:16],
        "adapter": digest_of_folder(SHIPPED)[:16],
        "world_version": world.version,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": str(pipe.device),
    }


def _videos(
    pipe: Any, case: Case, plan: Plan, clip: int, guidance: float, branch: ExpressionBranch | None, rule: Rule
) -> list[Video]:
    """A row's video, and those with one person's driver exchanged; all from the same noise."""
    return [
        generate_group(
            pipe,
            case.portrait.frames[0],
            case.driven(exchanged),
            branch,
            rule=rule,
            steps=plan.steps,
            guidance=guidance,
            seed=1000 * plan.seed + clip,
        )
        for exchanged in (None, *range(plan.people))
    ]


def tracks_of(case: Case, video: Video, find: FindFace) -> list[LandmarkSequence]:
    """Everybody's face as the detector finds it in their square."""
    frames = pictures.to_uint8(video)
    return [track_face(enlarged(frames, one.square, SEEN_AT), find) for one in case.drivers]


def figures(
    case: Case, videos: Sequence[Video], truth: Sequence[LandmarkSequence], find: FindFace
) -> list[dict[str, float]]:
    """Each person's figures. videos: the row's, then those with the driver of person 0, 1, ... exchanged."""
    tracks = [tracks_of(case, video, find) for video in videos]
    whole = {"l1": pictures.l1(videos[0], case.truth), "ssim": pictures.ssim(videos[0], case.truth)}
    rows = []
    for number, wanted in enumerate(truth):
        other = (number + 1) % len(truth)
        made, by_other, by_own = (tracks[k][number] for k in (0, 1 + other, 1 + number))
        seen = made.found & wanted.found
        looks, shut = metrics.blendshape_gaze(wanted.blendshapes)
        rows.append(
            whole
            | {
                "lmd": metrics.lmd(made.landmarks, wanted.landmarks, seen=seen),
                "mae": metrics.mae(metrics.blendshape_gaze(made.blendshapes)[0], looks, closed=shut, seen=seen),
                "aed": metrics.aed(made.blendshapes, wanted.blendshapes, seen=seen),
                "apd": metrics.apd(_turns(made), _turns(wanted), seen=seen),
                "leak_pixels": metrics.pixel_leak(
                    videos[0], videos[1 + other], videos[1 + number], case.scene.masks[number]
                ),
                "leak_landmarks": metrics.landmark_leak(
                    made.landmarks,
                    by_other.landmarks,
                    by_own.landmarks,
                    seen=made.found & by_other.found & by_own.found,
                ),
            }
        )
    return rows


def _turns(track: LandmarkSequence) -> NDArray[np.float64]:
    """Rotation vectors [F, 3]; 0 where there is no face."""
    found = np.where(track.found[:, None, None], track.transforms, np.eye(4))
    return metrics.rotation_vectors(found)


def _mean_row(entries: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The means over people and clips; None where there is nothing to compare."""
    means = mean_of(entries)
    return {name: means[name] for name in FIGURES} | {"leak": leak_of(means)}


def describe(result: dict[str, Any]) -> str:
    """The rows as a Markdown table, in the paper's units."""
    scales = {"lmd": 1e3, "aed": 1e2}
    head = ("row", "LMD x1e-3", "MAE deg", "AED x1e-2", "APD rad", "L1", "SSIM", "leak pixels", "leak landmarks")
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --- |" * (len(head) - 1)]
    for row, values in result["rows"].items():
        shown = [(values[name], scales.get(name, 1.0)) for name in FIGURES]
        shown += [(values["leak"][name], 1.0) for name in ("pixels", "landmarks")]
        cells = ["-" if value is None else f"{value * scale:.3f}" for value, scale in shown]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

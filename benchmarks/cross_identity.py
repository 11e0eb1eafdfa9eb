"""Do features of the expression carry less of the driver's shape than landmarks, and is a face in company followed as
well as alone?

    python -m benchmarks.cross_identity [--clips 4] [--frames 4] [--steps 30] [--json FILE]

Cross-identity: two people in a picture of the rendered world, each driven by the head, out of 24 held-out ones,
whose shape differs most from theirs; only pairs in the top quarter of the distances of held-out people count. Rows
`features`, `landmarks` (the driver's, retargeted as `fye animate` does), `landmarks as they are` and
`repeat reference`. identity: 1 less the distance from the portrait, where two people are 1 apart on average. AED, gaze
and landmark distance are against the same motion made by the person's own head.

In company: rows `together` and `alone`, with drivers of their own; landmark distance to the own driver's truth and to
the other's. The figures are MediaPipe's, in everybody's square at 256 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import conditions, flags, print_table, write_json
from fye_pipeline.animate.session import load_model, obtain_face_landmarker
from fye_pipeline.evaluation import metrics as pictures
from fye_pipeline.evaluation.face_tracks import FindFace, track_face
from fye_pipeline.evaluation.people import FIRST, RATE, SEEN_AT
from fye_pipeline.evaluation.world_identity import WorldIdentity, fit_identity
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.geometry import align
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.multi_portrait import metrics
from fye_pipeline.multi_portrait.group_model import SHIPPED, DrivenFace, ExpressionBranch, enlarged, generate_group
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor
from fye_pipeline.world import Identity, World
from fye_pipeline.world.anatomy import Head
from fye_pipeline.world.drivers import driven_face
from fye_pipeline.world.scenes import NARROW, Cast, Scene, Square, render_scene, sample_cast

PEOPLE = 2
CANDIDATES = 24
OTHERS = 40_000  # the first head that drives somebody else
FITTED = 30  # people that the identity measure is fitted to
FAR = 0.75  # quantile of shape distances that chosen pairs lie above
COLUMNS = ("name", "identity", "aed", "mae", "lmd", "lmd_other", "faces")
Video = NDArray[np.floating]


@dataclass(frozen=True)
class Tools:
    """What every measurement shares."""

    pipe: Any
    world: World
    extract: RenderedExtractor
    identity: WorldIdentity
    find: FindFace
    steps: int


def shape_distance(one: Identity, other: Identity) -> float:
    """Root mean square over the parameters of a head's shape."""
    return float(np.sqrt(np.mean((np.array(one.shape) - np.array(other.shape)) ** 2)))


def far_heads(world: World, cast: Cast, clip: int) -> list[tuple[Identity, float]]:
    """For everybody of a cast the candidate of the most different shape, and how different."""
    chosen = []
    for number, own in enumerate(cast.identities):
        first = OTHERS + CANDIDATES * (PEOPLE * clip + number)
        heads = [world.head("held", index).identity for index in range(first, first + CANDIDATES)]
        chosen.append(max(((each, shape_distance(own, each)) for each in heads), key=lambda pair: pair[1]))
    return chosen


def far_limit(world: World, people: int = 60) -> float:
    """The distance above which a quarter of all pairs of held-out heads lie."""
    heads = [world.head("held", index).identity for index in range(people)]
    distances = [shape_distance(a, b) for k, a in enumerate(heads) for b in heads[:k]]
    return float(np.quantile(distances, FAR))


def tracks(video: Video, faces: Sequence[DrivenFace], find: FindFace) -> list[tuple[Any, LandmarkSequence]]:
    """Everybody's square, enlarged, and the face that is found in it."""
    frames = pictures.to_uint8(video)
    squares = [enlarged(frames, face.square, SEEN_AT) for face in faces]
    return [(square, track_face(square, find)) for square in squares]


def cross(tools: Tools, clip: int, frames: int) -> tuple[dict[str, list[dict[str, float]]], list[float]]:
    """Every row's figures of both people of a scene, and how far their drivers' shapes are from theirs."""
    world = tools.world
    cast = sample_cast(world, "held", FIRST + clip, PEOPLE)
    portrait = render_scene(world, cast, cast.portrait_motions())
    motions = cast.motions(frames, fps=RATE)
    truth = render_scene(world, cast, motions)
    far = far_heads(world, cast, clip)
    by_features, aligned, plain = [], [], []
    for number, (motion, (head, _)) in enumerate(zip(motions, far, strict=True)):
        face = driven_face(world, cast, portrait, number, motion, tools.extract, twin=head)
        side = face.square[2]
        driver = world.track(Head(world.canonical.vertices, head), motion, side, fps=None)
        by_features.append(replace(face, driver=driver))
        aligned.append(replace(face, driver=replace(driver, landmarks=align(face.face, driver, side, side))))
        plain.append(replace(face, driver=driver))
    still = np.broadcast_to(portrait.frames / 255.0, truth.frames.shape)
    videos = {
        "features": made(tools, portrait, by_features, clip, features=True),
        "landmarks": made(tools, portrait, aligned, clip, features=False),
        "landmarks as they are": made(tools, portrait, plain, clip, features=False),
        "repeat reference": still,
    }
    wanted = tracks(truth.frames / 255.0, by_features, tools.find)
    own = [tools.identity.embed(list(square), track) for square, track in tracks(still[:1], by_features, tools.find)]
    rows: dict[str, list[dict[str, float]]] = {}
    for name, video in videos.items():
        seen = tracks(video, by_features, tools.find)
        rows[name] = [
            compared(track, truth_track)
            | {"identity": 1 - tools.identity.distance(tools.identity.embed(list(square), track), before)}
            for (square, track), (_, truth_track), before in zip(seen, wanted, own, strict=True)
        ]
    return rows, [distance for _, distance in far]


def company(tools: Tools, clip: int, frames: int) -> dict[str, list[dict[str, float]]]:
    """Both people of a scene together, and each alone in a picture, moved by features of their own drivers."""
    world = tools.world
    cast = sample_cast(world, "held", FIRST + clip, PEOPLE)
    motions = cast.motions(frames, fps=RATE)
    rows: dict[str, list[dict[str, float]]] = {"together": [], "alone": []}
    together = _followed(tools, cast, motions, clip)
    for number, (track, truth, other) in enumerate(together):
        rows["together"].append(
            compared(track, truth)
            | {"lmd_other": metrics.lmd(track.landmarks, other.landmarks, seen=_both(track, other))}
        )
        alone = Cast((cast.identities[number],), (Square(0, 0, NARROW),), NARROW, (cast.keys[number],))
        ((by_itself, own, _),) = _followed(tools, alone, [motions[number]], clip)
        rows["alone"].append(compared(by_itself, own))
    return rows


def _followed(
    tools: Tools, cast: Cast, motions: Sequence[Any], clip: int
) -> Iterator[tuple[LandmarkSequence, LandmarkSequence, LandmarkSequence]]:
    """Everybody's face in the video, in the truth, and the truth of the next person's."""
    portrait = render_scene(tools.world, cast, cast.portrait_motions())
    truth = render_scene(tools.world, cast, motions)
    faces = [
        driven_face(tools.world, cast, portrait, number, motion, tools.extract) for number, motion in enumerate(motions)
    ]
    seen = [track for _, track in tracks(made(tools, portrait, faces, clip, features=True), faces, tools.find)]
    wanted = [track for _, track in tracks(truth.frames / 255.0, faces, tools.find)]
    return zip(seen, wanted, [*wanted[1:], wanted[0]], strict=True)


def made(tools: Tools, portrait: Scene, faces: Sequence[DrivenFace], seed: int, *, features: bool) -> Video:
    """The video of a scene, with the branch that ships or with landmarks alone."""
    branch = ExpressionBranch.load(SHIPPED, tools.pipe.unet) if features else None
    try:
        return generate_group(tools.pipe, portrait.frames[0], faces, branch, steps=tools.steps, seed=seed)
    finally:
        if branch is not None:
            branch.remove()


def compared(track: LandmarkSequence, truth: LandmarkSequence) -> dict[str, float]:
    """Landmark distance, gaze and expression of what is seen against the truth."""
    seen = _both(track, truth)
    looks, shut = metrics.blendshape_gaze(truth.blendshapes)
    return {
        "lmd": metrics.lmd(track.landmarks, truth.landmarks, seen=seen),
        "mae": metrics.mae(metrics.blendshape_gaze(track.blendshapes)[0], looks, closed=shut, seen=seen),
        "aed": metrics.aed(track.blendshapes, truth.blendshapes, seen=seen),
    }


def _both(one: LandmarkSequence, other: LandmarkSequence) -> NDArray[np.bool_]:
    return one.found & other.found


def mean_row(name: str, people: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over faces; None for figures that a row does not have."""
    row: dict[str, Any] = {"name": name, "faces": len(people)}
    for figure in COLUMNS[1:-1]:
        values = [each[figure] for each in people if figure in each and np.isfinite(each[figure])]
        row[figure] = float(np.mean(values)) if values else None
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cross_identity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--clips", type=int, default=4, help="scenes of two people")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    pipe = load_model(SHIPPED_MODEL, torch.device(options.device), torch.float32)
    found: dict[str, list[dict[str, float]]] = {}
    distances: list[float] = []
    with FaceLandmarkDetector(obtain_face_landmarker(), max_faces=1) as detector:
        world = World(detector.canonical)
        identity = fit_identity(world, detector.detect, people=FITTED)
        limit = far_limit(world)
        tools = Tools(pipe, world, RenderedExtractor(), identity, detector.detect, options.steps)
        for clip in tqdm(range(options.clips)):
            crossed, apart = cross(tools, clip, options.frames)
            far = [distance >= limit for distance in apart]
            distances += [distance for distance in apart if distance >= limit]
            crossed = {name: list(compress(people, far)) for name, people in crossed.items()}
            for rows in (crossed, company(tools, clip, options.frames)):
                for name, people in rows.items():
                    found.setdefault(name, []).extend(people)
    rows = [mean_row(name, people) for name, people in found.items()]
    print_table(rows, COLUMNS)
    if options.json:
        told = {"clips": options.clips, "frames": options.frames, "steps": options.steps}
        shapes = {"least": min(distances), "mean": float(np.mean(distances)), "top_quarter_from": limit}
        write_json(options.json, rows, conditions(options.device, **told, shape_distance=shapes))


if __name__ == "__main__":
    main()

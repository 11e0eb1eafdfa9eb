"""Who is seen: colours and shape of a head of the rendered world, estimated again from pictures of it.

What is estimated are colours at places that landmarks name (skin, brows, lips, irises, hair, clothes) and the points of
the detected mesh that expressions move little. From heads of the `train` split it is learnt along which of their
combinations people differ, against what light, pose and expression change in one person (Fisher 1936). The distance of
two people is 1 on average; the same person in another pose is at about a tenth of that (`separation` measures it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.evaluation.distances import fisher_directions
from fye_pipeline.evaluation.face_tracks import track_face
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.world import World

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

# Where colours are read: landmark numbers, the mean of whose places is the spot.
SPOTS: tuple[tuple[int, ...], ...] = (
    (50,), (280,), (151,), (9,), (4,), (199,),  # cheeks, forehead, between the brows, nose, chin
    (105, 66), (334, 296),  # brows
    (85, 315), (37, 267),  # lips
    (468,), (473,),  # irises
)  # fmt: skip
# And beyond the face: (from, to, share): hair over the forehead and at the temples, the neck, the clothes.
BEYOND = ((152, 10, 1.12), (152, 10, 1.3), (454, 234, 1.1), (234, 454, 1.1), (10, 152, 1.15), (10, 152, 1.45))
# Points of the mesh that expressions move little: eye corners, nose, cheekbones, jaw, forehead, chin, temples.
FIRM = (33, 133, 263, 362, 1, 6, 168, 98, 327, 50, 280, 234, 454, 172, 397, 10, 152, 127, 356, 54, 284)
DIRECTIONS = 16
FITTED_PEOPLE, FITTED_PICTURES = 60, 3


def describe(picture: Picture, face: LandmarkSequence, index: int = 0) -> Floats:
    """Colours at the spots and the firm points of the mesh, of frame `index` of a face that was followed. -> [117]."""
    height, width = picture.shape[:2]
    points = face.landmarks[index, :, :2] * (width, height)
    spots = [points[list(numbers)].mean(0) for numbers in SPOTS]
    spots += [points[start] + share * (points[end] - points[start]) for start, end, share in BEYOND]
    reach = max(round(0.008 * width), 1)
    colours = [_mean_colour(picture, spot, reach) for spot in spots]
    return np.concatenate([np.ravel(colours), np.ravel(face.mesh[index, list(FIRM)])]).astype(np.float64)


def _mean_colour(picture: Picture, spot: Floats, reach: int) -> Floats:
    """Mean of a small square, in 0..1; a spot outside the picture is moved to its edge."""
    height, width = picture.shape[:2]
    x, y = (int(np.clip(v, reach, side - 1 - reach)) for v, side in zip(spot, (width, height), strict=True))
    return picture[y - reach : y + reach + 1, x - reach : x + reach + 1].reshape(-1, 3).mean(0) / 255


@dataclass(frozen=True)
class WorldIdentity:
    """directions: projection of descriptions, [D, K]. scale: the mean distance between two people after it."""

    directions: Floats
    scale: float

    def embed(self, pictures: list[Picture], track: LandmarkSequence) -> Floats | None:
        """The mean projection over the frames with a face. -> [K], None where there is none."""
        rows = [describe(picture, track, k) for k, picture in enumerate(pictures) if track.found[k]]
        return np.mean(rows, axis=0) @ self.directions if rows else None

    def distance(self, first: Floats | None, second: Floats | None) -> float:
        """0: equal; 1: the mean distance of two people. nan where one shows no face."""
        if first is None or second is None:
            return float("nan")
        return float(np.linalg.norm(first - second)) / self.scale


def fit_identity(
    world: World,
    find: Callable[[Picture], Face | None],
    *,
    people: int = FITTED_PEOPLE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> WorldIdentity:
    """Fit the measure to heads of the `train` split: their portraits, and frames of their clips (pose and expression).

    Raises ValueError where fewer than two people are found.
    """
    rows, whose = [], []
    for person in range(people):
        for picture in _pictures(world, "train", person):
            track = track_face([picture], find)
            if track.found[0]:
                rows.append(describe(picture, track))
                whose.append(person)
        on_progress(person + 1, people)
    features, names = np.stack(rows), np.array(whose)
    if len(np.unique(names)) < 2:
        raise ValueError(f"people must be >= 2, so that they can be told apart, got {len(np.unique(names))}")
    directions = fisher_directions(features, names, DIRECTIONS)
    means = np.stack([features[names == name].mean(0) for name in np.unique(names)]) @ directions
    first, second = np.triu_indices(len(means), 1)
    return WorldIdentity(directions, float(np.linalg.norm(means[first] - means[second], axis=1).mean()))


def separation(
    identity: WorldIdentity, world: World, find: Callable[[Picture], Face | None], *, split: str, people: list[int]
) -> dict[str, Any]:
    """What the measure says of people that it was not fitted to. -> same, other (mean distances), told_apart.

    told_apart is the top-1 accuracy: the share of people whose clip is nearest to their own portrait.
    """
    portraits, clips = [], []
    for person in people:
        first, *others = _pictures(world, split, person)
        portraits.append(identity.embed([first], track_face([first], find)))
        clips.append(identity.embed(others, track_face(others, find)))
    table = np.array([[identity.distance(p, c) for p in portraits] for c in clips])
    own, same = np.eye(len(people), dtype=bool), np.diag(table)
    nearest = np.nanargmin(np.where(np.isnan(table), np.inf, table), axis=1)
    return {
        "same": float(np.nanmean(same)),
        "other": float(np.nanmean(table[~own])) if len(people) > 1 else float("nan"),
        "told_apart": float((nearest == np.arange(len(people))).mean()),
    }


def _pictures(world: World, split: str, person: int) -> list[Picture]:
    frames = world.clip(split, person, take=2, frames=FITTED_PICTURES - 1, fps=1).frames
    return [world.portrait(split, person).frames[0], *frames]

"""Identity-irrelevant data iteration: each expression again on another person, so that only the expression is shared.

For a picture of a person: a picture of its expression on a random other person is made by the base adapter, its
identity is swapped once more, and what does not show the expression any longer is left out (EmojiDiff, section 3.3).
The made picture becomes the expression input; the target stays the real picture, so no artefact is ever learnt.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fye_pipeline.emoji.expression_crop import expression_crop
from fye_pipeline.emoji.face_nets import as_batch, encoder_states
from fye_pipeline.emoji.model import EmojiModel
from fye_pipeline.emoji.network_training import embed
from fye_pipeline.emoji.people import CROP, People
from fye_pipeline.emoji.sampling import sample_batch
from fye_pipeline.emoji.training import Pairs
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.bend import Bender
from fye_pipeline.landmarks.expression import landmark_ratios
from fye_pipeline.landmarks.topology import (
    FACE_OVAL,
    LEFT_BROW,
    LEFT_EYE,
    LEFT_IRIS,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_IRIS,
)
from fye_pipeline.storage.files import write_text

Picture = NDArray[np.uint8]
Floats = NDArray[np.floating]
Swap = Callable[[Picture, Floats, Picture, Floats], Picture]

SWAPPED, PLAIN = "crops.npy", "crops_before_swap.npy"
EXP_LIMIT, LMS_LIMIT = 0.05, 0.18  # the paper's, for faces of 150 pixels and more
KEPT_SHARE = 0.83  # of the paper's pairs
LOOKALIKE = 0.9  # quantile of strangers' identity scores above which a made picture is too like the person


@dataclass(frozen=True)
class IterateConfig:
    """count: how many pairs are made. keep: the share that stays, by rank; None takes the paper's absolute limits.

    swap: `none`, `recolour`, `mesh`, or `module:function` of (picture, landmarks, donor, donor's landmarks) -> picture.
    """

    count: int = 2000
    steps: int = 10
    guidance: float = 3.0
    batch: int = 16
    swap: str = "recolour"
    keep: float | None = KEPT_SHARE
    seed: int = 0
    interval: int = 3  # of the cache: one full step in so many; 1 is without


@dataclass(frozen=True)
class Score:
    """One made picture. person, take: the target's; identity, donor: who it was made as, and swapped to.

    exp, lms: how far its expression is from the target's; id: how like the person it still is.
    """

    number: int
    person: int
    take: int
    identity: int
    donor: int
    seed: int
    exp: float
    lms: float
    id: float


@dataclass(frozen=True)
class Verdict:
    """reason: None where the pair is kept, else `exp`, `lms` or `lookalike`."""

    score: Score
    reason: str | None

    def line(self) -> str:
        """A line of the manifest."""
        return json.dumps(asdict(self.score) | {"kept": self.reason is None, "reason": self.reason})


def judge(scores: Sequence[Score], strangers: Floats, keep: float | None = KEPT_SHARE) -> list[Verdict]:
    """Which pairs stay: those whose expression is near, and whose person is not.

    strangers: identity scores of different people, for the limit of likeness. keep: the share that stays of what the
    worse of Exp and LMS (each over its median) ranks; None keeps Exp <= 0.05 and LMS <= 0.18. The paper prints those
    limits as what it *excludes*; smaller is better, so it is what it keeps.
    """
    exp, lms = np.array([s.exp for s in scores]), np.array([s.lms for s in scores])
    if keep is None:
        ratios = np.stack([exp / EXP_LIMIT, lms / LMS_LIMIT], -1)
        limit = 1.0
    else:
        ratios = np.stack([exp / max(np.median(exp), 1e-9), lms / max(np.median(lms), 1e-9)], -1)
        limit = float(np.quantile(ratios.max(-1), keep))
    too_like = float(np.quantile(strangers, LOOKALIKE))
    verdicts = []
    for score, row in zip(scores, ratios, strict=True):
        reason = None
        if row.max() > limit:
            reason = ("exp", "lms")[int(row.argmax())]
        elif score.id > too_like:
            reason = "lookalike"
        verdicts.append(Verdict(score, reason))
    return verdicts


def load_swap(name: str) -> Swap | None:
    """The swap of a name. UserError where a user's own cannot be imported."""
    if name in ("none", "recolour", "mesh"):
        return {"none": None, "recolour": recolour, "mesh": mesh_swap}[name]
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--swap must be none, recolour, mesh or module:function, got {name!r} ({error}).") from error


def recolour(picture: Picture, landmarks: Floats, donor: Picture, donor_landmarks: Floats) -> Picture:
    """The donor's colours of skin, lips, brows and irises on the picture's face; its shapes stay, so its expression.

    Pictures [H, W, 3] with landmarks [478, >= 2] in 0..1; mean and spread of each region are moved in L*a*b*.
    """
    result = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    source = result.copy()
    wanted = cv2.cvtColor(donor, cv2.COLOR_RGB2LAB).astype(np.float32)
    for own, other in zip(_regions(picture, landmarks), _regions(donor, donor_landmarks), strict=True):
        if own.sum() < 4 or other.sum() < 4:
            continue
        here, there = source[own > 0.5], wanted[other > 0.5]
        spread = np.clip((there.std(0) + 2) / (here.std(0) + 2), 0.5, 2)
        moved = (source - here.mean(0)) * spread + there.mean(0)
        soft = cv2.GaussianBlur(own, (0, 0), max(len(picture) / 160, 0.5))[..., None]
        result = result * (1 - soft) + moved * soft
    return np.asarray(cv2.cvtColor(result.clip(0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB), np.uint8)


def _regions(picture: Picture, landmarks: Floats) -> list[NDArray[np.float32]]:
    """Masks of skin, lips, brows and irises. -> four of [H, W] in {0, 1}."""
    height, width = picture.shape[:2]
    points = np.asarray(landmarks, np.float64)[:, :2] * (width, height)

    def area(*chains: Iterable[int]) -> NDArray[np.float32]:
        mask = np.zeros((height, width), np.float32)
        for chain in chains:
            cv2.fillConvexPoly(mask, cv2.convexHull(points[list(chain)].astype(np.float32)).round().astype(np.int32), 1)
        return mask

    lips = area([*OUTER_LIPS[0], *OUTER_LIPS[1]])
    brows = area([*LEFT_BROW[0], *LEFT_BROW[1]], [*RIGHT_BROW[0], *RIGHT_BROW[1]])
    eyes = area([*LEFT_EYE[0], *LEFT_EYE[1]], [*RIGHT_EYE[0], *RIGHT_EYE[1]])
    irises = area(LEFT_IRIS, RIGHT_IRIS) * eyes
    skin = area(FACE_OVAL) * (1 - np.maximum(np.maximum(lips, brows), eyes))
    return [skin, lips, brows, irises]


def mesh_swap(picture: Picture, landmarks: Floats, donor: Picture, donor_landmarks: Floats) -> Picture:
    """The donor's face bent to the picture's landmarks and blended in by its gradients (Poisson)."""
    size = picture.shape[0]
    bent = Bender(np.asarray(donor_landmarks)).to(np.asarray(landmarks), size).apply(donor)
    points = np.asarray(landmarks, np.float64)[list(FACE_OVAL), :2] * size
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points.round().astype(np.int32)), 255)
    mask[:2], mask[-2:], mask[:, :2], mask[:, -2:] = 0, 0, 0, 0
    if not mask.any():
        return picture
    x, y, w, h = cv2.boundingRect(mask)
    return np.asarray(cv2.seamlessClone(bent, picture, mask, (x + w // 2, y + h // 2), cv2.NORMAL_CLONE), np.uint8)


def compare_expressions(
    landmarks: Tensor, scores: Tensor, other_landmarks: Tensor, other_scores: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exp (mean over 52) and LMS of pictures, one by one. [B, 478, 2], [B, 52] twice -> [B], [B]."""
    exp = (scores - other_scores).abs().mean(-1).double().numpy()
    one, two = landmark_ratios(landmarks.numpy()), landmark_ratios(other_landmarks.numpy())
    return exp, np.abs(one - two).sum(-1)


class Iteration:
    """Makes the pairs of a folder, batch by batch; what is there already is taken as it is."""

    def __init__(self, model: EmojiModel, people: People, folder: Path, config: IterateConfig) -> None:
        self.model, self.people, self.folder, self.config = model, people, folder, config
        self.swap = load_swap(config.swap)
        self.identities = torch.cat(
            [embed(model.identity_net, people.pictures[p, :1], people.landmarks[p, :1]) for p in range(len(people))]
        )

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Verdict]:
        """Make what is missing, judge all, and write `manifest.jsonl`. UserError where the folder is another's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        done = self._done()
        for first in range(len(done), self.config.count, self.config.batch):
            done += self._make(range(first, min(first + self.config.batch, self.config.count)))
            on_progress(len(done), self.config.count)
        scores = [Score(**json.loads(line)) for line in done]
        verdicts = judge(scores, strangers(self.identities), self.config.keep)
        write_text(self.folder / "manifest.jsonl", "".join(f"{verdict.line()}\n" for verdict in verdicts))
        return verdicts

    def _check_settings(self) -> None:
        told = json.dumps(asdict(self.config) | {"people": len(self.people)}, sort_keys=True)
        path = self.folder / "settings.json"
        if path.exists() and path.read_text(encoding="utf-8") != told:
            raise UserError(f"{self.folder} holds pairs made with other settings; choose another folder.")
        path.write_text(told, encoding="utf-8")

    def _done(self) -> list[str]:
        """The lines of whole batches; a line whose picture a kill left out is made again."""
        path = self.folder / "scores.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        if len(whole) < self.config.count:
            del whole[len(whole) // self.config.batch * self.config.batch :]
        if whole != lines:
            write_text(path, "".join(f"{line}\n" for line in whole))
        return whole

    def _crops(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", np.uint8, (self.config.count, CROP, CROP, 3)).flush()
        return np.load(path, mmap_mode="r+")

    def _make(self, numbers: range) -> list[str]:
        plan = [self._plan(number) for number in numbers]
        who, take, other, donor, seeds = (list(column) for column in zip(*plan, strict=True))
        people, model = self.people, self.model
        states = encoder_states(model.encoder, as_batch(people.crops[who, take]))
        prompts = [people.prompts[p][k] for p, k in zip(who, take, strict=True)]
        how = {"steps": self.config.steps, "guidance": self.config.guidance}
        pictures = sample_batch(model, prompts, self.identities[other], states, seeds, **how)
        with torch.no_grad():
            marks, shapes = model.landmark_net(as_batch(pictures))
            true_marks, true_shapes = model.landmark_net(as_batch(people.pictures[who, take]))
        likeness = (embed(model.identity_net, pictures, marks.numpy()) * self.identities[who]).sum(-1)
        exp, lms = compare_expressions(marks, shapes, true_marks, true_shapes)
        swapped, plain = self._crops(SWAPPED), self._crops(PLAIN)
        for row, number in enumerate(numbers):
            picture = pictures[row]
            depth = people.landmarks[who[row], take[row], :, 2:]  # the made face is turned as the target's is
            points = np.concatenate([marks[row].numpy(), depth], axis=1)
            plain[number] = expression_crop(picture, points, CROP)
            if self.swap is not None:
                donated, places = people.pictures[donor[row], 0], people.landmarks[donor[row], 0]
                picture = self.swap(picture, points, np.ascontiguousarray(donated), places)
            swapped[number] = expression_crop(picture, points, CROP)
        for crops in (swapped, plain):
            crops.flush()
        figures = [[round(float(value), 6) for value in row] for row in zip(exp, lms, likeness, strict=True)]
        scores = [Score(n, *told, *row) for n, told, row in zip(numbers, plan, figures, strict=True)]
        lines = [json.dumps(asdict(score)) for score in scores]
        with (self.folder / "scores.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return lines

    def _plan(self, number: int) -> tuple[int, int, int, int, int]:
        """Person, take, whose identity the picture is made with, whose colours it gets, and its noise's seed."""
        rng = np.random.default_rng([73, self.config.seed, number])
        count, takes = self.people.pictures.shape[:2]
        who, take = int(number % count), int(1 + number // count % (takes - 1))
        other, donor = (int((who + rng.integers(1, count)) % count) for _ in range(2))
        return who, take, other, donor, int(rng.integers(2**31))


def strangers(identities: Tensor, shift: int = 1) -> NDArray[np.float64]:
    """Identity scores of people with the next in line. [P, D] -> [P]."""
    return (identities * identities.roll(shift, 0)).sum(-1).double().numpy()


def read_pairs(folder: Path, *, judged: bool = True, swapped: bool = True) -> Pairs:
    """The pairs of a finished iteration: all, where `judged` is off; as they were made, where `swapped` is.

    UserError where it is not finished.
    """
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished pairs; make them with `fye emoji iterate`.")
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    rows = [row for row in lines if row["kept"] or not judged]
    crops = np.load(folder / (SWAPPED if swapped else PLAIN), mmap_mode="r")
    return Pairs(np.array([[row["person"], row["take"]] for row in rows]), crops[[row["number"] for row in rows]])

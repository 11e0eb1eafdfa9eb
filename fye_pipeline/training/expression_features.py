"""Training of the extractor `rendered`: the rendered world redraws everything but one factor of a face.

Two renders with one factor in common and another person, light and motion otherwise are a positive pair (InfoNCE). As
the world knows the truth, every vector also has to tell its own factor, and to be told by it; what it shares with the
other factors' truth and vectors is taken out (cross-covariance).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn import functional as F

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.rendered_features import (
    DIMS,
    SIZE,
    FeatureNet,
    aligned_faces,
    as_pictures,
    features_of,
)
from fye_pipeline.training.checkpointing import Progress, load_checkpoint, save_checkpoint
from fye_pipeline.training.config import learning_rate
from fye_pipeline.world import EXPRESSIONS, Motion, RenderedClip, World, sample_motion
from fye_pipeline.world.motion import HOME

Report = Callable[[str], None]
Truth = dict[str, NDArray[np.float32]]

_EYES, _LIPS = range(4), range(10, 19)  # of the world's expressions
_EMOTION = (*range(4, 10), 19)
_WAY = np.array([1.2, 0.9, 2.0])  # cm that weigh as one
_TURN = 0.2  # radians that weigh as one
TRUTH_DIMS = {"head": 6, "eye": 6, "emotion": len(_EMOTION), "lip": len(_LIPS)}
TREMBLE = 0.002  # of the landmarks that faces are aligned by, in picture widths
GROUP = 1 + len(FACTORS)  # renders: one, and for each factor another that shares it
TEMPERATURE = 0.15
STATES = "states"
WEIGHTS = "features.safetensors"


@dataclass(frozen=True)
class FeatureConfig:
    """How the extractor is trained: minutes on one core."""

    groups: int = 3000
    steps: int = 1500
    batch: int = 24  # groups
    lr: float = 1.5e-3
    seed: int = 0
    contrast: float = 0.1  # weights in the loss
    told: float = 0.3
    apart: float = 4.0
    checkpoint_every: int = 100
    stop_after: int | None = None  # steps, to go on later


def truth_of(clip: RenderedClip, motion: Motion) -> Truth:
    """What each vector is to know, about one in size. -> [F, d] each.

    head: the detector's turn and way; eye: gaze as far as the lids show it, blinks, eyes wide; emotion: brows, cheeks,
    nose; lip: jaw and mouth.
    """
    pose, expression = np.asarray(clip.sequence.transforms), motion.expression
    turn = Rotation.from_matrix(pose[:, :3, :3]).as_rotvec() / _TURN
    shown = 1 - np.clip(expression[:, :2].mean(1, keepdims=True), 0, 1)
    truth = {
        "head": np.hstack([turn, (pose[:, :3, 3] - HOME) / _WAY]),
        "eye": np.hstack([motion.gaze * shown, expression[:, list(_EYES)]]),
        "emotion": expression[:, list(_EMOTION)],
        "lip": expression[:, list(_LIPS)],
    }
    return {name: np.asarray(value, np.float32) for name, value in truth.items()}


def mixed_motion(*seeds: tuple[int, ...]) -> Motion:
    """One frame whose head, eyes, emotion and lips come from motions of four seeds."""
    head, eye, emotion, lip = (sample_motion(*seed, frames=1) for seed in seeds)
    expression = np.zeros((1, len(EXPRESSIONS)))
    for part, numbers in ((eye, _EYES), (emotion, _EMOTION), (lip, _LIPS)):
        expression[:, list(numbers)] = part.expression[:, list(numbers)]
    return Motion(expression, eye.gaze, head.rotation, head.translation)


@dataclass(frozen=True)
class FaceData:
    """Upright faces [G, 5, 112, 112, 3], their places [G, 5, 4] and truth [G, 5, d]: a render, then those that share
    its head, eyes, emotion and lips.
    """

    faces: NDArray[np.uint8]
    places: NDArray[np.float32]
    truth: Truth

    def __len__(self) -> int:
        return len(self.faces)


def render_faces(world: World, folder: Path, groups: int, report: Report, *, split: str = "train") -> FaceData:
    """Render groups into a folder, or take what is there; all follow from the world's seed and the split."""
    meta = {"groups": groups, "split": split, "seed": world.seed, "version": world.version}
    note = folder / "meta.json"
    if not (note.exists() and json.loads(note.read_text(encoding="utf-8")) == meta):
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        faces = np.lib.format.open_memmap(folder / "faces.npy", "w+", np.uint8, (groups, GROUP, SIZE, SIZE, 3))
        places = np.empty((groups, GROUP, 4), np.float32)
        truth = {name: np.empty((groups, GROUP, d), np.float32) for name, d in TRUTH_DIMS.items()}
        for group in range(groups):
            faces[group], places[group], told = _group(world, split, group)
            for name in FACTORS:
                truth[name][group] = told[name]
            if (group + 1) % 500 == 0:
                report(f"faces: {group + 1} of {groups} groups")
        faces.flush()
        arrays: dict[str, Any] = {"places": places, **truth}
        np.savez(folder / "truth.npz", **arrays)
        note.write_text(json.dumps(meta), encoding="utf-8")
    with np.load(folder / "truth.npz", allow_pickle=False) as told:
        truth = {name: told[name] for name in FACTORS}
        return FaceData(np.load(folder / "faces.npy", mmap_mode="r"), told["places"], truth)


def _group(world: World, split: str, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], Truth]:
    """One group's faces, places and truth."""
    own = [(81, world.seed, group, 0, k) for k in range(len(FACTORS))]
    rows = []
    for member in range(GROUP):
        seeds = own if member == 0 else [(81, world.seed, group, member, k) for k in range(len(FACTORS))]
        if member:
            seeds[member - 1] = own[member - 1]
        rows.append(seen_face(world, split, group * GROUP + member, mixed_motion(*seeds), (group, member)))
    faces, places, truths = zip(*rows, strict=True)
    return np.stack(faces), np.stack(places), {name: np.stack([t[name] for t in truths]) for name in FACTORS}


def seen_face(
    world: World, split: str, person: int, motion: Motion, seed: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], Truth]:
    """One face [112, 112, 3], its place [4] and truth [d]; its landmarks tremble as a detector's."""
    clip = world.render(world.head(split, person), motion, fps=None)
    points = np.asarray(clip.sequence.landmarks)[..., :2]
    rng = np.random.default_rng([82, world.seed, *seed])
    faces, places = aligned_faces(list(clip.frames), points + rng.normal(0, TREMBLE, points.shape))
    return faces[0], places[0], {name: value[0] for name, value in truth_of(clip, motion).items()}


class Teacher(nn.Module):
    """What is thrown away after training: it reads the truth out of the vectors, and tells them from the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.ModuleDict({name: nn.Linear(DIMS[name], TRUTH_DIMS[name]) for name in FACTORS})
        self.tell = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(TRUTH_DIMS[name], 64), nn.SiLU(), nn.Linear(64, DIMS[name]))
                for name in FACTORS
            }
        )


def feature_loss(
    made: dict[str, Tensor], truth: dict[str, Tensor], teacher: Teacher, config: FeatureConfig
) -> dict[str, Tensor]:
    """The parts of the loss; made and truth [G, 5, d], with the groups' order of `FaceData`."""
    flat = {name: made[name].flatten(0, 1) for name in FACTORS}
    known = {name: truth[name].flatten(0, 1) for name in FACTORS}
    read = [F.mse_loss(teacher.read[name](flat[name]), known[name]) * _even(known[name]) for name in FACTORS]
    told = [F.mse_loss(flat[name], teacher.tell[name](known[name])) for name in FACTORS]
    contrast = [info_nce(made[name][:, 0], made[name][:, 1 + k]) for k, name in enumerate(FACTORS)]
    apart = []
    for name in FACTORS:
        for other in FACTORS:
            if other != name:
                apart.append(cross_correlation(flat[name], known[other]))
                apart.append(cross_correlation(flat[name], flat[other]))
    return {
        "read": torch.stack(read).sum(),
        "told": config.told * torch.stack(told).sum(),
        "contrast": config.contrast * torch.stack(contrast).sum(),
        "apart": config.apart * torch.stack(apart).mean(),
    }


def _even(values: Tensor) -> Tensor:
    """What makes factors of small spread count as those of large."""
    return 0.3 / values.var(dim=0).mean().clamp(min=1e-3)


def info_nce(first: Tensor, second: Tensor) -> Tensor:
    """InfoNCE of pairs [G, d]: row g of one belongs to row g of the other."""
    alike = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / TEMPERATURE
    own = torch.arange(len(first))
    return (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared correlation between the columns of [B, d] and [B, e], without what chance gives. -> a scalar."""
    first, second = ((each - each.mean(0)) / (each.std(0) + 1e-2) for each in (first, second))
    return ((first.T @ second / len(first)) ** 2).mean() - 1 / len(first)


def train_features(config: FeatureConfig, output: Path, report: Report, *, resume: bool = False) -> FeatureNet:
    """Render, train, write `features.safetensors` into a folder; goes on from its last checkpoint with `resume`."""
    world = World(CanonicalFace.load(), seed=config.seed)
    data = render_faces(world, output / "faces", config.groups, report)
    torch.manual_seed(config.seed)
    network, teacher = FeatureNet(), Teacher()
    weights = [*network.parameters(), *teacher.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=1e-2)
    accelerator, progress = Accelerator(cpu=True), Progress()
    accelerator.prepare(network, teacher, optimizer)
    accelerator.register_for_checkpointing(progress)
    states = output / STATES
    if resume and load_checkpoint(accelerator, states):
        report(f"features: resumed at step {progress.step}")
    while progress.step < min(config.steps, config.stop_after or config.steps):
        step = progress.step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.lr)
        parts = _step(data, network, teacher, config, step)
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        progress.step += 1
        if progress.step % 25 == 0:
            listed = ", ".join(f"{name} {float(value.detach()):.3f}" for name, value in parts.items())
            report(f"features {progress.step}/{config.steps}: {listed}")
        if progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
            save_checkpoint(accelerator, states, progress.step, 1)
    network.requires_grad_(False).eval().save(output / WEIGHTS)
    return network


def _step(data: FaceData, network: FeatureNet, teacher: Teacher, config: FeatureConfig, step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng([83, config.seed, step])
    chosen = np.sort(rng.choice(len(data), min(config.batch, len(data)), replace=False))
    faces = as_pictures(data.faces[chosen].reshape(-1, SIZE, SIZE, 3))
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (len(faces), 1, 1, 1))).float()
    places = torch.from_numpy(data.places[chosen].reshape(-1, 4))
    made = network((faces * gain).clamp(0, 1), places)
    grouped = {name: value.unflatten(0, (len(chosen), GROUP)) for name, value in made.items()}
    truth = {name: torch.from_numpy(data.truth[name][chosen]) for name in FACTORS}
    return feature_loss(grouped, truth, teacher, config)


# Gates


@dataclass(frozen=True)
class Gates:
    """What linear probes read out of the vectors of people that were not trained on.

    told[f][t]: R2 of factor t's truth from vector f. identity: how often one of 64 people is recognised from all four
    vectors, over chance.
    """

    told: dict[str, dict[str, float]]
    identity: float

    def passed(self) -> dict[str, bool]:
        """Own factor 0.90 (head, eye) and 0.80 (emotion, lip), a foreign one 0.15, identity three times chance."""
        own = {name: self.told[name][name] >= (0.9 if name in ("head", "eye") else 0.8) for name in FACTORS}
        foreign = max(self.told[name][other] for name in FACTORS for other in FACTORS if other != name)
        return {**own, "foreign": foreign <= 0.15, "identity": self.identity <= 3.0}

    def __str__(self) -> str:
        rows = ["| from | " + " | ".join(FACTORS) + " |", "| --- |" + " --- |" * len(FACTORS)]
        rows += [f"| {n} | " + " | ".join(f"{self.told[n][t]:.2f}" for t in FACTORS) + " |" for n in FACTORS]
        failed = [name for name, good in self.passed().items() if not good]
        rows.append(f"identity: {self.identity:.1f} times chance; gates missed: {', '.join(failed) or 'none'}")
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"passed": self.passed()}


def measure_gates(network: FeatureNet, report: Report, *, people: int = 64, takes: int = 40, seed: int = 0) -> Gates:
    """Probes on `people` held-out people with `takes` independent factors each: half of the takes fit, half test."""
    world = World(CanonicalFace.load(), seed=seed)
    faces, places, truths, whose = [], [], [], []
    for person in range(people):
        for take in range(takes):
            seeds = [(84, seed, person, take, k) for k in range(len(FACTORS))]
            face, place, truth = seen_face(world, "held", person, mixed_motion(*seeds), (person, take))
            faces.append(face)
            places.append(place)
            truths.append(truth)
            whose.append(person)
    report(f"gates: {len(faces)} faces of {people} people")
    made = features_of(network, np.stack(faces), np.stack(places))
    truth = {name: np.stack([each[name] for each in truths]) for name in FACTORS}
    fit = np.arange(len(faces)) % 2 == 0
    told = {n: {t: probe(made[n], truth[t], fit) for t in FACTORS} for n in FACTORS}
    names = np.eye(people)[whose]
    guess = _linear(np.hstack([made[name] for name in FACTORS]), names, fit)
    return Gates(told, float((guess.argmax(1) == names[~fit].argmax(1)).mean() * people))


def probe(features: NDArray[np.floating], wanted: NDArray[np.floating], fit: NDArray[np.bool_]) -> float:
    """R2 of a linear reading [N, d] -> [N, e] on the rows that it was not fitted to; at least 0.

    Columns count by their spread.
    """
    rest = ((_linear(features, wanted, fit) - wanted[~fit]) ** 2).sum()
    return max(0.0, float(1 - rest / ((wanted[~fit] - wanted[fit].mean(0)) ** 2).sum()))


def _linear(features: NDArray[np.floating], wanted: NDArray[np.floating], fit: NDArray[np.bool_]) -> NDArray[Any]:
    """Ridge regression on rows `fit`, applied to the others."""
    spread = features[fit].std(0) + 1e-6
    rows = np.hstack([(features - features[fit].mean(0)) / spread, np.ones((len(features), 1))])
    square = rows[fit].T @ rows[fit] + 1e-2 * fit.sum() * 1e-2 * np.eye(rows.shape[1])
    return rows[~fit] @ np.linalg.solve(square, rows[fit].T @ wanted[fit])

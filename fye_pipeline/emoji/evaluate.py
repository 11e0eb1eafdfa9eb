"""The table: pictures of held-out people with held-out people's expressions, measured by networks of other seeds."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet, as_batch, encoder_states
from fye_pipeline.emoji.model import EXPRESSION, EmojiModel, EmojiSettings
from fye_pipeline.emoji.network_training import embed
from fye_pipeline.emoji.pairs import compare_expressions
from fye_pipeline.emoji.people import People, render_twins
from fye_pipeline.emoji.pipeline import EmojiPipeline
from fye_pipeline.emoji.sampling import sample_batch
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.expression import blendshape_difference, ratio_difference
from fye_pipeline.landmarks.topology import FACE_OVAL
from fye_pipeline.storage.files import digest_of_file
from fye_pipeline.world import World

Picture = NDArray[np.uint8]
ROWS = ("no_expression", "base", "refined", "refined_no_swap", "refined_no_filter", "aligned", "oracle")
FIGURES = ("exp", "lms", "id", "leak", "style_leak")
FOLLOWS = ("follows_expression", "follows_identity")
IDENTITY_METRIC, LANDMARKS_METRIC = "identity_metric.safetensors", "landmarks_metric.safetensors"
BINS = 8  # of each of a and b in a colour histogram, over L in 4


@dataclass(frozen=True)
class Plan:
    """How the table is measured."""

    pairs: int = 200
    steps: int = 30
    guidance: float = 3.0
    batch: int = 20
    seed: int = 0
    cache: int | None = None


@dataclass(frozen=True)
class Judges:
    """The networks that measure: other seeds, widths and people than those that trained or conditioned."""

    identity: IdentityNet
    landmarks: LandmarkNet

    @classmethod
    def load(cls, folder: Path) -> Judges:
        """From a folder of `identity_metric.safetensors` and `landmarks_metric.safetensors`."""
        return cls(IdentityNet.load(folder / IDENTITY_METRIC), LandmarkNet.load(folder / LANDMARKS_METRIC))

    @torch.no_grad()
    def look(self, pictures: Picture) -> Seen:
        """What they see of pictures [B, H, W, 3]."""
        parts = [self.landmarks(as_batch(pictures[at : at + 64])) for at in range(0, len(pictures), 64)]
        marks, shapes = (torch.cat(each) for each in zip(*parts, strict=True))
        return Seen(marks, shapes, embed(self.identity, pictures, marks.numpy()))


@dataclass(frozen=True)
class Seen:
    """landmarks [B, 478, 2] in 0..1, blendshapes [B, 52], identities [B, D]."""

    landmarks: Tensor
    blendshapes: Tensor
    identities: Tensor


@dataclass(frozen=True)
class Asked:
    """What is asked for: row i has person `people[i]` with the expression of picture `takes[i]` of `others[i]`."""

    people: NDArray[np.int64]
    others: NDArray[np.int64]
    takes: NDArray[np.int64]
    prompts: list[str]
    seeds: list[int]


def ask(people: People, plan: Plan) -> Asked:
    """Pairs of different people, every person about equally often; prompts of any style."""
    rng = np.random.default_rng([74, plan.seed])
    count, takes = people.pictures.shape[:2]
    who = np.arange(plan.pairs) % count
    others = (who + rng.integers(1, count, plan.pairs)) % count
    which = rng.integers(1, takes, plan.pairs)
    styles = rng.integers(1, takes, plan.pairs)
    prompts = [people.prompts[p][k] for p, k in zip(who, styles, strict=True)]
    return Asked(who, others, which, prompts, [int(n) for n in rng.integers(2**31, size=plan.pairs)])


class Evaluation:
    """One table: the same people, expressions, prompts and noise in every row."""

    def __init__(self, model: EmojiModel, people: People, twins: Picture, judges: Judges, plan: Plan) -> None:
        self.model, self.people, self.judges, self.plan = model, people, judges, plan
        self.asked = ask(people, plan)
        asked = self.asked
        self.own = torch.cat([self._vector(model.identity_net, p) for p in asked.people])
        self.portraits = torch.cat([self._vector(judges.identity, p) for p in asked.people])
        self.strangers = torch.cat([self._vector(judges.identity, p) for p in asked.others])
        self.wanted = judges.look(people.pictures[asked.others, asked.takes])
        self.truth = judges.look(twins)
        self.plain: Picture | None = None

    def _vector(self, network: IdentityNet, person: int) -> Tensor:
        return embed(network, self.people.pictures[person][:1], self.people.landmarks[person][:1])

    def pictures(self, expression_scale: float, on_progress: Callable[[int, int], None]) -> Picture:
        """What the model makes of the asked pairs. -> [pairs, H, W, 3]."""
        asked, plan = self.asked, self.plan
        self.model.scale(1.0, expression_scale)
        made = []
        for start in range(0, plan.pairs, plan.batch):
            rows = slice(start, start + plan.batch)
            crops = self.people.crops[asked.others[rows], asked.takes[rows]]
            states = encoder_states(self.model.encoder, as_batch(crops))
            made.append(
                sample_batch(
                    self.model,
                    asked.prompts[rows],
                    self.own[rows],
                    states,
                    asked.seeds[rows],
                    steps=plan.steps,
                    guidance=plan.guidance,
                )
            )
            on_progress(min(start + plan.batch, plan.pairs), plan.pairs)
        return np.concatenate(made)

    def measure(self, pictures: Picture) -> dict[str, NDArray[np.float64]]:
        """The figures of a row, one by one. `plain` must be set: the pictures without the expression branch.

        follows_...: 1 where a picture is nearer to what was asked of it than to what was asked of the one before.
        """
        assert self.plain is not None
        seen = self.judges.look(pictures)
        exp, lms = compare_expressions(seen.landmarks, seen.blendshapes, self.wanted.landmarks, self.wanted.blendshapes)
        likeness = _cosines(seen.identities, self.portraits)
        other, _ = compare_expressions(
            *(seen.landmarks, seen.blendshapes),
            *(each.roll(1, 0) for each in (self.wanted.landmarks, self.wanted.blendshapes)),
        )
        stranger = _cosines(seen.identities, self.portraits.roll(1, 0))
        return {
            "exp": exp,
            "lms": lms,
            "id": likeness,
            "leak": _cosines(seen.identities, self.strangers) - _cosines(self.portraits, self.strangers),
            "style_leak": np.array(
                [style_distance(a, b, m.numpy()) for a, b, m in zip(pictures, self.plain, seen.landmarks, strict=True)]
            ),
            "follows_expression": (exp < other).astype(np.float64),
            "follows_identity": (likeness > stranger).astype(np.float64),
        }

    def floors(self) -> dict[str, float]:
        """What the true pictures get: the asked person, rendered with the asked expression."""
        seen, wanted = self.truth, self.wanted
        exp, lms = compare_expressions(seen.landmarks, seen.blendshapes, wanted.landmarks, wanted.blendshapes)
        leak = _cosines(seen.identities, self.strangers) - _cosines(self.portraits, self.strangers)
        figures = {"exp": exp, "lms": lms, "id": _cosines(seen.identities, self.portraits), "leak": leak}
        return {name: float(values.mean()) for name, values in figures.items()} | {"style_leak": 0.0}


def _cosines(one: Tensor, two: Tensor) -> NDArray[np.float64]:
    return (one * two).sum(-1).double().numpy()


def style_distance(picture: Picture, plain: Picture, landmarks: NDArray[np.floating]) -> float:
    """How differently two pictures are coloured, in skin and background: half the L1 of histograms, 0..1."""
    size = len(picture)
    inside = np.zeros((size, size), np.uint8)
    oval = (np.asarray(landmarks)[list(FACE_OVAL), :2] * size).astype(np.float32)
    cv2.fillConvexPoly(inside, cv2.convexHull(oval).round().astype(np.int32), 1)
    outside = 1 - cv2.dilate(inside, np.ones((size // 8, size // 8), np.uint8))
    distances = []
    for mask in (inside, outside):
        if not mask.any():
            continue
        tables = []
        for each in (picture, plain):
            lab = cv2.cvtColor(each, cv2.COLOR_RGB2LAB)
            table = cv2.calcHist([lab], [0, 1, 2], mask, [4, BINS, BINS], [0, 256, 64, 192, 64, 192])
            tables.append(table / max(float(table.sum()), 1.0))
        distances.append(float(np.abs(tables[0] - tables[1]).sum()) / 2)
    return float(np.mean(distances)) if distances else 0.0


def by_mediapipe(pictures: Picture, wanted: Picture, task: Path) -> dict[str, float | int]:
    """Exp and LMS by MediaPipe at four times the size, over pairs where it finds both faces."""
    with FaceLandmarkDetector(task) as detector:
        rows: list[Any] = [
            [detector.detect(np.asarray(cv2.resize(p, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC))) for p in pair]
            for pair in zip(pictures, wanted, strict=True)
        ]
    found = [row for row in rows if all(face is not None for face in row)]
    if not found:
        return {"exp_mediapipe": float("nan"), "lms_mediapipe": float("nan"), "without_face": len(rows)}
    one, two = (np.stack([face[k].blendshapes for face in found]) for k in (0, 1))
    first, second = (np.stack([face[k].landmarks for face in found]) for k in (0, 1))
    return {
        "exp_mediapipe": blendshape_difference(one, two)[1],
        "lms_mediapipe": ratio_difference(first, second),
        "without_face": len(rows) - len(found),
    }


def interval(values: NDArray[np.float64], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The middle 95 % of bootstrapped means."""
    rng = np.random.default_rng([75, seed])
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(-1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def row_files(model: Path, table: Path) -> dict[str, Path]:
    """Where the expression adapter of each row lies: the model's own for its stage, else the table's, if there.

    A branch that was trained beside the base only has seen what `base` sees, pairs of one person: it is that row.
    """
    stage = EmojiSettings.read(model).stage
    own = "base" if stage == "image_prompt" else stage
    files = {row: table / f"{row}.safetensors" for row in ROWS}
    files |= dict.fromkeys((own, "no_expression"), model / EXPRESSION)
    return {row: files[row] for row in ROWS if files[row].is_file()}


def evaluate(
    folder: Path,
    table: Path,
    plan: Plan,
    people: People,
    world: World,
    *,
    task: Path | None = None,
    keep: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda row, done, total: None,
) -> dict[str, Any]:
    """Measure every row and return the table as plain values. keep: a folder for the pictures of each row."""
    files = row_files(folder, table)
    judges = Judges.load(table)
    model = EmojiModel.load(folder)
    asked = ask(people, plan)
    twins = render_twins(world, people, asked.people, asked.others, asked.takes, seed=plan.seed)
    evaluation = Evaluation(model, people, twins, judges, plan)
    result: dict[str, Any] = {}
    shown = np.empty(0, np.uint8)
    each: dict[str, dict[str, NDArray[np.float64]]] = {}
    for row, path in files.items():  # first "no_expression", with which the others are compared
        adapter.load_branch(model.pipe.unet, 1, adapter.read_branch(path), str(path))

        def tell(done: int, total: int, row: str = row) -> None:
            on_progress(row, done, total)

        pictures = evaluation.pictures(0.0 if row == "no_expression" else 1.0, tell)
        if row == "no_expression":
            evaluation.plain = pictures
        if path == folder / EXPRESSION and row != "no_expression":
            shown = pictures
        each[row] = evaluation.measure(pictures)
        result[row] = {name: float(values.mean()) for name, values in each[row].items()}
        result[row]["interval"] = {name: interval(values) for name, values in each[row].items()}
        if task is not None:
            wanted = people.pictures[asked.others, asked.takes]
            result[row] |= by_mediapipe(pictures, wanted, task)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            np.save(keep / f"{row}.npy", pictures)
    for row in ROWS:
        if row not in result:
            gone = f"{row}.safetensors is not in {table.name}; train its stage (`fye emoji train`)"
            result[row] = {**dict.fromkeys((*FIGURES, *FOLLOWS)), "error": gone}
    cached = {}
    if plan.cache is not None:
        adapter.load_branch(model.pipe.unet, 1, adapter.read_branch(folder / EXPRESSION), EXPRESSION)
        cached = {"cached": _cached_against(evaluation, shown, plan.cache, on_progress)}
    return {
        "conditions": conditions(folder, files, plan),
        "floors": evaluation.floors(),
        "rows": {row: result[row] for row in ROWS},
        "compared": compare(each),
        **cached,
    }


def _cached_against(
    evaluation: Evaluation, pictures: Picture, interval: int, on_progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """The model's own row once more with the cache, against its pictures: how far expression and person move."""
    pipe = EmojiPipeline(evaluation.model)
    with pipe.enable_cache(N=interval) as session:
        again = evaluation.pictures(1.0, lambda done, total: on_progress("cached", done, total))
        report = session.report().to_dict()
    one, two = (evaluation.judges.look(each) for each in (pictures, again))
    exp, lms = compare_expressions(one.landmarks, one.blendshapes, two.landmarks, two.blendshapes)
    error = np.square((pictures.astype(np.float64) - again) / 255).mean((1, 2, 3))
    return {
        "N": interval,
        "exp": float(exp.mean()),
        "lms": float(lms.mean()),
        "id": float(_cosines(one.identities, two.identities).mean()),
        "psnr": float((-10 * np.log10(np.maximum(error, 1e-12))).mean()),
        "full_calls": report["full_calls"],
        "predicted_calls": report["predicted_calls"],
    }


def compare(each: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """Differences of rows, pair by pair, with their intervals: what each step of the method is worth."""
    steps = (
        ("refined", "base"),
        ("refined", "refined_no_swap"),
        ("refined", "refined_no_filter"),
        ("aligned", "refined"),
    )
    told: dict[str, Any] = {}
    for one, two in steps:
        if one in each and two in each:
            rows = {name: each[one][name] - each[two][name] for name in FIGURES}
            told[f"{one} - {two}"] = {n: [float(v.mean()), *interval(v)] for n, v in rows.items()}
    return told


def conditions(folder: Path, files: Mapping[str, Path], plan: Plan) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        **asdict(plan),
        "adapters": {row: digest_of_file(path)[:16] for row, path in files.items()},
        "model": digest_of_file(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors")[:16],
        "device": "cpu",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def describe(result: Mapping[str, Any]) -> str:
    """The table in words and columns."""
    lines = [f"{'':18}{'Exp':>8}{'LMS':>8}{'ID':>8}{'leak':>8}{'style':>8}"]
    for name, row in {**result["rows"], "floor": result["floors"]}.items():
        figures = [f"{row[figure]:8.4f}" for figure in FIGURES] if row["exp"] is not None else [f"  {row['error']}"]
        lines.append(f"{name:18}" + "".join(figures))
    return "\n".join(lines)


def write(result: Mapping[str, Any], path: Path | None) -> None:
    """As JSON, where a path is given; what is not a number becomes null."""
    if path is None:
        return

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    path.write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")

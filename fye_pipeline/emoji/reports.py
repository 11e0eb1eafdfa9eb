"""The measurements that `fye emoji` prints, from a model's folder: the table of stages, and the layers."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fye_pipeline.emoji.evaluate import Evaluation, Judges, Plan, ask, evaluate
from fye_pipeline.emoji.layers import choose_layers, group_energies, measured_by, ranked
from fye_pipeline.emoji.model import EmojiModel
from fye_pipeline.emoji.people import People, render_people, render_twins
from fye_pipeline.emoji.training import latents_of
from fye_pipeline.emoji.workspace import PEOPLE
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.progress import OnProgress
from fye_pipeline.world import World

TABLE = "benchmarks/assets/emoji"


def table_folder(given: Path | None) -> Path:
    """Where the rows' adapters and the measuring networks lie: as given, or in a checkout. UserError where not."""
    folder = given or Path(__file__).resolve().parent.parent.parent / TABLE
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the table's weights lie in {TABLE} of a checkout: name them by --table.")
    return folder


def held_people(world: World, folder: Path, count: int, on_progress: OnProgress) -> People:
    """People whom no network has seen."""
    meta = replace(PEOPLE["held"], people=min(count, PEOPLE["held"].people))
    return render_people(world, folder, meta, lambda done, total: on_progress("people", done, total))


def measure_table(
    model: Path, table: Path | None, plan: Plan, *, task: Path | None, keep: Path | None, on_progress: OnProgress
) -> dict[str, Any]:
    """`fye emoji evaluate rendered`: see `evaluate`."""
    weights = table_folder(table)
    world = World(CanonicalFace.load(), size=128)
    with tempfile.TemporaryDirectory() as folder:
        people = held_people(world, Path(folder), plan.pairs, on_progress)
        return evaluate(model, weights, plan, people, world, task=task, keep=keep, on_progress=on_progress)


def measure_layers(folder: Path, table: Path | None, pairs: int, on_progress: OnProgress) -> tuple[str, dict[str, Any]]:
    """`fye emoji layers`: what every group adds, and the set that carries the expression. -> words, plain values."""
    weights = table_folder(table)
    world = World(CanonicalFace.load(), size=128)
    model = EmojiModel.load(folder)
    plan = Plan(pairs=pairs)
    with tempfile.TemporaryDirectory() as place:
        people = held_people(world, Path(place), max(pairs, 32), on_progress)
        latents = latents_of(people, Path(place) / "latents.npy", model.pipe.vae)
        energies = group_energies(model, people, latents)
        asked = ask(people, plan)
        twins = render_twins(world, people, asked.people, asked.others, asked.takes, seed=plan.seed)
        evaluation = Evaluation(model, people, twins, Judges.load(weights), plan)
        order = ranked(energies)
        evaluation.plain = evaluation.pictures(0.0, lambda done, total: None)
        measure = measured_by(evaluation)
        done = 0

        def counted(layers: Any) -> dict[str, float]:
            nonlocal done
            done += 1
            on_progress("sets of layers", done, None)
            return measure(layers)

        choice = choose_layers(order, counted)
        wrong = None if choice.layers is None else measure(tuple(order[-len(choice.layers) :]))
    lines = [f"{'group':28}{'F':>8}{'E':>12}{'Y':>12}{'E / Y':>8}"]
    table_rows = {energy.group: energy for energy in energies}
    for group in order:
        e = table_rows[group]
        lines.append(f"{group:28}{e.face:8.2f}{e.expression:12.3e}{e.style:12.3e}{e.rank:8.2f}")
    chosen = "all of them" if choice.layers is None else ", ".join(choice.layers)
    lines.append(f"expression layers: {chosen} ({choice.reason})")
    result = {
        "groups": [asdict(energy) | {"rank": energy.rank} for energy in energies],
        "order": order,
        "layers": None if choice.layers is None else list(choice.layers),
        "reason": choice.reason,
        "tried": list(choice.tried),
        "wrong": wrong,
        "conditions": asdict(plan),
    }
    return "\n".join(lines), result

"""The tables of docs/several-people.md, from benchmarks/results: FantasyPortrait's figures, ours, and few steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import conditions, number, table

Data = dict[str, Any]
PEOPLE_HEAD = ("row", "LMD x1e-3", "MAE deg", "AED x1e-2", "APD rad", "L1", "SSIM", "leak pixels", "leak landmarks")
BENCH_HEAD = ("", "LMD x1e-3", "MAE deg", "AED x1e-2", "APD rad", "leak pixels", "leak landmarks", "no face")
CROSS_HEAD = ("", "identity", "AED x1e-2", "MAE deg", "LMD x1e-3", "LMD to the other's driver", "faces")
SIGNAL_HEAD = ("", "eyes", "brows", "mouth")
STEPS_HEAD = ("model", "steps", "UNet calls", "SSIM", "L1", "AED", "landmarks", "PSNR to 30 steps", "time")


def people(data: Data) -> str:
    """`fye evaluate rendered --people 2`."""
    rows = [[f"`{name}`", *_figures(row, 3), *_pixels(row), *_leak(row)] for name, row in data["rows"].items()]
    return f"{_told(data)}\n\n{table(PEOPLE_HEAD, rows)}"


def exprbench(data: Data) -> str:
    """`fye evaluate exprbench` on rendered heads: one face, then several."""
    titles = {"single": "one face", "multi": "two faces"}
    rows = [
        [f"{titles[kind]}, `{name}`", *_figures(row, 2), *_leak(row), number(row.get("frames_without_face"), 1)]
        for kind in titles
        for name, row in data.get(kind, {}).items()
    ]
    settings = data["conditions"]["settings"]
    told = f"{data['conditions']['entries']} entries, {settings['frames']} frames, {settings['steps']} steps"
    return f"Conditions: {told}, seed {settings['seed']}; {len(data['failed'])} failed.\n\n{table(BENCH_HEAD, rows)}"


def cross_identity(data: Data) -> str:
    """`python -m benchmarks.cross_identity`."""
    rows = [
        [
            row["name"],
            number(row["identity"], 3),
            number(_times(row["aed"], 100), 2),
            number(row["mae"], 2),
            number(_times(row["lmd"], 1000), 2),
            number(_times(row["lmd_other"], 1000), 2),
            str(row["faces"]),
        ]
        for row in data["rows"]
    ]
    return f"{conditions(data['conditions'])}\n\n{table(CROSS_HEAD, rows)}"


def branch_signal(data: Data) -> str:
    """`python -m benchmarks.branch_signal`."""
    rows = [[row["name"], *(number(row[part], 3) for part in SIGNAL_HEAD[1:])] for row in data["rows"]]
    return f"{conditions(data['conditions'])}\n\n{table(SIGNAL_HEAD, rows)}"


def few_steps(data: Data) -> str:
    """`python -m benchmarks.few_steps`."""
    rows = [
        [
            row["name"],
            str(row["steps"]),
            str(row["calls"]),
            number(row["ssim"], 4),
            number(row["l1"], 4),
            number(row["aed"], 4),
            number(row["landmark_error"], 4),
            "same" if row["psnr"] > 99 else number(row["psnr"], 1),
            number(row["time_ratio"], 2, suffix="x"),
        ]
        for row in data["rows"]
    ]
    return f"{conditions(data['conditions'])}\n\n{table(STEPS_HEAD, rows)}"


TABLES: Mapping[str, tuple[str, str, Callable[[Data], str]]] = {
    "people": (
        "Features, masks and landmarks",
        "fye evaluate rendered --people 2 --clips 6 --steps 4 --json benchmarks/results/people.json",
        people,
    ),
    "exprbench": (
        "ExprBench",
        "fye evaluate exprbench --singles 40 --multis 20 --frames 8 --steps 4 --json benchmarks/results/exprbench.json",
        exprbench,
    ),
    "cross_identity": (
        "Another head's driver, and a face in company",
        "python -m benchmarks.cross_identity --clips 6 --steps 4 --json benchmarks/results/cross_identity.json",
        cross_identity,
    ),
    "branch_signal": (
        "How far the branch gets: error of the first step's latents",
        "python -m benchmarks.branch_signal --json benchmarks/results/branch_signal.json",
        branch_signal,
    ),
    "few_steps": (
        "Few steps",
        "python -m benchmarks.few_steps --clips 5 --json benchmarks/results/few_steps.json",
        few_steps,
    ),
}


def document(results: Path) -> str:
    """Every table with what it is of; of an absent file, the command that makes it."""
    parts = []
    for name, (title, command, tell) in TABLES.items():
        path = results / f"{name}.json"
        made = f"Not measured in this checkout: `{command}` does it."
        if path.is_file():
            made = f"`{command}`\n\n{tell(json.loads(path.read_text(encoding='utf-8')))}"
        parts.append(f"### {title}\n\n{made}")
    return "\n\n".join(parts)


def _figures(row: Data, digits: int) -> list[str]:
    return [
        number(_times(row.get("lmd"), 1000), digits),
        number(row["mae"], digits),
        number(_times(row["aed"], 100), digits),
        number(row["apd"], 3),
    ]


def _pixels(row: Data) -> list[str]:
    return [number(row["l1"], 4), number(row["ssim"], 3)]


def _leak(row: Data) -> list[str]:
    leak = row.get("leak") or {}
    return [number(leak.get(part), 3) for part in ("pixels", "landmarks")]


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _told(data: Data) -> str:
    given = data["conditions"]
    return (
        f"Conditions: {given['clips']} scenes of {given['people']} held-out people, {given['frames']} frames, "
        f"{given['steps']} steps, guidance {given['guidance']:g}, seed {given['seed']}; {given['device']}, torch "
        f"{given['versions']['torch']}."
    )

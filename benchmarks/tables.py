"""Write the results into the documents: README.md, benchmarks/README.md and docs/several-people.md.

    python -m benchmarks.tables [--check] [--results FOLDER]

Text between the markers is replaced, the rest of a document stays; pictures that show other rows are drawn anew.
`--check` writes nothing and ends with 1 where a document is not what the results say. Nothing is left out for being
bad: every row of a file stands in its table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import people_tables, report_tables, summary
from benchmarks.common import ROOT
from benchmarks.plots.error_per_step import draw_curves
from benchmarks.plots.quality_speed import draw_all

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: made by `python -m benchmarks.tables` -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Section:
    """One file of results: its title, what makes it, and how it is told."""

    name: str
    title: str
    command: str
    tell: Callable[[dict[str, Any], report_tables.Pictures], str]


SECTIONS = (
    Section(
        "acceleration",
        "Speed and fidelity, beside every rival",
        "python -m benchmarks.acceleration --json benchmarks/results/acceleration.json",
        report_tables.acceleration,
    ),
    Section(
        "schedules",
        "Which full steps, by sampler and guidance",
        "python -m benchmarks.schedules --json benchmarks/results/schedules.json",
        report_tables.schedules,
    ),
    Section(
        "ablation",
        "What each setting does",
        "python -m benchmarks.ablation --json benchmarks/results/ablation.json",
        report_tables.ablation,
    ),
    Section(
        "evaluation",
        "What the shipped model makes",
        "fye evaluate rendered --N 3 --json benchmarks/results/evaluation.json",
        report_tables.evaluation,
    ),
    Section(
        "latency",
        "Time of a run on published sizes",
        "python -m benchmarks.latency --quick --json benchmarks/results/latency.json",
        report_tables.latency,
    ),
    Section(
        "kernels",
        "Kernels beside the memory bandwidth",
        "python -m benchmarks.kernels --json benchmarks/results/kernels.json",
        report_tables.kernels,
    ),
    Section(
        "compiled_kernels",
        "Kernels as they are compiled",
        "python -m benchmarks.compiled_kernels --json benchmarks/results/compiled_kernels.json",
        report_tables.compiled_kernels,
    ),
)


def load(results: Path) -> dict[str, dict[str, Any]]:
    """The files that are there, by name."""
    paths = {section.name: results / f"{section.name}.json" for section in SECTIONS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def document(data: dict[str, dict[str, Any]], results: Path) -> str:
    """Every table, for benchmarks/README.md; of an absent file, the command that makes it."""
    parts = []
    pictures = report_tables.Pictures(results, "results")
    for section in SECTIONS:
        told = section.tell(data[section.name], pictures) if section.name in data else _absent(section)
        parts.append(f"## {section.title}\n\n{told}")
    return "\n\n".join(parts)


def short(data: dict[str, dict[str, Any]], results: Path) -> str:
    """The table of README.md."""
    pictures = report_tables.Pictures(results, "benchmarks/results")
    if "acceleration" not in data:
        return _absent(SECTIONS[0])
    return summary.tell(data["acceleration"], pictures)


def _absent(section: Section) -> str:
    return f"Not measured in this checkout: `{section.command}` does it."


def replaced(text: str, made: str, name: str) -> str:
    """A document with `made` between its markers. ValueError where it does not have each marker once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{name} must have {BEGIN!r} and, after it, {END!r} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def documents(results: Path) -> dict[Path, str]:
    """What each document must say."""
    data = load(results)
    made = {
        ROOT / "benchmarks" / "README.md": document(data, results),
        ROOT / "README.md": short(data, results),
        ROOT / "docs" / "several-people.md": people_tables.document(results),
    }
    return {path: replaced(path.read_text(encoding="utf-8"), text, path.name) for path, text in made.items()}


def draw_stale(results: Path) -> list[Path]:
    """Draw the pictures that do not show the rows of the results. -> the files"""
    data, written = load(results), []
    if "acceleration" in data:
        written += draw_all(data["acceleration"], results, only_stale=True)
    if "ablation" in data:
        written += draw_curves(data["ablation"], results / "ablation", only_stale=True)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a document differs")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    if not options.check:
        for path in draw_stale(options.results):
            print(f"{path}: drawn")
    changed = {
        path: text for path, text in documents(options.results).items() if path.read_text(encoding="utf-8") != text
    }
    for path, text in changed.items():
        print(f"{path}: {'differs from the results' if options.check else 'written'}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if options.check and changed else 0)


if __name__ == "__main__":
    main()

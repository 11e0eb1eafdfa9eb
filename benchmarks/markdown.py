"""Markdown from rows: tables, figures with their conditions, pictures for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Conditions that are said in words of their own, or stand elsewhere.
_SAID = {
    *("device", "threads", "timer", "platform", "python", "versions", "cuda", "commit", "quick", "finished"),
    *("titles", "claims", "models", "lpips", "unit"),
}
_VERSIONS = ("torch", "triton", "diffusers", "transformers", "DeepCache", "tomesd")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; text left, figures right."""
    figures = [_is_figures([row[index] for row in rows]) for index in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---:" if f else "---" for f in figures) + " |"]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def _is_figures(cells: Sequence[str]) -> bool:
    return all(not cell or cell[0].isdigit() or cell in ("-", "same") for cell in cells)


def number(value: float | None, digits: int, *, suffix: str = "") -> str:
    """Digits after the point; "-" where there is no figure."""
    return "-" if value is None else f"{value:.{digits}f}{suffix}"


def decibels(value: float | None) -> str:
    """100 dB is the least error that is told: the two are the same."""
    return "same" if value is not None and value > 99.9 else number(value, 1)


def spread(values: Sequence[float] | None, digits: int) -> str:
    """ " (least to greatest)" of several measurements; nothing for one."""
    if not values or len(values) < 2 or min(values) > 99.9:
        return ""
    return f" ({min(values):.{digits}f} to {max(values):.{digits}f})"


def conditions(given: dict[str, Any], *more: str) -> str:
    """One sentence with what decided the figures."""
    versions = given.get("versions", {})
    parts = [str(given.get("device", "an unknown device"))]
    if given.get("threads"):
        parts.append(f"{given['threads']} thread{'s' if given['threads'] > 1 else ''}")
    if given.get("timer"):
        parts.append(given["timer"])
    if given.get("python"):
        parts.append(f"Python {given['python']}")
    parts += [f"{name} {versions[name]}" for name in _VERSIONS if name in versions]
    parts += [f"CUDA {given['cuda']}"] if given.get("cuda") else []
    parts += [f"commit {given['commit']}"] if given.get("commit") else []
    parts += ["short form"] if given.get("quick") else []
    parts += ["not finished"] if given.get("finished") is False else []
    parts += [f"{name.replace('_', ' ')} {_value(value)}" for name, value in given.items() if name not in _SAID]
    return "Conditions: " + "; ".join([*parts, *more]) + "."


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value)) if all(isinstance(v, int) for v in value) else ", ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(folder: str, name: str, alternative: str) -> str:
    """A picture that follows the page's colours."""
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">\n'
        f'  <img alt="{alternative}" src="{folder}/{name}-light.svg">\n'
        "</picture>"
    )


def without_empty(head: Sequence[str], cells: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that hold nothing in any row."""
    kept = [i for i in range(len(head)) if any(row[i] != "-" for row in cells) or i == 0]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in cells]

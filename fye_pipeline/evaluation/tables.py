"""Tables of figures: for a terminal and as Markdown; a figure that was not measured says what it needs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rich.table
from rich import box
from rich.console import Console

ARROWS = {"up": "↑", "down": "↓", "": ""}


@dataclass(frozen=True)
class Column:
    """name: key of the figure. title: with its unit. form: a format specification. better: up, down, "" for neither."""

    name: str
    title: str
    form: str
    better: str = ""

    @property
    def heading(self) -> str:
        """The title and which way is better."""
        return f"{self.title}{ARROWS[self.better]}"


@dataclass(frozen=True)
class Table:
    """rows: name -> figures by column name. needs: column name -> what is missing for it ("LPIPS weights")."""

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, Any]]
    needs: Mapping[str, str] = field(default_factory=dict)

    def cell(self, row: str, column: Column) -> str:
        """A figure as text; "n/a" where there is none, with what it needs where that is known."""
        value = self.rows[row].get(column.name)
        if value is not None:
            return format(value, column.form)
        need = self.needs.get(column.name)
        return f"n/a: needs {need}" if need else "n/a"

    def __str__(self) -> str:
        """For a terminal: what columns need stands below, where it would widen them."""
        table = rich.table.Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for column in self.columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for name in self.rows:
            table.add_row(name, *("n/a" if self._lacks(name, c) else self.cell(name, c) for c in self.columns))
        out = Console(file=io.StringIO(), width=40 + 12 * len(self.columns), no_color=True, highlight=False)
        out.print(table)
        assert isinstance(out.file, io.StringIO)
        lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
        lines += [f"{c.title} n/a: needs {self.needs[c.name]}" for c in self.columns if self._any_lacks(c)]
        return "\n".join(line for line in lines if line)

    def markdown(self) -> str:
        """As a GitHub table."""
        heads = ["", *(column.heading for column in self.columns)]
        lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(self.columns)]
        for name in self.rows:
            cells = [_escape(name), *(self.cell(name, column) for column in self.columns)]
            lines.append("| " + " | ".join(cells) + " |")
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def _lacks(self, row: str, column: Column) -> bool:
        return self.rows[row].get(column.name) is None and column.name in self.needs

    def _any_lacks(self, column: Column) -> bool:
        return any(self._lacks(row, column) for row in self.rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")

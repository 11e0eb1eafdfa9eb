"""Parts done by several processes: tools are opened once each and put away, a process that dies is told of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fye_pipeline.batch.pool import run_parts


@dataclass(frozen=True)
class Tools:
    """Notes when a process opens and closes them; a negative part ends its process."""

    folder: Path

    @contextmanager
    def open(self) -> Iterator[Callable[[int], int]]:
        (self.folder / f"opened {os.getpid()}").touch(exist_ok=False)
        yield self.work
        (self.folder / f"closed {os.getpid()}").touch()

    def work(self, part: int) -> int:
        if part < 0:
            os._exit(3)
        return part * part


def test_every_process_opens_its_tools_once_and_puts_them_away(tmp_path: Path) -> None:
    assert sorted(run_parts(Tools(tmp_path).open, range(6), jobs=2)) == [(k, k * k) for k in range(6)]
    names = {path.name for path in tmp_path.iterdir()}
    opened = {name.split()[1] for name in names if name.startswith("opened")}
    assert opened
    assert names == {f"{word} {number}" for word in ("opened", "closed") for number in opened}
    assert str(os.getpid()) not in opened


def test_a_process_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a process died; it may lack memory: use fewer jobs"):
        list(run_parts(Tools(tmp_path).open, [1, -1], jobs=2))

"""Processes forked from one that has imported everything: each begins at once, and can be stopped and killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

_PRELOADED = [
    "fye_pipeline.cli.main",
    "fye_pipeline.batch.workers",
    "fye_pipeline.animate.renderer",
    "fye_pipeline.pipeline",
    "fye_pipeline.training.loop",
]
_FORKSERVER = multiprocessing.get_context("forkserver")


def warm_context(method: str | None = None) -> ForkServerContext:
    """In place of `multiprocessing.get_context`, whichever method is asked for."""
    _FORKSERVER.set_forkserver_preload(_PRELOADED)
    return _FORKSERVER


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the project's own worker processes begin warm, too."""
    from fye_pipeline.batch import pool, workers
    from fye_pipeline.training import prepare

    for module in (multiprocessing, workers, pool, prepare):
        monkeypatch.setattr(module, "get_context", warm_context)


@contextmanager
def launcher(count: int) -> Iterator[list[dict[str, str]]]:
    """What torchrun and `accelerate launch` tell each of so many processes; while open, their meeting place is kept."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    yield [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class Command:
    """`fye` with arguments, in a process of its own; what it prints goes to a file."""

    def __init__(self, log: Path, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        given = (log, list(map(str, arguments)), dict(environment or {}))
        self.process = warm_context().Process(target=_run_command, args=given)
        self.process.start()

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float = 240) -> int:
        """The exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it has not ended"
        return self.process.exitcode

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _run_command(log: Path, arguments: list[str], environment: dict[str, str]) -> None:
    from fye_pipeline.cli.main import main

    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["fye", *arguments]
    main()

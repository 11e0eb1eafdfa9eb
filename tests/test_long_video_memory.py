"""Peak memory in `benchmarks.long_video`, where the system tells it and where it does not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from benchmarks import long_video


def ended(code: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code})"])


def test_the_benchmark_runs_where_the_system_does_not_tell_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "wait4", raising=False)
    module = importlib.reload(long_video)
    assert module.peak_bytes() is None
    process = ended(3)
    assert module.wait(process) is None
    assert process.returncode == 3
    row = {"mode": "progressive", "frames": 32, "peak_bytes": None}
    assert module.verdict([row, row]) == ""


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell")
def test_the_peak_is_told_in_bytes() -> None:
    peak = long_video.peak_bytes()
    assert peak is not None
    assert 2**24 < peak < 2**40
    process = ended(0)
    child = long_video.wait(process)
    assert process.returncode == 0
    assert child is not None
    assert 2**20 < child < 2**34

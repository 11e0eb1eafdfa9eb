"""Tests count as passed on the very same code only."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import common


@pytest.mark.parametrize("package", ["ticache", "kernels", "fye_pipeline", "benchmarks"])
def test_a_change_of_any_code_that_is_measured_is_another_stamp(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "ROOT", tmp_path)
    test = tmp_path / "tests" / "test_it.py"
    source = tmp_path / package / "deep" / "code.py"
    for path in (test, source):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    before = common._fingerprint(["tests/test_it.py"])
    assert common._fingerprint(["tests/test_it.py"]) == before
    source.write_text("2")
    assert common._fingerprint(["tests/test_it.py"]) != before

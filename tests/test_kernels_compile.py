"""The kernels under torch.compile and in torch.library's own checks, and compiled ahead of time for GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from torch import Tensor

import ticache_kernels
from ticache import ops, reference

ROOT = Path(__file__).resolve().parent.parent


def differences(*, dtype: torch.dtype = torch.float16, memory_format: torch.memory_format = torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(2, 3, 4, 5, generator=generator).to(DEVICE, dtype) for _ in range(3)]
    return [difference.to(memory_format=memory_format) for difference in found]


def step(feature: Tensor, kept: list[Tensor], coefficients: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """A full step followed by a predicted one, whose prediction is used."""
    ops.update_differences(feature, kept, backend="triton")
    ops.predict(kept, coefficients, backend="triton", out=out)
    return ops.predict(kept, coefficients, mask, backend="triton") + out


def test_one_graph_holds_both_ops_whole_and_serves_every_step() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(step, fullgraph=True, backend=count)
    mask = (torch.arange(40).view(2, 1, 4, 5) % 3 == 0).float().to(DEVICE)
    eager, kept = differences(), differences()
    for k in range(3):
        feature = torch.full((2, 3, 4, 5), 0.5 + k, device=DEVICE)
        coefficients = torch.tensor([1.0, k / 3, k / 7], device=DEVICE)
        actual = compiled(feature, kept, coefficients, mask, torch.empty_like(kept[0]))
        assert torch.equal(actual, step(feature, eager, coefficients, mask, torch.empty_like(eager[0])))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, eager, strict=True))
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes if "ticache" in str(node.target)]
    assert called == ["ticache.update_differences.default", "ticache.predict.default", "ticache.predict.default"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_functionalised_by_aot_autograd(memory_format: torch.memory_format) -> None:
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    feature, mask = torch.full((2, 3, 4, 5), 0.5, device=DEVICE), torch.ones(2, 1, 4, 5, device=DEVICE)
    coefficients = torch.tensor([0.5, 0.25, 2.0], device=DEVICE)
    eager, kept = differences(memory_format=memory_format), differences(memory_format=memory_format)
    actual = compiled(feature, kept, coefficients, mask, torch.empty_like(kept[0]))
    expected = step(feature, eager, coefficients, mask, torch.empty_like(eager[0]))
    assert torch.equal(actual, expected)
    assert actual.stride() == expected.stride()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, eager, strict=True))


def test_the_registrations_tell_the_truth() -> None:
    """Schema, mutation, fake implementation: what torch.compile relies on."""
    kept, coefficients = differences(), torch.tensor([1.0, 0.5, 0.25], device=DEVICE)
    feature, mask = torch.ones(2, 3, 4, 5, device=DEVICE), torch.ones(2, 1, 4, 5, device=DEVICE)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ticache_kernels.update_differences, (feature, kept), test_utils=checks)
    for given, dtype in ((mask, torch.float32), (None, torch.float16)):
        out = torch.empty_like(feature, dtype=dtype)
        torch.library.opcheck(ticache_kernels.predict, (kept, coefficients, given, out), test_utils=checks)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_result_is_laid_out_as_the_reference_lays_it_out(memory_format: torch.memory_format) -> None:
    kept, mask = differences(memory_format=memory_format), torch.ones(2, 1, 4, 5, device=DEVICE)
    expected = reference.predict(kept, [1.0, 0.5], mask)
    assert ops.predict(kept, [1.0, 0.5], mask, backend="triton").stride() == expected.stride()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The figures of every kernel compiled for GPUs that are not here, without the interpreter."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-W", "error", "-m", "benchmarks.compiled_kernels", "--quick", "--json"]
    path = folder / "compiled.json"
    run = subprocess.run([*command, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(path.read_text())["rows"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("kernel", ["predict_kernel", "update_differences_kernel"])
def test_compiled_ahead_of_time(compiled: list[dict[str, Any]], kernel: str, target: str) -> None:
    """No register is spilled, nothing passes through shared memory, and aligned data is loaded 16 bytes at a time."""
    rows = [row for row in compiled if row["kernel"] == kernel and row["target"] == target]
    assert len(rows) == (7 if kernel == "predict_kernel" else 2)
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] == 0, row
        assert 0 < row["registers"] <= 96, row
        if target != "gfx942" and "odd" not in row["site"]:
            assert row["load_bits"] == 128, row

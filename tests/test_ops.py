"""The two operations as plain PyTorch defines them, and the face that checks arguments and picks a backend."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ticache import ops, reference

NAN = float("nan")


def history(features: list[Tensor], order: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Differences after these full steps, the highest usable order growing by one a step."""
    differences = [torch.full_like(features[0], NAN, dtype=dtype) for _ in range(order + 1)]
    for step, feature in enumerate(features):
        ops.update_differences(feature, differences[: min(step, order) + 1], backend="reference")
    return differences


def newton(u: float, order: int) -> list[float]:
    """Weights of backward differences u intervals ahead: u (u + 1) ... (u + i - 1) / i!."""
    return [math.prod(u + j for j in range(i)) / math.factorial(i) for i in range(order + 1)]


@pytest.mark.parametrize(
    ("sequence", "order", "expected"),
    [
        ([7.0], 0, [7.0]),
        ([7.0, 4.0], 0, [4.0]),
        ([7.0, 4.0], 1, [4.0, -3.0]),
        ([0.0, 1.0, 4.0, 9.0], 3, [9.0, 5.0, 2.0, 0.0]),
        ([0.0, 1.0, 8.0, 27.0, 64.0], 4, [64.0, 37.0, 18.0, 6.0, 0.0]),
        ([1.0, 0.0, 0.0], 2, [0.0, 0.0, 1.0]),
    ],
)
def test_differences_of_a_sequence(sequence: list[float], order: int, expected: list[float]) -> None:
    differences = history([torch.full((2, 3), value) for value in sequence], order)
    assert [difference.unique().tolist() for difference in differences] == [[value] for value in expected]


def test_update_works_in_place_and_leaves_the_feature() -> None:
    feature = torch.randn(2, 3)
    kept, differences = feature.clone(), [torch.randn(2, 3) for _ in range(3)]
    addresses = [difference.data_ptr() for difference in differences]
    ops.update_differences(feature, differences)
    assert [difference.data_ptr() for difference in differences] == addresses
    feature.add_(1)
    assert torch.equal(differences[0], kept)


def test_float64_means_float64_maths() -> None:
    small = 1e-12
    differences = history([torch.ones(3, dtype=torch.float64), torch.full((3,), 1 + small, dtype=torch.float64)], 1)
    torch.testing.assert_close(differences[1], torch.full((3,), small, dtype=torch.float64), rtol=1e-3, atol=0)
    predicted = ops.predict(differences, [1.0, 0.5])
    assert predicted.dtype == torch.float64
    assert torch.equal(predicted, differences[0] + 0.5 * differences[1])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_lower_storage_dtype_rounds_only_what_is_stored(stored: torch.dtype) -> None:
    differences = history([torch.full((3,), 1.0), torch.full((3,), 1.0001220703125)], 1, stored)
    assert differences[0].tolist() == [1.0] * 3
    assert differences[1].tolist() == [2.0**-13] * 3
    assert ops.predict(differences, [1.0, 1.0]).dtype == stored
    assert ops.predict(differences, [1.0, 1.0], dtype=torch.float32).tolist() == [1 + 2.0**-13] * 3


@given(order=st.integers(0, 4), k=st.floats(0.1, 3.0), seed=st.integers(0, 9))
def test_newton_weights_continue_a_polynomial(order: int, k: float, seed: int) -> None:
    weights = torch.randn(order + 1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def polynomial(t: float) -> Tensor:
        return sum((weights[i] * t**i for i in range(order + 1)), torch.zeros(5, dtype=torch.float64))

    differences = history([polynomial(step) for step in range(order + 1)], order)
    predicted = ops.predict(differences, newton(k, order))
    torch.testing.assert_close(predicted, polynomial(order + k), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("coefficients", "mask", "expected"),
    [
        ([1.0], None, 2.0),
        ([0.5], None, 1.0),
        ([1.0, 3.0], None, 17.0),
        ([1.0, 3.0, -1.0], None, 6.0),
        ([1.0, 3.0, -1.0], 0.0, 2.0),
        ([1.0, 3.0, -1.0], 1.0, 6.0),
        ([1.0, 3.0, -1.0], 0.25, 3.0),
        ([0.0, 1.0], 0.5, 3.5),
        ([1.0, 0.0, 2.0], None, 24.0),
    ],
)
def test_predictions(coefficients: list[float], mask: float | None, expected: float, as_tensor: bool) -> None:
    differences = [torch.full((1, 2, 3, 3), value) for value in (2.0, 5.0, 11.0)]
    weight = None if mask is None else torch.full((1, 1, 3, 3), mask)
    given_ = torch.tensor(coefficients) if as_tensor else coefficients
    assert ops.predict(differences, given_, weight).unique().tolist() == [expected]


@pytest.mark.parametrize("coefficients", [[1.0, 0.3, -2.0], torch.tensor([0.7, 0.3, -2.0])], ids=["numbers", "tensor"])
def test_exact_cases_keep_every_bit(coefficients: list[float] | Tensor) -> None:
    differences = [torch.randn(2, 3, 5, 4) for _ in range(3)]
    differences[0][0, 0, 0, :2] = torch.tensor([-0.0, torch.inf])
    base = differences[0].view(torch.int32)
    unmasked = ops.predict(differences, coefficients)
    assert torch.equal(
        ops.predict(differences, coefficients, torch.ones(2, 1, 5, 4)).view(torch.int32), unmasked.view(torch.int32)
    )
    assert torch.equal(ops.predict(differences, coefficients, torch.zeros(2, 1, 5, 4)).view(torch.int32), base)
    for one in ([1.0, 0.0, 0.0], torch.tensor([1.0, 0.0, 0.0]), [1.0]):
        reused = ops.predict(differences, one)
        assert torch.equal(reused.view(torch.int32), base)
        assert reused.data_ptr() != differences[0].data_ptr()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_a_zero_multiplies_is_not_seen(as_tensor: bool) -> None:
    mask = torch.tensor([[0.0], [1.0]])
    differences = [torch.ones(2, 3), torch.tensor([[NAN] * 3, [2.0] * 3]), torch.full((2, 3), NAN)]
    coefficients = torch.tensor([1.0, 1.0, 0.0]) if as_tensor else [1.0, 1.0, 0.0]
    assert ops.predict(differences, coefficients, mask).tolist() == [[1.0] * 3, [3.0] * 3]


def test_out_is_written_and_returned() -> None:
    differences = [torch.randn(2, 3) for _ in range(2)]
    out = torch.full((2, 3), NAN, dtype=torch.float16)
    assert ops.predict(differences, [1.0, 0.5], out=out) is out
    assert torch.equal(out, ops.predict(differences, [1.0, 0.5], dtype=torch.float16))


D = [torch.zeros(2, 3, 4, 4) for _ in range(3)]
PREDICT_ERRORS = {
    "no differences": ({"differences": []}, ValueError, "differences must hold at least D_0, got none"),
    "integers": ({"differences": [D[0].int()]}, TypeError, "differences must be floating-point tensors, got torch.int"),
    "shape": ({"differences": [D[0], D[1][:1]]}, ValueError, r"differences\[1\] must have shape \(2, 3, 4, 4\), got"),
    "dtype": ({"differences": [D[0], D[1].half()]}, TypeError, r"differences\[1\] must have dtype torch.float32"),
    "device": ({"differences": [D[0], D[1].to("meta")]}, ValueError, r"differences\[1\] must be on cpu, got meta"),
    "no coefficients": ({"coefficients": []}, ValueError, "coefficients must be 1 to 3, .* got 0"),
    "coefficients": ({"coefficients": [1.0] * 4}, ValueError, "coefficients must be 1 to 3, .* got 4"),
    "axes": ({"coefficients": torch.ones(1, 2)}, ValueError, r"coefficients must have one axis, got shape \(1, 2\)"),
    "whole": ({"coefficients": torch.ones(2).int()}, TypeError, "coefficients must be floating-point, got torch.int32"),
    "far": ({"coefficients": torch.ones(2, device="meta")}, ValueError, "coefficients must be on cpu, got meta"),
    "mask": ({"mask": torch.ones(2, 1, 4, 5)}, ValueError, r"mask must be broadcastable to \(2, 3, 4, 4\), got shape"),
    "mask rank": ({"mask": torch.ones(1, 2, 1, 4, 4)}, ValueError, "mask must be broadcastable"),
    "mask dtype": ({"mask": torch.ones(2, 1, 4, 4).int()}, TypeError, "mask must be floating-point or bool, got"),
    "mask device": ({"mask": torch.ones(1, device="meta")}, ValueError, "mask must be on cpu, got meta"),
    "out": ({"out": torch.zeros(2, 3)}, ValueError, r"out must have shape \(2, 3, 4, 4\), got \(2, 3\)"),
    "out dtype": ({"out": D[0].clone(), "dtype": torch.float16}, TypeError, "out must have dtype torch.float16, got"),
    "out alias": ({"out": D[0]}, ValueError, "out must not be one of the differences"),
    "out overlap": ({"out": torch.zeros(1).expand(2, 3, 4, 4)}, ValueError, "out must not overlap itself"),
    "result": ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point dtype, got torch.int64"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, reference, got 'cuda'"),
}


@pytest.mark.parametrize(("wrong", "error", "message"), PREDICT_ERRORS.values(), ids=PREDICT_ERRORS)
def test_predict_refuses(wrong: dict, error: type[Exception], message: str) -> None:
    arguments = {"differences": D, "coefficients": [1.0, 0.5], **wrong}
    with pytest.raises(error, match=message):
        ops.predict(**arguments)


def test_update_refuses() -> None:
    with pytest.raises(ValueError, match=r"feature must have shape \(2, 3, 4, 4\), got \(2, 3\)"):
        ops.update_differences(torch.zeros(2, 3), D)
    with pytest.raises(TypeError, match=r"feature must be a floating-point tensor, got torch.int64"):
        ops.update_differences(torch.zeros(2, 3, 4, 4, dtype=torch.int64), D)
    with pytest.raises(ValueError, match=r"differences\[1\] must not overlap itself"):
        ops.update_differences(D[0], [D[0].clone(), torch.zeros(1).expand(2, 3, 4, 4)])
    with pytest.raises(ValueError, match="feature must not be one of the differences"):
        ops.update_differences(D[0], D)


def test_auto_is_the_reference_on_the_cpu_even_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.resolve_backend("auto", "cpu") == "reference"
    assert ops.resolve_backend("reference", torch.device("cpu")) == "reference"


def test_a_named_backend_that_cannot_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"'triton' cannot run on cpu: .* use backend='reference'"):
        ops.predict(D, [1.0], backend="triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="Triton is not installed; run `pip install triton`"):
        ops.resolve_backend("triton", "cuda")
    assert ops.resolve_backend("auto", "cuda") == "reference"


def test_dtypes_the_kernels_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    refused = r"backend 'triton' takes float32, float16 and bfloat16, got torch.float64"
    with pytest.raises(TypeError, match=refused):
        ops.predict([D[0].double()], [1.0], backend="triton")
    with pytest.raises(TypeError, match=refused):
        ops.predict(D, [1.0], dtype=torch.float64, backend="triton")
    with pytest.raises(TypeError, match=refused):
        ops.update_differences(D[0].double(), D, backend="triton")


def test_kernels_are_imported_only_when_used() -> None:
    code = "import sys, ticache.ops; sys.exit('ticache_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_recompilation_from_step_to_step() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=count, fullgraph=True)
    def step(differences: list[Tensor], coefficients: Tensor, mask: Tensor) -> Tensor:
        return ops.predict(differences, coefficients, mask)

    mask = (torch.rand(2, 1, 4, 4) > 0.5).float()
    differences = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    for k in range(4):
        coefficients = torch.tensor(newton(k / 3, 2))
        expected = reference.predict(differences, coefficients, mask)
        assert torch.equal(step(differences, coefficients, mask), expected)
    assert len(graphs) == 1

"""What only a GPU can show: CUDA graphs, no synchronisation, real sizes. The others run there, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from kernel_cases import DTYPES, INTERPRETED, assert_within_eager, values
from test_step_path import STEPS, tiny_pipe
from torch import Tensor

import ticache
from ticache import ops, reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="no GPU, or TRITON_INTERPRET=1")]

NEWTON = [1.0, 2 / 3, 5 / 9]
SITES = {
    "SD 1.5 512": ((2, 320, 64, 64), (2, 1, 64, 64)),
    "AnimateDiff 16x256": ((32, 320, 32, 32), (32, 1, 32, 32)),
    "tokens": ((2, 4096, 320), (2, 4096, 1)),
    "video": ((2, 320, 16, 32, 32), (2, 1, 16, 32, 32)),
    "odd": ((3, 321, 63, 61), (3, 1, 63, 61)),
}


def tensors(shape: tuple[int, ...], dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    return [values(shape, seed).to("cuda", dtype) for seed in range(count)]


def half_mask(shape: tuple[int, ...]) -> Tensor:
    return (torch.arange(torch.Size(shape).numel(), device="cuda").view(shape) % 3 == 0).float()


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Within it, whatever waits for the device or copies from the host in a blocking way is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_auto_is_triton() -> None:
    assert ops.resolve_backend("auto", "cuda") == "triton"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "mask_shape"), SITES.values(), ids=SITES)
def test_real_sizes(shape: tuple[int, ...], mask_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sizes that pipelines cache, in every layout."""
    feature, *kept = tensors(shape, dtype, 4)
    exact, eager = [each.double() for each in kept], [each.clone() for each in kept]
    reference.update_differences(feature.double(), exact)
    reference.update_differences(feature, eager)
    ops.update_differences(feature, kept)
    for actual, rival, oracle in zip(kept, eager, exact, strict=True):
        assert_within_eager(actual, rival, oracle.cpu())
    mask = half_mask(mask_shape)
    oracle = reference.predict([each.double() for each in kept], NEWTON, mask.double())
    coefficients = torch.tensor(NEWTON, device="cuda")
    for given in (NEWTON, coefficients):
        assert_within_eager(ops.predict(kept, given, mask), reference.predict(kept, given, mask), oracle.cpu())


def test_neither_op_synchronises() -> None:
    feature, *kept = (torch.ones(2, 32, 16, 16, device="cuda", dtype=torch.float16) for _ in range(4))
    mask, out = torch.ones(2, 1, 16, 16, device="cuda"), torch.empty_like(feature)
    ops.update_differences(feature, kept)  # compiles
    ops.predict(kept, NEWTON, mask, out=out)
    with no_synchronisation():
        ops.update_differences(feature, kept)
        ops.predict(kept, NEWTON, mask, out=out)
        ops.predict(kept, NEWTON, mask)


def test_a_graph_replays_with_new_coefficients_mask_and_feature() -> None:
    shape = (2, 32, 17, 19)
    feature, *kept = tensors(shape, torch.float16, 4)
    eager = [each.clone() for each in kept]
    coefficients, mask = torch.tensor(NEWTON, device="cuda"), half_mask((2, 1, 17, 19))
    out = torch.empty_like(feature)

    def step(differences: list[Tensor]) -> None:
        ops.update_differences(feature, differences)
        ops.predict(differences, coefficients, mask, out=out)

    step([each.clone() for each in kept])  # tunes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(kept)
    for k in range(3):
        feature.copy_(values(shape, 20 + k))
        coefficients.copy_(torch.tensor([1.0, k / 3, k / 5]))
        mask.copy_(mask.flip(-1))
        graph.replay()
        actual = out.clone()
        step(eager)
        assert torch.equal(actual, out)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, eager, strict=True))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor_keeps_the_ops_whole(mode: str) -> None:
    kept, mask = tensors((2, 32, 16, 16), torch.float16), half_mask((2, 1, 16, 16))

    @torch.compile(fullgraph=True, mode=mode)
    def step(differences: list[Tensor], coefficients: Tensor) -> Tensor:
        return ops.predict(differences, coefficients, mask, backend="triton") * 2

    for k in range(4):
        coefficients = torch.tensor([1.0, k / 3, k / 5], device="cuda")
        assert torch.equal(step(kept, coefficients), ops.predict(kept, coefficients, mask) * 2)


def test_numbers_travel_without_a_copy() -> None:
    kept = tensors((2, 32, 16, 16), torch.float16)
    expected = ops.predict(kept, torch.tensor(NEWTON, device="cuda"))
    assert torch.equal(ops.predict(kept, NEWTON), expected)
    assert torch.equal(ops.predict(kept, torch.tensor(NEWTON)), expected)


@pytest.mark.parametrize("cut", ["outer", "output", "branches"])
def test_no_step_of_a_run_waits_for_the_device(cut: str) -> None:
    """A run reads the scheduler's timesteps when it begins, and nothing after that."""
    pipe = tiny_pipe()
    pipe.unet.to("cuda", torch.float16)
    sample = values((2, 4, 8, 8), 1).to("cuda", torch.float16)
    tokens = values((2, 7, 8), 2).to("cuda", torch.float16)
    with torch.no_grad(), ticache.apply(pipe, N=3, order=2, cut=cut):
        for counted in (False, True):
            pipe.scheduler.set_timesteps(STEPS, device="cuda")
            for step, timestep in enumerate(pipe.scheduler.timesteps):
                with no_synchronisation() if counted and step else contextlib.nullcontext():
                    pipe.unet(sample, timestep, encoder_hidden_states=tokens, return_dict=False)

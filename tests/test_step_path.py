"""What a step costs beside its own arithmetic: launches, waits for the device, graphs to compile."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ticache

STEPS = 9
# Views, and memory that nothing fills: no kernel is launched for them.
FREE = ("expand", "empty", "unsqueeze", "view", "as_strided", "detach", "alias", "slice", "select", "t", "transpose")


class Launches(TorchDispatchMode):
    """Lists the operators that launch work, and those that read a tensor from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.read: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
            self.read.append(name)
        elif name not in FREE:
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


def tiny_pipe() -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    ).eval()
    return SimpleNamespace(unet=unet, scheduler=DDIMScheduler())


def run(pipe: Any, function: Any = None, watch: list[Launches] | None = None) -> list[Tensor]:
    """The UNet's outputs over a run; `watch` takes what each call launched."""
    function = pipe.unet if function is None else function
    generator = torch.Generator().manual_seed(1)
    sample, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 8, generator=generator)
    pipe.scheduler.set_timesteps(STEPS)
    outputs = []
    with torch.no_grad():
        for timestep in pipe.scheduler.timesteps:
            with Launches() if watch is not None else contextlib.nullcontext() as launches:
                output = function(sample, timestep, encoder_hidden_states=tokens, return_dict=False)
            outputs.append(output[0])
            if watch is not None and launches is not None:
                watch.append(launches)
    return outputs


def test_a_predicted_output_step_is_a_handful_of_launches() -> None:
    """The prediction, which is one kernel in Triton and four operators in PyTorch, and the output head's three."""
    pipe, watch = tiny_pipe(), []
    with ticache.apply(pipe, N=3, order=2, cut="output") as session:
        run(pipe, watch=watch)
        predicted = session.report().to_dict()["streams"][0]["predicted"]
    for step in predicted:
        head = [name for name in watch[step].launched if name not in ("mul", "add", "add_", "_to_copy")]
        assert head == ["native_group_norm", "silu", "convolution"]
        assert len(watch[step].launched) <= 7
    assert len(watch[0].launched) > 40


@pytest.mark.parametrize("cut", ["outer", "output", "branches"])
def test_no_step_reads_a_tensor_from_the_device(cut: str) -> None:
    pipe, watch = tiny_pipe(), []
    with ticache.apply(pipe, N=3, order=2, cut=cut):
        run(pipe)
        run(pipe, watch=watch)
    assert len(watch) == STEPS
    assert [launches.read for launches in watch] == [[]] * STEPS


class Graphs(list[torch.fx.GraphModule]):
    """A backend of `torch.compile` that lists the graphs and runs them as they are."""

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.append(graph)
        return graph.forward


@pytest.mark.parametrize("how", ["apply", "torch.compile before", "torch.compile after"])
def test_compiled_it_is_one_graph_for_full_and_one_for_predicted_steps(how: str) -> None:
    torch.compiler.reset()
    graphs, pipe = Graphs(), tiny_pipe()
    plain = run(pipe)
    with ticache.apply(pipe, N=3, order=2):
        expected = run(pipe)
    function = torch.compile(pipe.unet, backend=graphs) if how == "torch.compile before" else None
    with ticache.apply(pipe, N=3, order=2, compile={"backend": graphs} if how == "apply" else False):
        function = torch.compile(pipe.unet, backend=graphs) if how == "torch.compile after" else function
        for _ in range(2):
            assert all(map(torch.equal, run(pipe, function), expected))
    full, predicted = graphs
    assert len(predicted.graph.nodes) < len(full.graph.nodes) / 2
    assert all(map(torch.equal, run(pipe), plain))
    assert len(graphs) == 2


def test_removed_nothing_is_compiled_but_what_was_before() -> None:
    pipe, attributes = tiny_pipe(), set(tiny_pipe().unet.__dict__)
    ticache.apply(pipe, compile=True).remove()
    assert set(pipe.unet.__dict__) == attributes
    pipe.unet.compile(backend="eager")
    compiled = pipe.unet._compiled_call_impl
    ticache.apply(pipe, compile=True).remove()
    assert pipe.unet._compiled_call_impl is compiled
    with pytest.raises(TypeError, match=r"compile must be a bool or options of torch.compile, got 'max'"):
        ticache.apply(pipe, compile="max")  # pyright: ignore[reportArgumentType]

"""`torch.compile` with the cache on: whole graphs, one per kind of step, none from step to step."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from ticache_models import ddim, denoise, make_inputs, make_unet
from torch._dynamo.testing import CompileCounter

import ticache


@pytest.mark.parametrize(("cut", "how"), [("outer", "after"), ("output", "before"), ("branches", "in place")])
def test_two_graphs_and_no_more(cut: str, how: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    plain = make_unet()
    with ticache.apply(plain, N=3, cut=cut, scheduler=scheduler):
        expected = denoise(plain, scheduler, sample, conditions, steps=7)
    unet = make_unet()
    if how == "after":
        session = ticache.apply(unet, N=3, cut=cut, scheduler=scheduler)
        compiled = torch.compile(unet, backend=counter, fullgraph=True)
    elif how == "before":
        compiled = torch.compile(unet, backend=counter, fullgraph=True)
        session = ticache.apply(compiled, N=3, cut=cut, scheduler=scheduler)
    else:
        unet.compile(backend=counter, fullgraph=True)
        compiled = unet
        session = ticache.apply(unet, N=3, cut=cut, scheduler=scheduler)
    for _ in range(2):
        assert torch.allclose(denoise(compiled, scheduler, sample, conditions, steps=7), expected, atol=1e-5)
        assert counter.frame_count == 2
    report = session.report().to_dict()
    assert (report["full_calls"], report["predicted_calls"]) == (3, 4)
    assert report["flops_ratio"] > 1
    ticache.remove(compiled)
    torch._dynamo.reset()

"""Times of calls: measured on the sample's own device, and held for calls of a run only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ticache_models import ddim, make_inputs, make_unet

import ticache
from ticache.forward_context import ForwardContext


def test_a_call_is_timed_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any = None) -> None:
            recorded.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    ForwardContext(full=True, shapes={}, writable=False, device=torch.device("cuda:1")).end()
    assert recorded == ["stream of cuda:1"] * 2


def test_calls_of_no_run_pile_up_no_timers() -> None:
    unet = make_unet()
    sample, conditions = make_inputs(batch=2)
    with ticache.apply(unet, N=3, num_steps=9) as session, torch.no_grad():
        for _ in range(3):
            unet(sample, torch.tensor([900, 300]), **conditions)  # each sample at a timestep of its own
        run = session._controller.records.run
        assert session.report().to_dict()["total_unattributed"] == run.count(True) == 3
        assert run.calls == []


@pytest.mark.parametrize(("steps", "told"), [(4, True), (9, False)])
def test_a_run_of_few_steps_is_told_that_it_has_nothing_to_skip(steps: int, told: bool) -> None:
    unet, scheduler = make_unet(), ddim()
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(steps)
    with ticache.apply(unet, N=2, scheduler=scheduler) as session, torch.no_grad():
        assert "nothing to skip" not in repr(session), "no run has begun"
        for timestep in scheduler.timesteps:
            unet(sample, timestep, **conditions)
        assert ("a run of 4 steps has nothing to skip" in str(session.report())) == told

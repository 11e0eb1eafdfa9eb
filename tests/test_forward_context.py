"""Every family, both cheap cuts: predicted features equal the formula computed by hand; what is dead does not run."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from ticache_models import FAMILIES, Recorder, ddim, denoise, make_inputs, make_unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ticache
from ticache.schedule import steps_of

STEPS = 30


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def unet(family: str) -> nn.Module:
    return make_unet(family)


def site_module(unet: Any, cut: str) -> nn.Module:
    """By hand: the last up block, or what runs last in the layer before its last."""
    last = unet.up_blocks[-1]
    if cut == "output":
        return last
    lists = ("motion_modules", "temp_attentions", "attentions", "temp_convs", "resnets")
    return next(getattr(last, name)[-2] for name in lists if getattr(last, name, None) is not None)


def eq4(full: dict[int, Tensor], step: int, order: int, N: int) -> Tensor:
    """Eq. 4 from the recorded full features, as it is printed: D_i k^i / (i! N^i)."""
    newest = max(t for t in full if t <= step)
    k = step - newest
    terms = [full[newest - j * N].double() for j in range(min(order, newest // N) + 1)]
    differences = [terms[0]]
    while len(terms) > 1:
        terms = [a - b for a, b in itertools.pairwise(terms)]
        differences.append(terms[0])
    return sum((d * k**i / (math.factorial(i) * N**i) for i, d in enumerate(differences)), torch.zeros(()))


def lagrange(full: dict[int, Tensor], step: int, order: int) -> Tensor:
    """The polynomial through the last order + 1 full features."""
    nodes = sorted(t for t in full if t <= step)[-(order + 1) :]
    total = torch.zeros(())
    for i, a in enumerate(nodes):
        weight = Fraction(1)
        for j, b in enumerate(nodes):
            if i != j:
                weight *= Fraction(step - b, a - b)
        total = total + float(weight) * full[a].double()
    return total


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("cut", ["output", "outer"])
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_predicted_features_equal_the_formula(unet: nn.Module, family: str, cut: str, recipe: str) -> None:
    sample, conditions = make_inputs(family, batch=1)
    recorder = Recorder(site_module(unet, cut))
    preset: dict[str, Any] = {"preset": "paper"} if recipe == "paper" else {}
    scheduler = ddim()
    with ticache.apply(unet, N=3, order=2, cut=cut, scheduler=scheduler, **preset):
        denoise(unet, scheduler, sample, conditions, steps=STEPS)
    recorder.remove()
    assert len(recorder.outputs) == STEPS
    fulls = range(0, STEPS, 3) if recipe == "paper" else steps_of("spread", STEPS, 3)
    full = {t: recorder.outputs[t] for t in fulls}
    for step, output in enumerate(recorder.outputs):
        if step not in full:
            expected = eq4(full, step, 2, 3) if recipe == "paper" else lagrange(full, step, 2)
            assert relative(output, expected) < 1e-6, step


@pytest.mark.parametrize("cut", ["output", "outer"])
def test_operations_fall_by_what_the_cut_predicts(unet: nn.Module, family: str, cut: str) -> None:
    """With c measured by hand on a UNet whose dead modules are really taken out of the count."""
    sample, conditions = make_inputs(family, batch=1)
    scheduler = ddim()

    with FlopCounterMode(display=False) as counter:
        denoise(unet, scheduler, sample, conditions, steps=1)
    full, live = counter.get_total_flops(), live_operations(unet, family, cut)
    with ticache.apply(unet, N=3, order=2, cut=cut, scheduler=scheduler), FlopCounterMode(display=False) as counter:
        denoise(unet, scheduler, sample, conditions, steps=6)
    assert counter.get_total_flops() == pytest.approx(2 * full + 4 * live, rel=1e-6)


@torch.no_grad()
def live_operations(unet: Any, family: str, cut: str) -> int:
    """Operations of one call that belong to modules which the cut must leave running, by their names."""
    sample, conditions = make_inputs(family, batch=1)
    with FlopCounterMode(display=False, depth=10) as counter:
        unet(sample, torch.tensor(10), **conditions)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(unet).__name__
    index = len(unet.up_blocks) - 1
    layer = len(unet.up_blocks[-1].resnets) - 1
    if cut == "output":
        live = ["conv_out"]
    else:
        top = ("conv_in", "time_embedding", "add_embedding", "transformer_in", "conv_out")
        lists = ("resnets", "attentions", "motion_modules", "temp_convs", "temp_attentions")
        live = [*top, *(f"up_blocks.{index}.{name}.{layer}" for name in lists)]
    return sum(counts.get(f"{root}.{name}", 0) for name in live)


@pytest.mark.parametrize("cut", ["output", "outer", "branches"])
def test_one_in_one_and_remove_are_exact(unet: nn.Module, family: str, cut: str) -> None:
    sample, conditions = make_inputs(family)
    scheduler = ddim()
    plain = denoise(unet, scheduler, sample, conditions, steps=4)
    before = {name: set(module.__dict__) for name, module in unet.named_modules()}
    with ticache.apply(unet, N=1, order=2, cut=cut, scheduler=scheduler):
        assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=4), plain)
    ticache.apply(unet, N=2, order=2, cut=cut, scheduler=scheduler)
    assert not torch.equal(denoise(unet, scheduler, sample, conditions, steps=4), plain)
    ticache.remove(unet)
    ticache.remove(unet)
    assert torch.equal(denoise(unet, scheduler, sample, conditions, steps=4), plain)
    assert {name: set(module.__dict__) for name, module in unet.named_modules()} == before
    assert "step" not in vars(scheduler)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_second_run_repeats_the_first(family: str, unet: nn.Module, order: int) -> None:
    sample, conditions = make_inputs(family, batch=1)
    scheduler = ddim()
    with ticache.apply(unet, N=2, order=order, scheduler=scheduler) as session:
        first = denoise(unet, scheduler, sample, conditions, steps=8)
        second = denoise(unet, scheduler, sample, conditions, steps=8)
        report = session.report().to_dict()
    assert torch.equal(first, second)
    assert (report["full_calls"], report["predicted_calls"]) == (4, 4)
    assert report["held_bytes"] == 0 < report["peak_bytes"]
    assert report["fallbacks"] == report["unattributed"] == {}

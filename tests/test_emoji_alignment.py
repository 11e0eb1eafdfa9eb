"""ID-enhanced contrast alignment: the picture of one step, the wing loss, and which weights learn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from emoji_parts import small_vae

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.alignment import LATEST, Alignment, Weights, hang_frozen, one_step_latents, wing
from fye_pipeline.emoji.base import CROSS, SCHEDULER, build_base
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet
from fye_pipeline.emoji.training import Batch, Trained, target_of


def scheduler(prediction: str) -> Any:
    return DDIMScheduler(**{**SCHEDULER, "prediction_type": prediction})


def batch(timesteps: tuple[int, ...]) -> Batch:
    made = torch.Generator().manual_seed(0)
    count = len(timesteps)
    clean, noise = (torch.randn(count, 4, 4, 4, generator=made) for _ in range(2))
    rows = np.zeros((count, 2), np.int64)
    return Batch(clean, noise, torch.tensor(timesteps), torch.zeros(count, 16, dtype=torch.long), [], rows)


def test_the_wing_loss_meets_itself() -> None:
    w, e = 0.1, 0.02
    assert wing(torch.tensor(0.05)) == pytest.approx(w * math.log(1 + 0.05 / e))
    below, above = wing(torch.tensor([w - 1e-6, w + 1e-6]))
    assert abs(float(above - below)) < 1e-5
    assert torch.equal(wing(torch.tensor(-0.3)), wing(torch.tensor(0.3)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_the_clean_latents_back(prediction: str) -> None:
    given, plan = batch((10, 500, 999)), scheduler(prediction)
    assert torch.allclose(one_step_latents(plan, given, target_of(plan, given)), given.clean)


def test_both_forms_say_the_same_below_the_limit() -> None:
    """v = a eps - s x and the noisy latents are known, so an error in one is an error in the other."""
    given, plan = batch((10, 300, LATEST)), scheduler("v_prediction")
    products = plan.alphas_cumprod[given.timesteps].view(-1, 1, 1, 1)
    velocity = target_of(plan, given) + 0.1 * torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    noisy = plan.add_noise(given.clean, given.noise, given.timesteps)
    noise = products.sqrt() * velocity + (1 - products).sqrt() * noisy
    by_velocity = one_step_latents(plan, given, velocity)
    by_noise = one_step_latents(scheduler("epsilon"), given, noise)
    assert (by_velocity - by_noise).abs().max() < 1e-4


def test_late_noise_is_brought_back_to_the_limit() -> None:
    plan = scheduler("epsilon")
    late, limit = batch((999,)), batch((LATEST,))
    wrong = late.noise + 0.1
    assert torch.allclose(one_step_latents(plan, late, wrong), one_step_latents(plan, limit, wrong))
    moved = (one_step_latents(plan, late, wrong) - late.clean).abs().max()
    assert float(moved) == pytest.approx(0.229, abs=0.01)  # f(600) = 2.29


def small_pipe() -> Any:
    pipe = build_base(small_vae())
    adapter.attach(pipe.unet, [adapter.identity_projection(CROSS, 16), adapter.expression_projection(CROSS, 24, 64)])
    for weight in adapter.branch_parameters(pipe.unet, 1):
        torch.nn.init.normal_(weight, std=0.1)
    return pipe


def test_the_frozen_branch_is_what_the_learning_one_was() -> None:
    pipe = small_pipe()
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 6, CROSS)
    given = [torch.randn(1, 1, 16), torch.randn(1, 1, 5, 24)]

    def run(embeds: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            conditions = {"image_embeds": embeds}
            return pipe.unet(latents, 300, encoder_hidden_states=text, added_cond_kwargs=conditions).sample

    before = run(given)
    hang_frozen(pipe.unet)
    assert torch.equal(run([*given, given[1]]), before)
    for weight in adapter.branch_parameters(pipe.unet, 1):
        torch.nn.init.zeros_(weight)
    adapter.set_scales(pipe.unet, [1.0, 0.0, 1.0])
    assert torch.equal(run([*given, given[1]]), before), "the frozen branch follows the learning one"


def test_both_losses_reach_the_learning_branch_only() -> None:
    pipe = small_pipe()
    hang_frozen(pipe.unet)
    networks = [n.eval().requires_grad_(False) for n in (IdentityNet(widths=(8,) * 4), LandmarkNet(widths=(8,) * 4))]
    landmarks = np.random.default_rng(0).random((1, 1, 478, 3)).astype(np.float32)
    identity, finder = networks
    assert isinstance(identity, IdentityNet)
    assert isinstance(finder, LandmarkNet)
    alignment = Alignment(pipe, identity, finder, landmarks, Weights(measured=1))
    model = Trained(pipe).requires_grad_(False)
    chosen = adapter.branch_parameters(pipe.unet, 1)
    for weight in chosen:
        weight.requires_grad_(True)
    made = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 16, 16, generator=made) for _ in range(2))
    states = torch.randn(2, 5, 24)
    given = Batch(clean, noise, torch.tensor([300, 700]), torch.zeros(2, 16, dtype=torch.long),
                  [torch.randn(2, 16), states, states], np.zeros((2, 2), np.int64))  # fmt: skip
    noisy = pipe.scheduler.add_noise(clean, noise, given.timesteps)
    prediction = model(noisy, given.timesteps, given.tokens, given.embeds)
    loss = alignment(model, given, noisy, prediction)
    assert alignment.weights.expression is not None
    loss.backward()
    reached = {id(w) for w in pipe.unet.parameters() if w.grad is not None and w.grad.abs().sum() > 0}
    assert reached == {id(w) for w in chosen}
    scales = next(iter(adapter.cross_attentions(pipe.unet).values())).processor.scale
    assert scales == [1.0, 1.0, 0.0], "the next step would not be of the learning branch"


def test_the_weight_makes_the_gradients_compare() -> None:
    plan = SimpleNamespace(scheduler=scheduler("v_prediction"))
    none: Any = None
    alignment = Alignment(plan, none, none, np.zeros(1), Weights(measured=2, share=0.5))
    given = batch((300, 700))
    prediction = torch.zeros_like(given.clean, requires_grad=True)
    weights = [alignment._weight(none, given, prediction, scale * prediction.sum()) for scale in (1.0, 1.0, 9.0)]
    assert weights[0] == weights[1] == weights[2] == alignment.weights.expression
    loss = (prediction - target_of(plan.scheduler, given)).square().mean()
    norm = float(torch.autograd.grad(loss, prediction)[0].norm())
    assert weights[0] * prediction.numel() ** 0.5 == pytest.approx(0.5 * norm, rel=1e-4)

"""The loss that shows the tiny base where expressions matter: told from latents, kept in proportion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from fye_pipeline.emoji.alignment import gradient_norm
from fye_pipeline.emoji.base import SCHEDULER
from fye_pipeline.emoji.latent_face import LATEST, ExpressionLoss, LatentFaceNet, face_error, train_latent_face
from fye_pipeline.emoji.network_training import NetworkConfig
from fye_pipeline.emoji.training import Batch, target_of
from fye_pipeline.landmarks.topology import EXPRESSION_POINTS

PEOPLE, TAKES = 6, 2
POINTS = (PEOPLE, TAKES, len(EXPRESSION_POINTS), 2)


def made_people() -> tuple[Any, Any, Any]:
    """People whose blendshapes their latents tell by their mean. -> people, latents, points."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((PEOPLE, TAKES, 4, 8, 8)).astype(np.float16)
    scores = np.repeat(rng.random((PEOPLE, TAKES, 1)), 52, axis=2).astype(np.float32)
    latents += scores[..., :1, None, None].astype(np.float16) * 4
    return type("People", (), {"scores": scores, "__len__": lambda self: PEOPLE})(), latents, np.full(POINTS, 0.5, "f4")


def loss_at(timesteps: tuple[int, ...], share: float = 0.5) -> tuple[ExpressionLoss, Batch, Any]:
    people, latents, wanted = made_people()
    scheduler = DDIMScheduler(**SCHEDULER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LatentFaceNet(side=8).requires_grad_(False)
    rows = np.array([[number % PEOPLE, 0] for number in range(len(timesteps))])
    clean = torch.from_numpy(latents[rows[:, 0], 0].astype(np.float32))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    batch = Batch(clean, noise, torch.tensor(timesteps), torch.zeros(len(rows), 16, dtype=torch.long), [], rows)
    return ExpressionLoss(scheduler, network, people, wanted, share), batch, scheduler


def test_the_network_learns_what_latents_express() -> None:
    people, latents, wanted = made_people()
    network = train_latent_face(people, latents, wanted, NetworkConfig(60, batch=12, lr=3e-3), lambda step, loss: None)
    points, shapes = network(torch.from_numpy(latents.reshape(-1, 4, 8, 8).astype(np.float32)))
    scores = torch.from_numpy(people.scores).flatten(0, 1)
    labels = torch.from_numpy(wanted).flatten(0, 1), scores
    spread = float((scores - scores.mean(0)).square().mean())
    assert float((shapes - scores).square().mean()) < 0.25 * spread
    assert face_error(points, shapes, *labels).shape == (PEOPLE * TAKES,)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_its_gradient_has_its_share_of_the_plain_ones(share: float) -> None:
    loss, batch, scheduler = loss_at((100, 500), share)
    prediction = (target_of(scheduler, batch) + 0.3).requires_grad_(True)
    added = loss(None, batch, None, prediction)  # pyright: ignore[reportArgumentType]
    plain = (prediction - target_of(scheduler, batch)).square().mean()
    assert gradient_norm(added, prediction) == pytest.approx(share * gradient_norm(plain, prediction), rel=1e-3)


def test_what_is_still_noise_is_not_asked_for_an_expression() -> None:
    loss, batch, scheduler = loss_at((100, LATEST + 1))
    prediction = (target_of(scheduler, batch) + 0.3).requires_grad_(True)
    added = loss(None, batch, None, prediction)  # pyright: ignore[reportArgumentType]
    early, late = torch.autograd.grad(added, prediction)[0]
    assert float(early.abs().max()) > 0
    assert float(late.abs().max()) == 0

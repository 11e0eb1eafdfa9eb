"""The loss against hand-made masks, and the algebra of v-prediction."""

from __future__ import annotations

import pytest
import torch

from fye_pipeline.training.losses import (
    add_noise,
    clean_from_velocity,
    facial_fine_grained,
    noise_levels,
    training_loss,
    velocity,
)


def test_the_true_velocity_gives_back_the_clean_latents() -> None:
    clean, noise = torch.randn(2, 4, 3, 5, 7, dtype=torch.float64), torch.randn(2, 4, 3, 5, 7, dtype=torch.float64)
    alphas = torch.linspace(0.999, 0.0, 10, dtype=torch.float64)
    alpha, sigma = noise_levels(alphas, torch.tensor([4, 9]), clean)
    noisy = add_noise(clean, noise, alpha, sigma)
    back = clean_from_velocity(noisy, velocity(clean, noise, alpha, sigma), alpha, sigma)
    assert torch.allclose(back, clean, atol=1e-12)
    assert torch.equal(noisy[1], noise[1])  # zero terminal signal: nothing of the picture is left


def test_overlap_counts_twice_before_squaring() -> None:
    clean, predicted = torch.zeros(1, 1, 1, 1, 4), torch.ones(1, 1, 1, 1, 4)
    expression = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    face = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 1, 4)
    # Outside 0, expression alone 1, face alone 1, both (1 + 1)^2 = 4; the mean of the four.
    assert facial_fine_grained(clean, predicted, expression, face).item() == pytest.approx((0 + 1 + 1 + 4) / 4)


def test_each_half_can_be_switched_off() -> None:
    clean, predicted = torch.zeros(1, 2, 1, 1, 4), torch.full((1, 2, 1, 1, 4), 3.0)
    expression = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    face = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 1, 4)
    assert facial_fine_grained(clean, predicted, expression, None).item() == pytest.approx(9 * 2 / 4)
    assert facial_fine_grained(clean, predicted, None, face).item() == pytest.approx(9 * 3 / 4)
    assert facial_fine_grained(clean, predicted, None, None).item() == 0


def test_masks_in_between_weigh_by_their_share() -> None:
    clean, predicted = torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    half = torch.full((1, 1, 1, 1), 0.5)
    assert facial_fine_grained(clean, predicted, half, None).item() == pytest.approx(0.25)


def test_the_whole_loss_is_the_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    clean, noise, predicted = (torch.randn(2, 4, 3, 4, 4) for _ in range(3))
    alpha, sigma = noise_levels(torch.linspace(0.99, 0.01, 10), torch.tensor([2, 8]), clean)
    mask = torch.rand(2, 3, 4, 4)
    loss = training_loss(predicted, clean, noise, alpha, sigma, expression_mask=mask, facial_mask=mask, ffg_weight=0.5)
    error = predicted - (alpha * noise - sigma * clean)
    assert loss.ldm.item() == pytest.approx((error**2).mean().item())
    # z - z^ = sigma (v^ - v), so the facial part is the same error weighed by sigma and twice the mask.
    assert loss.ffg.item() == pytest.approx(((2 * mask[:, None] * sigma * error) ** 2).mean().item(), rel=1e-4)
    assert loss.total.item() == pytest.approx((loss.ldm + 0.5 * loss.ffg).item())


def test_a_mask_of_another_shape_is_refused() -> None:
    latents = torch.zeros(1, 4, 2, 4, 4)
    with pytest.raises(ValueError, match=r"facial_mask must be \(1, 2, 4, 4\), got \(1, 4, 4\)"):
        facial_fine_grained(latents, latents, None, torch.zeros(1, 4, 4))

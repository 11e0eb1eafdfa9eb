"""The loss against hand-made masks, the algebra of v-prediction, and which frames are given clean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from fye_pipeline.models.official import SCHEDULER
from fye_pipeline.training.losses import draw_given_frames, facial_fine_grained, training_loss, with_given_frames


def test_the_true_velocity_has_no_loss() -> None:
    clean, noise = torch.randn(2, 4, 3, 5, 7), torch.randn(2, 4, 3, 5, 7)
    scheduler: Any = DDPMScheduler.from_config(SCHEDULER)
    timesteps = torch.tensor([400, 999])
    alpha = scheduler.alphas_cumprod[timesteps].reshape(2, 1, 1, 1, 1)
    true = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    mask = torch.ones(2, 3, 5, 7)
    assert training_loss(scheduler, true, clean, noise, timesteps, expression_mask=mask).total < 1e-10
    noisy = scheduler.add_noise(clean, noise, timesteps)
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
    scheduler: Any = DDPMScheduler.from_config(SCHEDULER)
    timesteps = torch.tensor([200, 800])
    alpha = scheduler.alphas_cumprod[timesteps].reshape(2, 1, 1, 1, 1)
    alpha, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    mask = torch.rand(2, 3, 4, 4)
    masks = {"expression_mask": mask, "facial_mask": mask}
    loss = training_loss(scheduler, predicted, clean, noise, timesteps, **masks, ffg_weight=0.5)
    error = predicted - (alpha * noise - sigma * clean)
    assert loss.ldm.item() == pytest.approx((error**2).mean().item())
    # z - z^ = sigma (v^ - v), so the facial part is the same error weighed by sigma and twice the mask.
    assert loss.ffg.item() == pytest.approx(((2 * mask[:, None] * sigma * error) ** 2).mean().item(), rel=1e-4)
    assert loss.total.item() == pytest.approx((loss.ldm + 0.5 * loss.ffg).item())


def test_a_mask_of_another_shape_is_refused() -> None:
    latents = torch.zeros(1, 4, 2, 4, 4)
    with pytest.raises(ValueError, match=r"facial_mask must be \(1, 2, 4, 4\), got \(1, 4, 4\)"):
        facial_fine_grained(latents, latents, None, torch.zeros(1, 4, 4))


def test_half_keep_the_ends_and_half_drop_each_frame_with_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    given = draw_given_frames(4000, 8, none_share=0.0, generator=generator)
    ends = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1])
    is_ends = (given == ends).all(dim=1)
    assert is_ends.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert given[~is_ends].mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_some_clips_are_given_nothing(share: float) -> None:
    given = draw_given_frames(4000, 16, none_share=share, generator=torch.Generator().manual_seed(1))
    assert (given.sum(1) == 0).float().mean().item() == pytest.approx(share, abs=0.03)


def test_nine_channels_hold_noise_known_latents_and_mask() -> None:
    noisy, clean = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    given = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    sample = with_given_frames(noisy, clean, given)
    assert sample.shape == (2, 9, 3, 2, 2)
    assert torch.equal(sample[:, :4], noisy)
    assert torch.equal(sample[0, 4:8, 0], clean[0, :, 0])
    assert sample[0, 4:, 1:].abs().max() == 0
    assert torch.equal(sample[:, 8, :, 0, 0], given)


def test_the_hint_stands_only_where_nothing_is_given() -> None:
    noisy, clean, hint = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 2, 2)
    sample = with_given_frames(noisy, clean, torch.tensor([[1.0, 0.0]]), hint)
    assert torch.equal(sample[0, 4:8, 0], clean[0, :, 0])
    assert torch.equal(sample[0, 4:8, 1], hint[0])
    assert sample[0, 8, 1].abs().max() == 0


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none_share must be in \[0, 1\], got 1.5"):
        draw_given_frames(1, 4, none_share=1.5)

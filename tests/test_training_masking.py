"""Which frames are given clean, and how the UNet is told."""

from __future__ import annotations

import pytest
import torch

from fye_pipeline.training.masking import draw_given_frames, with_given_frames


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

"""Diffusion with v-prediction, and the facial fine-grained loss on the clean latents that follow from v."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """total = ldm + ffg_weight * ffg; each a scalar."""

    total: Tensor
    ldm: Tensor
    ffg: Tensor


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.ndim - 1))).to(like)


def noise_levels(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of timesteps [B], shaped to multiply `like` [B, ...]."""
    alpha = alphas_cumprod.to(timesteps.device)[timesteps]
    return _broadcast(alpha.sqrt(), like), _broadcast((1 - alpha).sqrt(), like)


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z_t = alpha z + sigma eps."""
    return alpha * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma z, what the UNet predicts."""
    return alpha * noise - sigma * clean


def clean_from_velocity(noisy: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z^ = alpha z_t - sigma v, the clean latents that a prediction implies."""
    return alpha * noisy - sigma * v


def facial_fine_grained(
    clean: Tensor,
    predicted: Tensor,
    expression_mask: Tensor | None,
    facial_mask: Tensor | None,
) -> Tensor:
    """L_FFG = E || M_e (z - z^) + M_f (z - z^) ||^2; a latent under both masks counts twice before squaring.

    clean, predicted: [B, C, F, h, w]; masks: [B, F, h, w] in [0, 1], None switches a half off (Table 4).
    Raises ValueError if a mask does not fit. Returns a scalar, zero where both are off.
    """
    difference = clean - predicted
    weight = difference.new_zeros(())
    for name, mask in (("expression_mask", expression_mask), ("facial_mask", facial_mask)):
        if mask is None:
            continue
        if mask.shape != clean[:, 0].shape:
            raise ValueError(f"{name} must be {tuple(clean[:, 0].shape)}, got {tuple(mask.shape)}")
        weight = weight + mask[:, None].to(difference)
    return ((weight * difference) ** 2).mean()


def training_loss(
    v_predicted: Tensor,
    clean: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    expression_mask: Tensor | None = None,
    facial_mask: Tensor | None = None,
    ffg_weight: float = 1.0,
) -> LossParts:
    """L = L_LDM + L_FFG. All latents [B, 4, F, h, w], alpha and sigma from `noise_levels`, masks [B, F, h, w]."""
    ldm = ((v_predicted - velocity(clean, noise, alpha, sigma)) ** 2).mean()
    noisy = add_noise(clean, noise, alpha, sigma)
    predicted = clean_from_velocity(noisy, v_predicted, alpha, sigma)
    ffg = facial_fine_grained(clean, predicted, expression_mask, facial_mask)
    return LossParts(ldm + ffg_weight * ffg, ldm, ffg)

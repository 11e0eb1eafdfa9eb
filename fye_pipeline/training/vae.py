"""Training of the small image autoencoder: sharp where the expression is, smooth in its latents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from fye_pipeline.regions import expression_mask
from fye_pipeline.training.data import HeadData, to_tensor


@dataclass(frozen=True)
class VaeConfig:
    """How the autoencoder is trained; crops are cheaper than pictures and see the face more often."""

    seconds: float = 1500.0
    batch: int = 16
    crop: int = 64
    whole_from: float = 0.8  # share of the time after which whole pictures are used
    lr: float = 2e-3
    lr_end: float = 5e-5
    kl_weight: float = 2e-4
    gradient_weight: float = 1.0
    expression_weight: float = 3.0
    ema: float = 0.998
    seed: int = 0


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours. [B, C, H, W] -> [B, C, H, W-1], [B, C, H-1, W]."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor, weight: Tensor, gradient_weight: float) -> Tensor:
    """Weighted L1 of pixels plus that of their gradients at two scales. weight [B, 1, H, W], about 1."""
    error = output - target
    loss = (error.abs() * weight).mean()
    for scale in (1, 2):
        if scale > 1:
            error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
        dx, dy = gradients(error)
        loss = loss + gradient_weight / 2 * (
            (dx.abs() * weight[..., 1:]).mean() + (dy.abs() * weight[..., 1:, :]).mean()
        )
    return loss


def draw_batch(data: HeadData, config: VaeConfig, rng: np.random.Generator, crop: int) -> tuple[Tensor, Tensor]:
    """Random crops, three in four around the expression. -> pictures [B, 3, crop, crop], weights [B, 1, crop, crop]."""
    size = data.meta.size
    count = config.batch if crop < size else max(config.batch * crop * crop // (size * size) // 4, 4)
    pictures, weights = [], []
    for _ in range(count):
        head, take = rng.integers(len(data)), rng.integers(data.frames.shape[1])
        landmarks = data.landmarks[head, take]
        corner = rng.integers(0, size - crop + 1, 2)
        if rng.random() < 0.75:
            focus = landmarks[rng.choice((468, 473, 13, 14, 61, 291, 4, 152)), :2] * size
            corner = np.clip(np.round(focus - crop / 2 + rng.uniform(-crop / 4, crop / 4, 2)), 0, size - crop)
        x, y = int(corner[0]), int(corner[1])
        mask = expression_mask(landmarks, size, size, radius=1 / 40)[y : y + crop, x : x + crop]
        pictures.append(data.frames[head, take, y : y + crop, x : x + crop])
        weights.append(1 + config.expression_weight * mask)
    return to_tensor(np.stack(pictures)), torch.from_numpy(np.stack(weights)).float()[:, None]


def train_vae(
    vae: AutoencoderKL,
    data: HeadData,
    output: Path,
    config: VaeConfig,
    *,
    on_progress: Callable[[str], None] = print,
    resume: bool = False,
) -> AutoencoderKL:
    """Train for `config.seconds` of wall time; writes `last.pt` every minute and returns the averaged weights."""
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([5, config.seed])
    torch.manual_seed(config.seed)
    vae = vae.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
    average = {name: value.clone() for name, value in vae.state_dict().items()}
    spent, step, saved, running = 0.0, 0, 0.0, 0.0
    checkpoint = output / "last.pt"
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average, spent, step = state["average"], state["spent"], state["step"]
        saved = spent
    while spent < config.seconds:
        begun = time.monotonic()
        share = spent / config.seconds
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = warm * (config.lr_end + (config.lr - config.lr_end) * (1 + math.cos(math.pi * share)) / 2)
        crop = config.crop if share < config.whole_from else data.meta.size
        pictures, weight = draw_batch(data, config, rng, crop)
        posterior = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        kl = -0.5 * (1 + posterior.logvar - posterior.mean**2 - posterior.var).mean()
        loss = reconstruction_loss(decoded, pictures, weight, config.gradient_weight) + config.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(config.ema, (step + 1) / (step + 10))
            for name, value in vae.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        step += 1
        spent += time.monotonic() - begun
        l1 = float((decoded.detach() - pictures).abs().mean() / 2)
        running = l1 if step == 1 else 0.98 * running + 0.02 * l1
        if step % 50 == 0:
            on_progress(f"step {step}  {spent:.0f} s  crop {crop}  L1 {running:.4f}  loss {loss:.4f}  KL {kl:.2f}")
        if spent - saved > 60 or spent >= config.seconds:
            saved = spent
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save(state | {"spent": spent, "step": step}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    vae.load_state_dict(average)
    return vae.eval()


@torch.no_grad()
def set_scaling(vae: AutoencoderKL, data: HeadData, *, pictures: int = 256) -> float:
    """Write 1 / (standard deviation of the latents) into the config, so that they are of unit size; return it."""
    heads = np.linspace(0, len(data) - 1, pictures).astype(int)
    batch = to_tensor(data.frames[heads, np.arange(pictures) % data.frames.shape[1]])
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in batch.split(32)])
    factor = round(float(1 / latents.std()), 5)
    vae.register_to_config(scaling_factor=factor)
    return factor

"""Training of the small image autoencoder: sharp where the expression is, smooth in its latents."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from fye_pipeline.landmarks.drawing import expression_mask
from fye_pipeline.training.batches import to_tensor
from fye_pipeline.training.heads import HeadData
from fye_pipeline.world.textures import PATTERNS, camera, natural_picture, to_bytes

CARRIED = 8  # channels that carry the picture through the network at first


@dataclass(frozen=True)
class VaeConfig:
    """How the autoencoder is trained; crops are cheaper than pictures and see the face more often."""

    seconds: float = 1150.0
    batch: int = 6
    crop: int = 64
    whole_from: float = 0.6  # share of the time after which whole pictures are used
    lr: float = 1.5e-3
    lr_end: float = 5e-5
    kl_weight: float = 2e-4
    gradient_weight: float = 0.7
    expression_weight: float = 3.0
    ema: float = 0.998
    decoder_only: bool = False  # latents stay what they are: for a decoder that goes on learning after the UNet
    picture_share: float = 0.0  # share of the batch that are natural pictures in place of rendered heads
    textured_share: float = 0.0  # share of the rendered heads that are laid over with a texture
    ssim_weight: float = 0.0  # of 1 - SSIM
    keep_weight: float = 0.0  # of the squared change of rendered heads' latents, for a UNet that knows them
    keep_channels: int | None = None  # the first so many are held, others are new; None: all are held
    latent_noise: float = 0.0  # added to the latents before decoding, in standard deviations
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


def natural_pictures(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures with the statistics of photographs, some of less contrast. -> [count, size, size, 3]."""
    pictures = np.empty((count, size, size, 3), np.uint8)
    for number in range(count):
        rng = np.random.default_rng([10, seed, number])
        drawn = natural_picture(size, rng).astype(np.float32)
        mean = drawn.mean((0, 1))
        pictures[number] = (mean + (drawn - mean) * rng.uniform(0.35, 1.0) + 0.5).astype(np.uint8)
    return pictures


def draw_batch(
    data: HeadData, config: VaeConfig, rng: np.random.Generator, crop: int, natural: NDArray[np.uint8] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops, of heads three in four around the expression, some of natural pictures [M, H, W, 3].

    -> pictures [B, 3, crop, crop], weights [B, 1, crop, crop], and which are untouched heads [B].
    """
    size = data.meta.size
    count = config.batch if crop < size else max(config.batch * crop * crop // (size * size) // 4, 4)
    pictures, weights, heads = [], [], []
    for _ in range(count):
        if natural is not None and rng.random() < config.picture_share:
            y, x = rng.integers(0, size - crop + 1, 2)
            picture = natural[rng.integers(len(natural)), y : y + crop, x : x + crop]
            pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
            weights.append(np.ones((crop, crop)))
            heads.append(False)
            continue
        head, take = rng.integers(len(data)), rng.integers(data.frames.shape[1])
        landmarks = data.landmarks[head, take]
        corner = rng.integers(0, size - crop + 1, 2)
        if rng.random() < 0.75:
            focus = landmarks[rng.choice((468, 473, 13, 14, 61, 291, 4, 152)), :2] * size
            corner = np.clip(np.round(focus - crop / 2 + rng.uniform(-crop / 4, crop / 4, 2)), 0, size - crop)
        x, y = int(corner[0]), int(corner[1])
        mask = expression_mask(landmarks, size, size, radius=1 / 40)[y : y + crop, x : x + crop]
        picture = data.frames[head, take, y : y + crop, x : x + crop]
        textured = rng.random() < config.textured_share
        pictures.append(_lay_over(picture, rng) if textured else picture)
        heads.append(not textured)
        weights.append(1 + config.expression_weight * mask)
    weight = torch.from_numpy(np.stack(weights)).float()[:, None]
    return to_tensor(np.stack(pictures)), weight, torch.tensor(heads)


def _lay_over(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A texture over the whole picture, then what a camera adds."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))](len(picture), rng)[..., None] - 0.5
    tint = rng.uniform(0.3, 1, 3) * rng.uniform(0.1, 0.9)
    return camera(to_bytes(picture / 255 * (1 + pattern * tint)), rng)


def train_vae(
    vae: Any,
    data: HeadData,
    output: Path,
    config: VaeConfig,
    *,
    on_progress: Callable[[str], None] = print,
    resume: bool = False,
    natural: NDArray[np.uint8] | None = None,
) -> Any:
    """Train for `config.seconds` of wall time; writes `last.pt` every minute and returns the averaged weights."""
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([5, config.seed])
    torch.manual_seed(config.seed)
    vae = vae.to(memory_format=torch.channels_last).train()
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()] if config.decoder_only else None
    vae.requires_grad_(trained is None)
    for parameter in trained or []:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained or vae.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)
    former = copy.deepcopy(vae.encoder), copy.deepcopy(vae.quant_conv)
    average = {name: value.clone() for name, value in vae.state_dict().items()}
    spent, step, saved, running = 0.0, 0, 0.0, 0.0
    checkpoint = output / "last.pt"
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=vae.device, weights_only=True)
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
        drawn = draw_batch(data, config, rng, crop, natural)
        pictures, weight, heads = (each.to(vae.device) for each in drawn)
        posterior = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        latents = posterior.mean if config.decoder_only else posterior.sample()
        decoded = vae.decode(latents + config.latent_noise * torch.randn_like(latents)).sample
        kl = -0.5 * (1 + posterior.logvar - posterior.mean**2 - posterior.var).mean()
        loss = reconstruction_loss(decoded, pictures, weight, config.gradient_weight) + config.kl_weight * kl
        if config.ssim_weight:
            similar = structural_similarity_index_measure(decoded, pictures, data_range=2.0)
            assert isinstance(similar, Tensor)
            loss = loss + config.ssim_weight * (1 - similar)
        if config.keep_weight and heads.any():
            with torch.no_grad():
                before = former[1](former[0](pictures[heads]))[:, : config.keep_channels or latents.shape[1]]
            loss = loss + config.keep_weight * ((posterior.mean[heads][:, : before.shape[1]] - before) ** 2).mean()
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
def normalise_latents(vae: Any, data: HeadData, *, pictures: int = 512, kept: int = 0) -> None:
    """Fold a shift and a scale per channel into the 1x1 convolutions around the latents: zero mean, unit variance.

    A channel of small variance would weigh less in the diffusion loss than the detail it carries deserves.
    Reconstructions stay what they were; the config's scaling factor becomes 1. kept: so many channels, the first ones,
    stay as they are, and so does the factor.
    """
    heads = np.linspace(0, len(data) - 1, pictures).astype(int)
    batch = to_tensor(data.frames[heads, np.arange(pictures) % data.frames.shape[1]])
    latents = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mean for part in batch.split(16)])
    factor = vae.config["scaling_factor"] if kept else 1.0
    mean, scale = latents.mean((0, 2, 3)), 1 / (factor * latents.std((0, 2, 3)))
    mean[:kept], scale[:kept] = 0, 1
    channels = len(mean)
    first, after = vae.quant_conv, vae.post_quant_conv
    first.weight[:channels] *= scale[:, None, None, None]
    first.bias[:channels] = (first.bias[:channels] - mean) * scale
    first.bias[channels:] += 2 * scale.log()  # the log variance of a scaled latent
    after.bias += after.weight[..., 0, 0] @ mean
    after.weight /= scale[None, :, None, None]
    vae.register_to_config(scaling_factor=factor)


@torch.no_grad()
def start_as_thumbnail(vae: Any) -> None:
    """Choose first weights with which the latents are the picture's 8x8 block means: only detail is left to learn.

    From random weights a narrow autoencoder spends most of a short training on colour alone. Channels 0-2 carry RGB
    through every residual path, 3-5 its negative (silu(x) - silu(-x) = x undoes the last activation) and 6, 7 a
    constant that keeps the scale visible behind the normalisations; every branch starts at zero. Raises ValueError if a
    level has fewer than 8 channels.
    """
    if min(vae.config["block_out_channels"]) < CARRIED:
        raise ValueError(f"every level needs at least {CARRIED} channels, got {vae.config['block_out_channels']}")
    for module in vae.modules():
        layer: Any = module
        if isinstance(module, ResnetBlock2D):
            _silence(module.conv2)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, 1)
        elif isinstance(module, Attention):
            _silence(layer.to_out[0])
        elif isinstance(module, Downsample2D):
            _carry(module.conv, 2)
        elif isinstance(module, Upsample2D):
            _carry(module.conv, 3)
    # Brightness and two colour differences, which are less alike than red, green and blue.
    mix = torch.tensor([[0.6, 0.6, 0.6], [0.9, -0.9, 0.0], [0.5, 0.5, -1.0]])
    both_signs = torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(2, 3)])  # [8, 3]
    _spread(vae.encoder.conv_in, both_signs)
    _spread(vae.decoder.conv_in, both_signs @ torch.linalg.inv(mix))
    _gather(vae.encoder.conv_out, mix @ both_signs.T)
    _gather(vae.decoder.conv_out, 0.2 * both_signs.T)  # what the normalisations leave of the contrast
    channels = vae.config["latent_channels"]
    vae.encoder.conv_out.weight[channels:].zero_()
    vae.encoder.conv_out.bias[channels:] = -4.0  # a small variance to start with
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.out_channels)[..., None, None])
        conv.bias.zero_()


def _silence(layer: Any) -> None:
    """Let a branch add nothing at first."""
    layer.weight.zero_()
    layer.bias.zero_()


def _carry(conv: Any, taps: int) -> None:
    """Let the carried channels through: taps 1 or 3 by the centre tap, 2 by the mean of a 2x2 block."""
    size = conv.kernel_size[0]
    conv.weight[:CARRIED].zero_()
    conv.bias[:CARRIED].zero_()
    for k in range(CARRIED):
        if taps == 2:
            conv.weight[k, k, :2, :2] = 0.25
        else:
            conv.weight[k, k, size // 2, size // 2] = 1.0


def _spread(conv: Any, matrix: Tensor) -> None:
    """The first three inputs into the carried channels, and the constant. matrix [8, 3]."""
    conv.weight[:CARRIED].zero_()
    conv.weight[:CARRIED, :3, 1, 1] = matrix
    conv.bias[:CARRIED] = torch.tensor([0.0] * 6 + [1.0, -1.0])


def _gather(conv: Any, matrix: Tensor) -> None:
    """The carried channels into the first three outputs. matrix [3, 8]."""
    conv.weight[:3].zero_()
    conv.bias[:3].zero_()
    conv.weight[:3, :CARRIED, 1, 1] = matrix

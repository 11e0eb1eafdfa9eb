"""ID-enhanced contrast alignment: what the refined adapter took from identity and expression, brought back a little.

One noisy latent, three predictions: the adapter that learns, the identity branch alone, and the frozen refined one.
From each a picture is made in one step; the learning one is to show the identity of the second, the expression of the
third (EmojiDiff, section 3.4).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.expression_crop import FACE_TEMPLATE, FIVE
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet, upright
from fye_pipeline.emoji.training import Batch, Trained, plain_loss
from fye_pipeline.landmarks.topology import CONTOUR, FACE_OVAL

WING_W, WING_E = 0.1, 0.02  # in eye distances: Feng et al.'s 10 and 2 pixels of a face of about 100
LATEST = 600  # R_tmax: later timesteps are brought back to it
DECODED = 2  # of a batch: pictures that the losses see
INNER = tuple(sorted({*range(478)} - {*FACE_OVAL, *CONTOUR}))


def wing(x: Tensor, w: float = WING_W, e: float = WING_E) -> Tensor:
    """The wing loss: w ln(1 + |x| / e) below w, |x| - C above (Feng et al. 2018, Eq. 5)."""
    size = x.abs()
    return torch.where(size < w, w * torch.log1p(size / e), size - (w - w * math.log1p(w / e)))


def one_step_latents(scheduler: Any, batch: Batch, prediction: Tensor, latest: int = LATEST) -> Tensor:
    """Adaptive noise inversion: clean latents moved by the prediction's error. Shapes as the latents.

    Of noise: z + f(t) (eps - eps'), f = sqrt((1 - a) / a), which grows without end: from `latest` on it is f(latest).
    Of velocity the same error is sqrt(1 - a) (v - v'), which is bounded by itself.
    """
    products = scheduler.alphas_cumprod.to(prediction.device)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.clean, batch.noise, batch.timesteps)
        factor = (1 - products[batch.timesteps]).sqrt()
    else:
        target = batch.noise
        kept = products[batch.timesteps.clamp(max=latest)]
        factor = ((1 - kept) / kept).sqrt()
    return batch.clean + factor.view(-1, 1, 1, 1) * (target - prediction)


def one_step_picture(vae: Any, scheduler: Any, batch: Batch, prediction: Tensor, count: int = DECODED) -> Tensor:
    """The picture that a prediction leads to in one step, of the first `count`. -> [count, 3, H, W] in [0, 1]."""
    latents = one_step_latents(scheduler, batch, prediction)[:count] / vae.config["scaling_factor"]

    def decode(given: Tensor) -> Tensor:
        return vae.decode(given).sample

    made = checkpoint(decode, latents, use_reentrant=False) if latents.requires_grad else decode(latents)
    assert isinstance(made, Tensor)
    return (made / 2 + 0.5).clamp(0, 1)


@dataclass
class Weights:
    """identity: of L_id. expression: of L_exp; None: set from the first batches, so that gradients compare."""

    identity: float = 0.08
    expression: float | None = None
    share: float = 0.5  # of L_sd's gradient that L_exp's is to have
    measured: int = 20  # batches


class Alignment:
    """What `align` adds to the loss. Branch 2 of the UNet is the frozen copy of the refined expression branch."""

    def __init__(
        self, pipe: Any, identity_net: IdentityNet, landmark_net: LandmarkNet, landmarks: np.ndarray, weights: Weights
    ) -> None:
        self.pipe, self.identity_net, self.landmark_net = pipe, identity_net, landmark_net
        self.landmarks, self.weights = landmarks, weights
        self.ratios: list[float] = []

    def __call__(self, model: Trained, batch: Batch, noisy: Tensor, prediction: Tensor) -> Tensor:
        """0.08 L_id + w L_exp, of the first pictures of a batch. -> a scalar."""
        vae, scheduler = self.pipe.vae, self.pipe.scheduler
        part = batch.first(DECODED)
        with torch.no_grad():
            frozen = []
            for scales in ((1.0, 0.0, 0.0), (1.0, 0.0, 1.0)):
                adapter.set_scales(model.unet, scales)
                made = model(noisy[:DECODED], part.timesteps, part.tokens, part.embeds)
                frozen.append(one_step_picture(vae, scheduler, part, made))
            adapter.set_scales(model.unet, LEARNING)
        ours = one_step_picture(vae, scheduler, part, prediction[:DECODED])
        marks = self.landmarks[part.rows[:, 0], part.rows[:, 1]]
        side = self.identity_net.size
        five = torch.from_numpy(np.ascontiguousarray(marks[:, list(FIVE), :2]))
        own, wanted = (self.identity_net(upright(each, five, FACE_TEMPLATE, side)[0]) for each in (ours, frozen[0]))
        identity = (1 - (own * wanted).sum(-1)).mean()
        eyes = float(np.linalg.norm(marks[:, 33, :2] - marks[:, 263, :2], axis=-1).mean())
        points = [self.landmark_net(each)[0][:, list(INNER)] for each in (ours, frozen[1])]
        expression = wing((points[0] - points[1]) / eyes).mean()
        return self.weights.identity * identity + self._weight(model, batch, prediction, expression) * expression

    def _weight(self, model: Trained, batch: Batch, prediction: Tensor, expression: Tensor) -> float:
        """The set weight; while it is measured, the mean so far of what makes the gradients compare."""
        if self.weights.expression is not None:
            return self.weights.expression
        loss = plain_loss(self.pipe.scheduler, batch, prediction)
        norms = [gradient_norm(each, prediction) for each in (loss, expression)]
        self.ratios.append(self.weights.share * norms[0] / max(norms[1], 1e-12))
        if len(self.ratios) >= self.weights.measured:
            self.weights.expression = float(np.mean(self.ratios))
        return float(np.mean(self.ratios))


LEARNING = (1.0, 1.0, 0.0)


def gradient_norm(loss: Tensor, at: Tensor) -> float:
    """The length of a loss's gradient by the prediction, through which both losses reach the weights."""
    return float(torch.autograd.grad(loss, at, retain_graph=True)[0].norm())


def hang_frozen(unet: Any) -> None:
    """Give an attached UNet a third branch: the expression branch as it is now, which stays so, at scale 0."""
    branches: list[nn.Module] = list(unet.encoder_hid_proj.image_projection_layers)
    before = {name: each.processor for name, each in adapter.cross_attentions(unet).items()}
    adapter.detach(unet)
    adapter.attach(unet, [*branches, copy.deepcopy(branches[1])])
    with torch.no_grad():
        for name, attention in adapter.cross_attentions(unet).items():
            for kind in ("to_k_ip", "to_v_ip"):
                for new, old in enumerate((0, 1, 1)):
                    weight = getattr(before[name], kind)[old].weight
                    getattr(attention.processor, kind)[new].weight.copy_(weight)
    adapter.set_scales(unet, LEARNING)

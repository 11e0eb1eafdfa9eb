"""What a face in latents expresses, told without decoding: it shows a small model where expressions matter.

In a picture of 128 pixels the eyes are two places of the latents; the plain loss hardly feels whether they are open.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fye_pipeline.emoji.alignment import gradient_norm, one_step_latents
from fye_pipeline.emoji.expression_crop import points_in_crop
from fye_pipeline.emoji.network_training import NetworkConfig, Report, optimise
from fye_pipeline.emoji.people import People
from fye_pipeline.emoji.training import Batch, Trained, plain_loss
from fye_pipeline.landmarks.topology import EXPRESSION_POINTS, N_BLENDSHAPES

NOISE = 0.4  # of the latents' spread, at most: a prediction in one step is never clean
LATEST = 800  # timestep from which on such a prediction shows no expression


class LatentFaceNet(nn.Module):
    """Latents [B, 4, 16, 16] -> the expression's points [B, N, 2] in an upright crop (0..1), blendshapes [B, 52]."""

    def __init__(self, channels: int = 4, side: int = 16, width: int = 48, hidden: int = 160) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)),
            *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 2 * width, 3, 2, 1)),
            *(nn.GroupNorm(8, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, width, 3, 1, 1)),
            *(nn.GroupNorm(8, width), nn.SiLU(), nn.Flatten(), nn.Linear(width * (side // 2) ** 2, hidden), nn.SiLU()),
        )
        self.points = nn.Linear(hidden, 2 * len(EXPRESSION_POINTS))
        self.shapes = nn.Linear(hidden, N_BLENDSHAPES)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.trunk(latents)
        return self.points(inner).unflatten(1, (-1, 2)), self.shapes(inner)


def expression_points(people: People) -> NDArray[np.float32]:
    """The expression's points in upright crops of every picture. -> [P, 1 + E, N, 2] in 0..1."""
    chosen = list(EXPRESSION_POINTS)
    rows = [[points_in_crop(marks)[chosen] for marks in person] for person in np.asarray(people.landmarks)]
    return np.asarray(rows, np.float32)


def face_error(points: Tensor, shapes: Tensor, wanted: Tensor, scores: Tensor) -> Tensor:
    """How far points [B, N, 2] and blendshapes [B, 52] are off, one by one. -> [B]."""
    return 20 * (points - wanted).abs().mean((1, 2)) + 20 * (shapes - scores).square().mean(1)


def train_latent_face(
    people: People, latents: NDArray[np.float16], wanted: NDArray[np.float32], config: NetworkConfig, report: Report
) -> LatentFaceNet:
    """Fit the network to the latents of rendered people, at several strengths of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LatentFaceNet(latents.shape[2], latents.shape[-1])
    with torch.no_grad():
        network.points.bias.copy_(torch.from_numpy(wanted[:64].mean((0, 1))).flatten())
        network.shapes.bias.copy_(torch.from_numpy(people.scores[:64].mean((0, 1))))

    def loss_of(rng: np.random.Generator) -> Tensor:
        count = config.batch
        who, which = rng.integers(len(people), size=count), rng.integers(latents.shape[1], size=count)
        clean = latents[who, which].astype(np.float32)
        noise = rng.standard_normal(clean.shape, dtype=np.float32) * rng.uniform(0, NOISE, (count, 1, 1, 1))
        points, shapes = network(torch.from_numpy((clean + noise).astype(np.float32)))
        labels = torch.from_numpy(wanted[who, which]), torch.from_numpy(people.scores[who, which])
        return face_error(points, shapes, *labels).mean()

    optimise([network], loss_of, config, report)
    return network


class ExpressionLoss:
    """Added to the tiny model's loss: the picture that a prediction leads to is to show the target's expression.

    share: of the plain loss's gradient that this one's is to have, at the prediction; kept up as a running mean.
    """

    def __init__(
        self, scheduler: Any, network: LatentFaceNet, people: People, wanted: NDArray[np.float32], share: float = 0.5
    ) -> None:
        self.scheduler, self.network, self.people, self.wanted = scheduler, network, people, wanted
        self.share, self.weight = share, 0.0

    def __call__(self, model: Trained, batch: Batch, noisy: Tensor, prediction: Tensor) -> Tensor:
        """The weighted error of the expression, of the pictures that are not noise yet. -> a scalar."""
        who, which = batch.rows.T
        labels = torch.from_numpy(self.wanted[who, which]), torch.from_numpy(self.people.scores[who, which])
        points, shapes = self.network(one_step_latents(self.scheduler, batch, prediction))
        seen = (batch.timesteps <= LATEST).float()
        error = (seen * face_error(points, shapes, *labels)).mean()
        if prediction.requires_grad:
            plain = plain_loss(self.scheduler, batch, prediction)
            asked = self.share * gradient_norm(plain, prediction) / max(gradient_norm(error, prediction), 1e-9)
            self.weight = 0.95 * self.weight + 0.05 * asked if self.weight else asked
        return self.weight * error

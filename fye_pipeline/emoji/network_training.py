"""Training of the small networks on people of the rendered world; minutes each on one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from fye_pipeline.emoji.expression_crop import EXPRESSION_TEMPLATE, FIVE, face_crop, points_in_crop
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet, as_batch, encoder_states, tiny_encoder, upright
from fye_pipeline.emoji.people import People
from fye_pipeline.landmarks.topology import EXPRESSION_POINTS
from fye_pipeline.training.config import learning_rate

MARGIN, SCALE = 0.2, 24.0  # of ArcFace
SHIFT = 0.03  # of the side: faces are moved about so much, so that a crop a little off is known too


@dataclass(frozen=True)
class NetworkConfig:
    """How a network is trained; another seed and width make one that measures what the first was used for."""

    steps: int
    batch: int = 48
    lr: float = 1.5e-3
    seed: int = 0


Loss = Callable[[np.random.Generator], Tensor]
Report = Callable[[int, float], None]


def optimise(modules: list[nn.Module], loss_of: Loss, config: NetworkConfig, report: Report) -> None:
    """Lower a loss of modules over a number of steps, the same numbers in every run; then freeze them."""
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=1e-2)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.lr)
        loss = loss_of(np.random.default_rng([71, config.seed, step]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            report(step + 1, float(loss.detach()))
    for module in modules:
        module.eval().requires_grad_(False)


def arcface(cosines: Tensor, people: Tensor, margin: float = MARGIN) -> Tensor:
    """Eq. 3 of ArcFace: the angle to one's own centre is made larger by a margin. [B, P], [B] -> a scalar."""
    own = F.one_hot(people, cosines.shape[1]).bool()
    angles = cosines.clamp(-1 + 1e-6, 1 - 1e-6).arccos()
    return F.cross_entropy(SCALE * torch.where(own, (angles + margin).cos(), cosines), people)


def train_identity(people: People, network: IdentityNet, config: NetworkConfig, report: Report) -> IdentityNet:
    """Fit who is seen: every person a class, in every style and light."""
    takes = people.pictures.shape[1]
    faces = np.stack(
        [
            [face_crop(people.pictures[p, k], people.landmarks[p, k], network.size) for k in range(takes)]
            for p in range(len(people))
        ]
    )
    centres = nn.Linear(network.dimension, len(people), bias=False)
    done = 0

    def loss_of(rng: np.random.Generator) -> Tensor:
        nonlocal done
        done += 1
        who, which = rng.integers(len(people), size=config.batch), rng.integers(takes, size=config.batch)
        batch = _moved(as_batch(faces[who, which]), rng)
        cosines = network(batch) @ F.normalize(centres.weight, dim=-1).T
        # a margin from the start keeps all people in one place
        return arcface(cosines, torch.from_numpy(who), MARGIN * max(2 * done / config.steps - 1, 0))

    optimise([network.train(), centres], loss_of, config, report)
    return network


def _moved(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Each picture shifted and scaled a little at random. [B, 3, S, S] -> the same."""
    count = len(pictures)
    theta = torch.zeros(count, 2, 3)
    theta[:, [0, 1], [0, 1]] = torch.from_numpy(rng.uniform(0.95, 1.05, (count, 1))).float()
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-2 * SHIFT, 2 * SHIFT, (count, 2))).float()
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def train_landmarks(people: People, network: LandmarkNet, config: NetworkConfig, report: Report) -> LandmarkNet:
    """Fit the five points of whole pictures, and landmarks and blendshapes of upright ones that are a little off."""
    takes = people.pictures.shape[1]
    five = list(FIVE)
    with torch.no_grad():
        network.points.bias.copy_(mean_points(people))
        network.five.bias.copy_(torch.from_numpy(people.landmarks[:64, 0, five, :2].mean(0)).flatten())
        network.shapes.bias.copy_(torch.from_numpy(people.scores[:64].mean((0, 1))))

    def loss_of(rng: np.random.Generator) -> Tensor:
        who, which = rng.integers(len(people), size=config.batch), rng.integers(takes, size=config.batch)
        pictures = as_batch(people.pictures[who, which])
        marks = torch.from_numpy(people.landmarks[who, which][..., :2])
        found = network.find(pictures)
        off = marks[:, five] + torch.from_numpy(rng.normal(0, 0.006, (config.batch, 5, 2))).float()
        crops, places = upright(pictures, off, EXPRESSION_TEMPLATE, network.near.size)
        points, shapes = network.look(crops)
        wanted = (marks - places[:, None, :, 2]) @ places[:, :, :2].inverse().transpose(1, 2)
        scores = torch.from_numpy(people.scores[who, which])
        return 10 * (found - marks[:, five]).abs().mean() + face_loss(points, shapes, wanted, scores)

    optimise([network], loss_of, config, report)
    return network


def face_loss(points: Tensor, shapes: Tensor, wanted: Tensor, scores: Tensor) -> Tensor:
    """How far landmarks [B, 478, 2] and blendshapes [B, 52] are off; points that tell the expression weigh most."""
    error = (points - wanted).abs()
    return 5 * error.mean() + 15 * error[:, list(EXPRESSION_POINTS)].mean() + 20 * (shapes - scores).square().mean()


def mean_points(people: People) -> Tensor:
    """Where a portrait's landmarks lie in an upright crop on average. -> [478 * 2]."""
    return torch.from_numpy(
        np.mean([points_in_crop(people.landmarks[p, 0]) for p in range(min(64, len(people)))], axis=0)
    ).flatten()


class Teller(nn.Linear):
    """A linear look at features [B, D] that is to tell blendshapes and landmarks; it begins with the mean face."""

    def __init__(self, width: int, people: People) -> None:
        shapes = people.scores.shape[2]
        super().__init__(width, shapes + people.landmarks.shape[2] * 2)
        self.shapes = shapes
        with torch.no_grad():
            self.bias[self.shapes :] = mean_points(people)

    def loss(self, features: Tensor, people: People, who: NDArray[np.integer], which: NDArray[np.integer]) -> Tensor:
        """How far what it tells of pictures `which` of people `who` is off. -> a scalar."""
        told = self(features)
        wanted = np.stack([points_in_crop(people.landmarks[p, k]) for p, k in zip(who, which, strict=True)])
        labels = torch.from_numpy(wanted).float(), torch.from_numpy(people.scores[who, which])
        return face_loss(told[:, self.shapes :].unflatten(1, (-1, 2)), told[:, : self.shapes], *labels)


def train_encoder(people: People, config: NetworkConfig, report: Report) -> CLIPVisionModel:
    """Fit the expression encoder to tell expression *and* person, so that it can leak as CLIP does; then freeze it."""
    torch.manual_seed(config.seed)
    encoder: Any = tiny_encoder()
    width = encoder.config.hidden_size
    tell, names = Teller(width, people), nn.Linear(width, len(people))
    takes = people.crops.shape[1]

    def loss_of(rng: np.random.Generator) -> Tensor:
        who, which = rng.integers(len(people), size=config.batch), rng.integers(takes, size=config.batch)
        states = encoder_states(encoder, as_batch(people.crops[who, which]))
        told = F.layer_norm(states.mean(1), [width])
        return tell.loss(told, people, who, which) + 0.03 * F.cross_entropy(names(told), torch.from_numpy(who))

    optimise([encoder, tell, names], loss_of, config, report)
    return encoder


def train_projection(
    people: People, encoder: CLIPVisionModel, projection: nn.Module, config: NetworkConfig, report: Report
) -> None:
    """Let a resampler's tokens tell the expression before a UNet listens to them: landmarks and blendshapes."""
    takes = people.crops.shape[1]

    def tokens(crops: NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            states = encoder_states(encoder, as_batch(crops))
        return projection(states).flatten(1)

    tell = Teller(tokens(people.crops[:1, 0]).shape[1], people)

    def loss_of(rng: np.random.Generator) -> Tensor:
        who, which = rng.integers(len(people), size=config.batch), rng.integers(takes, size=config.batch)
        return tell.loss(tokens(people.crops[who, which]), people, who, which)

    optimise([projection, tell], loss_of, config, report)


@torch.no_grad()
def embed(network: IdentityNet, pictures: np.ndarray, landmarks: np.ndarray) -> Tensor:
    """Identity vectors of pictures [B, H, W, 3] whose landmarks [B, 478, >= 2] are known. -> [B, D]."""
    faces = [face_crop(picture, marks, network.size) for picture, marks in zip(pictures, landmarks, strict=True)]
    return network(as_batch(np.stack(faces)))

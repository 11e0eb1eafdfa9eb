"""The stages of EmojiDiff's training, through Accelerate: each is a loss on pairs, and each resumes after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionModel

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.face_nets import IdentityNet, as_batch, encoder_states
from fye_pipeline.emoji.model import grey_states
from fye_pipeline.emoji.network_training import embed
from fye_pipeline.emoji.people import People
from fye_pipeline.landmarks.drawing import expression_mask, facial_mask, reduce_mask
from fye_pipeline.training.checkpointing import Average, Progress, load_checkpoint, save_checkpoint
from fye_pipeline.training.config import learning_rate

FACE, FEATURES = 1.0, 3.0  # of the loss in the face, and at eyes, brows and lips
Picture = NDArray[np.uint8]
Report = Callable[[str], None]


@dataclass(frozen=True)
class StageConfig:
    """How a stage is trained. Dropout as IP-Adapter's: of the text, of the image prompts, of all of them."""

    steps: int
    lr: float
    batch: int = 16
    betas: tuple[float, float] = (0.5, 0.999)
    drop_text: float = 0.05
    drop_images: float = 0.05
    drop_all: float = 0.05
    drop_expression: float = 0.0
    ema: float = 0.995
    seed: int = 0
    checkpoint_every: int = 250


# Of the tiny model.
TINY = {
    "identity": StageConfig(19000, 1.5e-3, betas=(0.9, 0.99), drop_images=0.1, drop_expression=0.15),
    "base": StageConfig(300, 3e-4),
    "refined": StageConfig(300, 3e-4),
    "oracle": StageConfig(300, 3e-4),
    "align": StageConfig(120, 5e-5),
}


@dataclass
class Examples:
    """What the stages draw from: people, their latents [P, 1 + E, C, h, w], who they are [P, D], their prompts."""

    people: People
    latents: NDArray[np.float16]
    identities: Tensor
    weights: NDArray[np.float16]  # [P, 1 + E, h, w]
    tokens: Tensor  # [P, 1 + E, L]
    blank: Tensor  # [L], the empty prompt

    @classmethod
    def make(cls, people: People, folder: Path, pipe: Any, identity_net: IdentityNet) -> Examples:
        """Encode pictures, people and prompts; latents are kept in the folder."""
        latents = latents_of(people, folder / "latents.npy", pipe.vae)
        rows = [embed(identity_net, people.pictures[p, :1], people.landmarks[p, :1]) for p in range(len(people))]
        texts = [text for person in people.prompts for text in person]
        length = pipe.tokenizer.model_max_length
        told = pipe.tokenizer([*texts, ""], padding="max_length", max_length=length, truncation=True)
        tokens = torch.tensor(told["input_ids"])
        weights = np.stack([face_weights(people.landmarks[p], latents.shape[-1]) for p in range(len(people))])
        return cls(
            people, latents, torch.cat(rows), weights, tokens[:-1].view(*people.pictures.shape[:2], length), tokens[-1]
        )


def face_weights(landmarks: NDArray[np.floating], size: int) -> NDArray[np.float16]:
    """How much each place of the latents counts: small features of a face would else drown. -> [B, size, size]."""
    fine = 8 * size
    face, features = facial_mask(landmarks, fine, fine), expression_mask(landmarks, fine, fine, radius=1 / 40)
    weight = 1 + FACE * face + FEATURES * features
    reduced = reduce_mask(torch.from_numpy(weight.astype(np.float32)), size, size)
    return (reduced / reduced.mean((1, 2), keepdim=True)).half().numpy()


@torch.no_grad()
def latents_of(people: People, path: Path, vae: AutoencoderKL) -> NDArray[np.float16]:
    """Means of the autoencoder's latents, scaled. -> [P, 1 + E, C, h, w]."""
    count = len(people)
    if path.exists() and len(kept := np.load(path, mmap_mode="r")) == count:
        return kept
    scale = vae.config["scaling_factor"]
    rows = []
    for person in range(count):
        coded: Any = vae.encode(as_batch(people.pictures[person]) * 2 - 1)
        rows.append((coded.latent_dist.mean * scale).half().numpy())
    np.save(path, np.stack(rows))
    return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class Pairs:
    """Which expression picture a stage shows for which target. rows [N, 2]: person and take; crops [N, S, S, 3]."""

    rows: NDArray[np.int64]
    crops: Picture


def own_pairs(people: People) -> Pairs:
    """Base: the expression picture is the target's own."""
    return _all_pairs(people, people.crops[:, 1:])


def true_pairs(people: People) -> Pairs:
    """Oracle: another person's picture of the same expression, which only a rendered world has."""
    return _all_pairs(people, people.swapped)


def _all_pairs(people: People, crops: Picture) -> Pairs:
    count, takes = crops.shape[:2]
    rows = np.stack(np.meshgrid(np.arange(count), np.arange(1, takes + 1), indexing="ij"), -1).reshape(-1, 2)
    return Pairs(rows, crops.reshape(-1, *crops.shape[2:]))


class Trained(nn.Module):
    """The text encoder and the UNet with its branches as one module, for Accelerate."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.unet, self.text_encoder = pipe.unet, pipe.text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, embeds: Sequence[Tensor]) -> Tensor:
        """Noisy latents, prompts [B, L] and one embedding a branch [B, ...] -> the prediction, as the latents."""
        text = self.text_encoder(tokens)[0]
        conditions = {"image_embeds": [each.unsqueeze(1) for each in embeds]}
        return self.unet(noisy, timesteps, encoder_hidden_states=text, added_cond_kwargs=conditions).sample


@dataclass
class Batch:
    """One step's inputs. embeds: identity [B, D], and for stages with an expression its states [B, T, S]."""

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tensor
    embeds: list[Tensor]
    rows: NDArray[np.int64] = field(repr=False)
    weight: Tensor | float = 1.0  # of each place of the latents [B, 1, h, w]: more where the face is

    def first(self, count: int) -> Batch:
        """Its first examples."""
        parts = (each[:count] for each in (self.clean, self.noise, self.timesteps, self.tokens))
        clean, noise, timesteps, tokens = parts
        return Batch(clean, noise, timesteps, tokens, [each[:count] for each in self.embeds], self.rows[:count])


class Batches:
    """Batches by step, the same whatever came before."""

    def __init__(self, examples: Examples, pairs: Pairs | None, encoder: CLIPVisionModel | None, config: StageConfig):
        self.examples, self.pairs, self.encoder, self.config = examples, pairs, encoder, config
        self.grey = None if encoder is None else grey_states(encoder)

    def __getitem__(self, step: int) -> Batch:
        config, examples = self.config, self.examples
        rng = np.random.default_rng([72, config.seed, step])
        count = config.batch
        if self.pairs is None:
            people, takes = examples.people.pictures.shape[:2]
            rows = np.stack([rng.integers(people, size=count), rng.integers(takes, size=count)], -1)
            states = []
        else:
            chosen = rng.integers(len(self.pairs.rows), size=count)
            rows = self.pairs.rows[chosen]
            assert self.encoder is not None
            with torch.no_grad():
                states = [encoder_states(self.encoder, as_batch(self.pairs.crops[chosen]))]
        who, which = rows.T
        clean = torch.from_numpy(examples.latents[who, which].astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        spread = (np.arange(count) + rng.random(count)) / count  # one timestep from each part of the schedule
        tokens, identity = examples.tokens[who, which].clone(), examples.identities[who].clone()
        chance = torch.from_numpy(rng.random((count, 2)))
        everything = chance[:, 1] < config.drop_all
        tokens[(chance[:, 0] < config.drop_text) | everything] = examples.blank
        images = (chance[:, 0] > 1 - config.drop_images) | everything
        identity[images] = 0
        if states and self.grey is not None:
            states[0][images | torch.from_numpy(rng.random(count) < config.drop_expression)] = self.grey
        timesteps = torch.from_numpy((spread * 1000).astype(np.int64))
        weight = torch.from_numpy(examples.weights[who, which].astype(np.float32))[:, None]
        return Batch(clean, noise, timesteps, tokens, [identity, *states], rows, weight)


def choose_trained(model: Trained, stage: str) -> list[nn.Parameter]:
    """What a stage trains: the first the tiny base and its branches, the others the expression branch alone."""
    model.requires_grad_(False)
    chosen = list(model.parameters()) if stage == "identity" else adapter.branch_parameters(model.unet, 1)
    for weight in chosen:
        weight.requires_grad_(True)
    return chosen


Loss = Callable[[Trained, Batch, Tensor, Tensor], Tensor]


def train_stage(
    stage: str,
    pipe: Any,
    batches: Batches,
    folder: Path,
    config: StageConfig,
    *,
    more_loss: Loss | None = None,
    report: Report = print,
) -> None:
    """Train a stage to its end and leave the averaged weights in the pipeline. Goes on from the last checkpoint.

    more_loss: what the stage adds, from the batch, the noisy latents and the prediction.
    FloatingPointError once a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), project_dir=folder)
    model = Trained(pipe).train()
    chosen = choose_trained(model, stage)
    optimizer = torch.optim.AdamW(chosen, lr=config.lr, betas=config.betas, weight_decay=1e-2)
    average, progress = Average(chosen, config.ema), Progress()
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(average, progress)
    if load_checkpoint(accelerator, folder):
        report(f"{stage}: resumed at step {progress.step}")
    scheduler = pipe.scheduler
    recent: list[float] = []
    while progress.step < config.steps:
        begun = time.monotonic()
        batch = batches[progress.step]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, config.steps, config.lr)
        noisy = scheduler.add_noise(batch.clean, batch.noise, batch.timesteps)
        prediction = prepared(noisy, batch.timesteps, batch.tokens, batch.embeds)
        loss = plain_loss(scheduler, batch, prediction)
        if more_loss is not None:
            loss = loss + more_loss(model, batch, noisy, prediction)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(chosen)
        progress.step += 1
        progress.seconds += time.monotonic() - begun
        recent = [*recent[-99:], float(loss.detach())]
        if not np.isfinite(recent[-1]):
            raise FloatingPointError(f"{stage}: the loss is {recent[-1]} at step {progress.step}; lower the rate")
        if progress.step % 50 == 0 or progress.step == config.steps:
            line = {"step": progress.step, "loss": round(float(np.mean(recent)), 5), "seconds": round(progress.seconds)}
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            report(f"{stage} {progress.step}/{config.steps}  loss {line['loss']:.4f}  {progress.seconds:.0f} s")
        if progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
            save_checkpoint(accelerator, folder, progress.step, keep=1)
    average.copy_to(chosen)
    model.eval().requires_grad_(False)
    accelerator.free_memory()


def target_of(scheduler: Any, batch: Batch) -> Tensor:
    """What the UNet is to predict: the noise, or the velocity."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(batch.clean, batch.noise, batch.timesteps)
    return batch.noise


def plain_loss(scheduler: Any, batch: Batch, prediction: Tensor) -> Tensor:
    """The weighted squared error of a prediction. -> a scalar."""
    return (batch.weight * (prediction - target_of(scheduler, batch)).square()).mean()

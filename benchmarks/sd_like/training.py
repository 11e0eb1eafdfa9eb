"""Training: data, loop, and the recipe beside the weights."""

from __future__ import annotations

import copy
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.sd_like.model import ASSETS, RECIPE, SCHEDULER, UNET, VAE, WEIGHTS, build_unet, prompt_tokens
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.storage.files import weights_hash
from fye_pipeline.training.heads import META, TAKES, HeadData, encode_heads, render_heads
from fye_pipeline.world import World

BATCH = 16
LEARNING_RATE = 1.5e-3
WARMUP = 100
EMA = 0.995
NO_PROMPT = 0.1  # share of samples that are trained without a prompt, for guidance
SAVE_EVERY = 200


def open_world(size: int = 128) -> World:
    """The rendered world, with the canonical face that ships."""
    return World(CanonicalFace.load(), size=size)


def read_data(folder: Path, heads: int, vae: AutoencoderKL) -> tuple[HeadData, NDArray[np.float16]]:
    """Heads and their latents; rendered and encoded first where they are not there."""
    data = HeadData(folder) if (folder / META).exists() else render_heads(open_world(), folder, heads)
    return data, encode_heads(vae, data, folder)


def learning_rate(step: int, steps: int) -> float:
    """A rise over the first steps, then a half cosine to a fiftieth."""
    fall = 0.5 * (1 + np.cos(np.pi * step / steps))
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * float(fall))


class Trainer:
    """The model, its running average, the optimiser, and how far they are."""

    def __init__(self, data: HeadData, latents: NDArray[np.float16], steps: int, seed: int = 0):
        self.data, self.latents, self.steps, self.seed = data, latents, steps, seed
        self.unet = build_unet(seed).train()
        self.average = copy.deepcopy(self.unet).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
        self.scheduler = DDIMScheduler(**SCHEDULER)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        return {
            "unet": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": (self.step, self.steps, self.seconds, self.curve),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state. ValueError if it belongs to a run of another length."""
        step, steps, self.seconds, self.curve = state["progress"]
        if steps != self.steps:
            raise ValueError(f"the saved training has {steps} steps, got --steps {self.steps}; name another --work")
        self.step = step
        self.unet.load_state_dict(state["unet"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean latents, prompt tokens, noise and timesteps of this step; the same whatever came before."""
        rng = np.random.default_rng([7, self.seed, self.step])
        heads, takes = rng.integers(len(self.data), size=BATCH), rng.integers(TAKES, size=BATCH)
        clean = torch.from_numpy(self.latents[heads, takes].astype(np.float32))
        tokens = prompt_tokens(self.data.landmarks[heads, takes])
        tokens[torch.from_numpy(rng.random(BATCH) < NO_PROMPT)] = 0
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        spread = (np.arange(BATCH) + rng.random(BATCH)) / BATCH  # one timestep from each sixteenth of the schedule
        return clean, tokens, noise, torch.from_numpy((spread * 1000).astype(np.int64))

    def advance(self) -> float:
        """One step of the optimiser. -> its loss."""
        started = time.process_time()
        clean, tokens, noise, timesteps = self.batch()
        scheduler: Any = self.scheduler
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps)
        loss = (self.unet(noisy, timesteps, encoder_hidden_states=tokens).sample - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA, self.step / (self.step + 10))
        for mean, value in zip(self.average.parameters(), self.unet.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - decay)
        self.seconds += time.process_time() - started
        return float(loss.detach())


def train(folder: Path, work: Path, output: Path, *, heads: int, steps: int) -> None:
    """Train, or go on training, and write weights, recipe and a copy of the autoencoder to `output`.

    The autoencoder is the one beside the weights that are there, else the one of the weights that ship.
    """
    source = (output if (output / VAE).exists() else ASSETS) / VAE
    vae = AutoencoderKL.from_pretrained(source, torch_dtype=torch.float32).eval()
    data, latents = read_data(folder, heads, vae)
    trainer = Trainer(data, latents, steps)
    saved = work / "last.pt"
    if saved.exists():
        trainer.load(torch.load(saved, weights_only=True))
    losses: list[float] = []
    while trainer.step < steps:
        losses.append(trainer.advance())
        if trainer.step % SAVE_EVERY == 0 or trainer.step == steps:
            trainer.curve.append({"step": trainer.step, "loss": round(float(np.mean(losses)), 4)})
            print(f"{trainer.step}/{steps}  loss {np.mean(losses):.4f}  {trainer.seconds:.0f} s", flush=True)
            losses = []
            work.mkdir(parents=True, exist_ok=True)
            torch.save(trainer.state(), saved.with_suffix(".part"))
            saved.with_suffix(".part").replace(saved)
    write(trainer, weights_hash(sorted(vae.state_dict().items())), output)
    if source != output / VAE:
        shutil.copytree(source, output / VAE)


def write(trainer: Trainer, vae: str, output: Path) -> None:
    """Weights in float16, and beside them how they came about."""
    output.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in trainer.average.state_dict().items()}
    save_file(half, output / WEIGHTS)
    recipe = {
        "command": f"python -m benchmarks.sd_like --train --steps {trainer.steps}",
        "unet": UNET,
        "scheduler": SCHEDULER,
        "parameters": sum(value.numel() for value in half.values()),
        "vae": vae,
        "data": {"split": trainer.data.meta.split, "seed": trainer.data.meta.seed, "heads": len(trainer.data)},
        "steps": trainer.steps,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "ema": EMA,
        "no_prompt": NO_PROMPT,
        "seed": trainer.seed,
        "cpu_seconds": round(trainer.seconds),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "curve": trainer.curve,
    }
    (output / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")

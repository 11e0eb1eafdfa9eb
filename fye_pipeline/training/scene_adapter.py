"""Training of the expression branch on scenes of the rendered world; the animator itself stays as it ships.

Everything that does not change is made once: latents, conditions, features, and what the appearance net tells of each
reference. A step is then one call of the UNet. As in the animator's first phase, frames are pictures by themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fye_pipeline.animate.session import load_model
from fye_pipeline.landmarks.drawing import expression_mask, reduce_mask
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.group_model import ExpressionBranch, conditions_of, reduced
from fye_pipeline.multi_portrait.rendered_features import DIMS, RenderedExtractor
from fye_pipeline.sampling.denoise import encode_bent, encode_image, encode_landmarks, encode_reference
from fye_pipeline.storage.files import atomic_target, weights_hash
from fye_pipeline.training.checkpointing import Progress, load_checkpoint, save_checkpoint
from fye_pipeline.training.config import learning_rate
from fye_pipeline.training.losses import with_given_frames
from fye_pipeline.training.steps import motion_left_out
from fye_pipeline.world import Identity, World
from fye_pipeline.world.drivers import driven_face
from fye_pipeline.world.scenes import render_scene, sample_cast

Report = Callable[[str], None]

MOST = 3  # people in a scene
FRAMES = 4  # of a scene
TWINS = 0.5  # share of the drivers that are another person with the same motion
META = "meta.json"
STEPS_APART = 4.0  # frames a second: a scene's frames differ well


@dataclass(frozen=True)
class AdapterConfig:
    """One training run; two options are FantasyPortrait's ablations.

    augment: factors with a resampler; none is "without augmentation" (Table 2). single: every scene has one person
    ("single faces only", Table 3), else one to three.
    """

    scenes: int = 600
    steps: int = 2400
    batch: int = 2  # scenes
    lr: float = 1.5e-3
    warmup: int = 50
    seed: int = 0
    augment: tuple[str, ...] = ("lip", "emotion")
    single: bool = False
    face_weight: float = 3.0  # of the faces in the loss, beside 1 everywhere
    expression_weight: float = 8.0  # of eyes, brows and mouths
    quiet: float = 0.75  # share of the scenes whose noise is as small as that which a video begins with
    drop: float = 0.1  # share of the people whose features are left out
    checkpoint_every: int = 100
    stop_after: int | None = None  # steps, to go on later
    init: Path | None = None  # a branch's folder to go on from, which also says what has a resampler


def _twin(world: World, rng: np.random.Generator) -> Identity | None:
    """Another person who makes the motion, or nobody."""
    if rng.random() >= TWINS:
        return None
    return world.head("train", int(rng.integers(600_000, 700_000))).identity


@torch.no_grad()
def prepare_scene(
    pipe: Any, world: World, extract: RenderedExtractor, index: int, *, single: bool = False
) -> dict[str, Tensor]:
    """Everything that steps are given of scene number `index`, float16."""
    rng = np.random.default_rng([95, world.seed, index])
    people = 1 if single else int(rng.choice((1, 2, 3), p=(0.2, 0.6, 0.2)))
    cast = sample_cast(world, "train", index, people)
    portrait = render_scene(world, cast, cast.portrait_motions())
    motions = cast.motions(FRAMES, fps=STEPS_APART)
    scene = render_scene(world, cast, motions)
    faces = [
        driven_face(world, cast, portrait, number, motion, extract, twin=_twin(world, rng))
        for number, motion in enumerate(motions)
    ]
    picture = portrait.frames[0]
    given = conditions_of(picture, faces)
    tokens = encode_image(pipe, Image.fromarray(picture))
    reference = encode_reference(pipe, picture)
    exported = pipe.appearance_net(reference, tokens)
    clean = torch.cat([encode_reference(pipe, frame) for frame in scene.frames])
    height, width = clean.shape[-2:]
    whole = np.stack([scene.landmarks(number) for number in range(people)])
    telling = expression_mask(whole, *picture.shape[:2]).max(0)
    masks = torch.zeros(MOST, FRAMES, height, width)
    masks[:people] = reduced(given.masks, pipe.vae_scale_factor)
    bent = encode_bent(pipe, given.bent)
    assert bent is not None
    made = {
        "clean": clean.transpose(0, 1),
        "reference": reference[0],
        "tokens": tokens[0],
        "bent": bent[0],
        "landmarks": encode_landmarks(pipe, given.drawn)[0],
        "masks": masks,
        "telling": reduce_mask(torch.from_numpy(telling), height, width),
    }
    for name in FACTORS:
        made[name] = torch.zeros(MOST, FRAMES, DIMS[name])
        made[name][:people] = torch.from_numpy(np.stack([face.features[name] for face in faces]))
    made |= {f"exported.{k}": value[0] for k, value in enumerate(exported)}
    return {name: value.half().contiguous() for name, value in made.items()}


def prepare_scenes(pipe: Any, folder: Path, config: AdapterConfig, report: Report) -> None:
    """Write every scene that is not there yet, each as a file of its own.

    Scenes of another seed, world, model or extractor, or of other numbers of people, are made anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world, extract = World(CanonicalFace.load(), seed=config.seed), RenderedExtractor()
    key = {"seed": config.seed, "world": world.version, "weights": _weights(pipe, extract)}
    if config.single:
        key["single"] = True
    note = folder / META
    if not note.exists() or json.loads(note.read_text(encoding="utf-8")) != key:
        for path in folder.glob("*.safetensors"):
            path.unlink()
        with atomic_target(note) as temporary:
            temporary.write_text(json.dumps(key), encoding="utf-8")
    for index in range(config.scenes):
        path = folder / f"{index:05d}.safetensors"
        if not path.exists():
            with atomic_target(path) as temporary:
                save_file(prepare_scene(pipe, world, extract, index, single=config.single), temporary)
        if (index + 1) % 20 == 0:
            report(f"scenes: {index + 1} of {config.scenes}")


def _weights(pipe: Any, extract: RenderedExtractor) -> str:
    """A short name for everything that scenes are made with."""
    networks = {name: getattr(pipe, name) for name in ("vae", "image_encoder", "appearance_net", "landmark_encoder")}
    networks["extractor"] = extract.network
    return weights_hash(
        (f"{part}.{name}", value)
        for part, each in networks.items()
        for name, value in sorted(each.state_dict().items())
    )


def train_adapter(
    config: AdapterConfig, output: Path, report: Report, *, data: Path | None = None, resume: bool = False
) -> Path:
    """Prepare scenes, train, write the branch to `output/adapter`; goes on from its last checkpoint with `resume`.

    data: a folder of scenes that several runs share, by default `output/scenes`.
    """
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    pipe = load_model(SHIPPED_MODEL, accelerator.device, torch.float32)
    folder = data or output / "scenes"
    prepare_scenes(pipe, folder, config, report)
    scenes = [load_file(folder / f"{index:05d}.safetensors") for index in range(config.scenes)]
    torch.manual_seed(config.seed)
    unet = pipe.unet.requires_grad_(False)
    if config.init is None:
        branch = ExpressionBranch(unet, augment=config.augment)
    else:
        branch = ExpressionBranch.load(config.init, unet)
    branch.to(accelerator.device).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(branch.parameters(), lr=config.lr, weight_decay=1e-3)
    progress = Progress()
    prepared, optimizer = cast("tuple[Any, Any]", accelerator.prepare(branch, optimizer))
    accelerator.register_for_checkpointing(progress)
    states = output / "states"
    if resume and load_checkpoint(accelerator, states):
        report(f"adapter: resumed at step {progress.step}")
    noises = DDPMScheduler.from_config(pipe.scheduler.config)
    holder: Any = nn.Module()
    holder.unet = unet
    begun, losses = time.monotonic(), []
    with motion_left_out(holder):
        while progress.step < min(config.steps, config.stop_after or config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress.step, config.steps, config.lr, config.warmup)
            loss = adapter_loss(pipe, branch, noises, scenes, config, progress.step)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            progress.step += 1
            if progress.step % 25 == 0:
                pace = (time.monotonic() - begun) / len(losses)
                report(
                    f"adapter {progress.step}/{config.steps}: loss {np.mean(losses[-100:]):.4f}, {pace:.2f} s a step"
                )
            if progress.step % config.checkpoint_every == 0 or progress.step == config.steps:
                save_checkpoint(accelerator, states, progress.step, 1)
                branch.save(output / "adapter")
    branch.save(output / "adapter")
    branch.remove()
    return output / "adapter"


def adapter_loss(
    pipe: Any,
    branch: ExpressionBranch,
    noises: Any,
    scenes: list[dict[str, Tensor]],
    config: AdapterConfig,
    step: int,
) -> Tensor:
    """The loss of one step as a function of its number: v-prediction, weighted by what tells the expression.

    Three in four timesteps are of the noisier half, where the expression is decided.
    """
    unet, device = pipe.unet, pipe.device
    rng = np.random.default_rng([96, config.seed, step])
    chosen = [scenes[k] for k in rng.choice(len(scenes), min(config.batch, len(scenes)), replace=False)]
    batch = {name: torch.stack([each[name] for each in chosen]).float().to(device) for name in chosen[0]}
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    count, total = len(chosen), noises.config["num_train_timesteps"]
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = (share.sqrt() * total).long().clamp(max=total - 1).to(device)
    clean = batch["clean"]
    quiet = torch.rand((count, 1, 1, 1, 1), generator=generator) < config.quiet
    noise = torch.randn(clean.shape, generator=generator) * torch.where(quiet, pipe.noise_scale, 1.0)
    noise = noise.to(device)
    sample = noises.add_noise(clean, noise, timesteps)
    sample = with_given_frames(
        sample, clean, torch.zeros(count, clean.shape[2], device=device), batch["reference"], batch["bent"]
    )
    kept = (torch.rand((count, MOST, 1, 1, 1), generator=generator) >= config.drop).float().to(device)
    exported = [batch[f"exported.{k}"] for k in range(unet.num_references)]
    features = {name: batch[name] for name in FACTORS}
    with branch.given(features, batch["masks"] * kept):
        predicted = unet(
            sample,
            timesteps,
            encoder_hidden_states=batch["tokens"],
            reference_tokens=exported,
            landmark_features=batch["landmarks"],
        ).sample
    wanted = noises.get_velocity(clean, noise, timesteps)
    face = batch["masks"].amax(1)[:, None]
    weight = 1 + config.face_weight * face + config.expression_weight * batch["telling"][:, None]
    return (weight * (predicted - wanted) ** 2).mean()

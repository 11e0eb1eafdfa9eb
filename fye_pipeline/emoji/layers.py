"""Which layers carry the expression: measured, not read off a map (the paper's SDXL choice is others' style block)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.evaluate import Evaluation
from fye_pipeline.emoji.expression_crop import face_crop
from fye_pipeline.emoji.face_nets import as_batch, encoder_states
from fye_pipeline.emoji.model import EmojiModel
from fye_pipeline.emoji.people import People
from fye_pipeline.landmarks.drawing import facial_mask, reduce_mask

TIMESTEPS = (200, 400, 600)
FACE_LAYER = 1.5  # mean energy inside the face over outside, from which a group counts as one of the face
EXP_LIMIT, STYLE_LIMIT = 1.05, 0.5  # of what all layers together reach


@dataclass(frozen=True)
class GroupEnergy:
    """face: F, energy inside the face over outside. expression, style: E and Y, change when only that changes."""

    group: str
    face: float
    expression: float
    style: float

    @property
    def rank(self) -> float:
        """What it tells of the expression against what it tells of person, light and style."""
        return self.expression / max(self.style, 1e-9)


@torch.no_grad()
def contributions(model: EmojiModel, run: Callable[[], object]) -> dict[str, Tensor]:
    """What the expression branch adds in each cross-attention during `run`. -> layer: [B, tokens, C].

    The processor is called again on the same inputs with that branch at 0; the output projection is linear, so the
    difference is the branch.
    """
    added: dict[str, Tensor] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def measure(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            processor = module.processor
            scales, processor.scale = processor.scale, [processor.scale[0], 0.0, *processor.scale[2:]]
            added[name] = output - processor(module, *args, **kwargs)
            processor.scale = scales

        return measure

    for name, attention in adapter.cross_attentions(model.pipe.unet).items():
        handles.append(attention.register_forward_hook(hook(name), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return added


def group_energies(
    model: EmojiModel, people: People, latents: NDArray[np.float16], count: int = 32
) -> list[GroupEnergy]:
    """F, E and Y of every group, over `count` pictures at three timesteps.

    E: from a person's expression to another of the same person. Y: from it to the same expression of another person in
    another style and light, which only a rendered world has.
    """
    own = np.arange(count) % len(people)
    crops = [people.crops[own, 1], people.crops[own, 2], people.swapped[own, 0]]
    states = [encoder_states(model.encoder, as_batch(crop)) for crop in crops]
    faces = [face_crop(people.pictures[p, 0], people.landmarks[p, 0], model.identity_net.size) for p in own]
    identity = torch.cat([model.identity_of(face) for face in faces])
    pipe = model.pipe
    tokens = pipe.tokenizer([""] * count, padding="max_length", max_length=pipe.tokenizer.model_max_length)["input_ids"]
    text = pipe.text_encoder(torch.tensor(tokens))[0]
    clean = torch.from_numpy(np.asarray(latents[own, 1]).astype(np.float32))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    masks = torch.from_numpy(facial_mask(people.landmarks[own, 1], *people.pictures.shape[2:4]))
    found: dict[str, list[tuple[float, float, float]]] = {}
    for timestep in TIMESTEPS:
        steps = torch.full((count,), timestep)
        noisy = pipe.scheduler.add_noise(clean, noise, steps)
        run = partial(pipe.unet, noisy, steps, encoder_hidden_states=text)
        told = [{"image_embeds": model.embeds(identity, each, guided=False)} for each in states]
        maps = [contributions(model, partial(run, added_cond_kwargs=conditions)) for conditions in told]
        for layer, first in maps[0].items():
            energy = first.square().mean(-1)
            side = round(energy.shape[1] ** 0.5)
            inside = reduce_mask(masks, side, side).flatten(1)
            ratio = (energy * inside).sum() / inside.sum() / ((energy * (1 - inside)).sum() / (1 - inside).sum())
            expression, style = (float((other[layer] - first).square().mean()) for other in maps[1:])
            found.setdefault(adapter.group_of(layer), []).append((float(ratio), expression, style))
    return [
        GroupEnergy(group, *(float(np.mean(values)) for values in zip(*rows, strict=True)))
        for group, rows in found.items()
    ]


def ranked(energies: Sequence[GroupEnergy]) -> list[str]:
    """Groups from the most to the least telling: those of the face first, each by E / Y."""
    order = sorted(energies, key=lambda e: (e.face >= FACE_LAYER, e.rank), reverse=True)
    return [energy.group for energy in order]


@dataclass(frozen=True)
class Choice:
    """layers: None where nothing was found that is better than all. tried: what each set reached, in order."""

    layers: tuple[str, ...] | None
    tried: tuple[dict[str, Any], ...]
    reason: str


def choose_layers(order: Sequence[str], measure: Callable[[Sequence[str] | None], dict[str, float]]) -> Choice:
    """Add groups in order until Exp is near that of all; take the set where the style leaks half as much.

    measure: a set of groups (None: all) -> `exp` and `style_leak`.
    """
    everything = measure(None)
    tried: list[dict[str, Any]] = [{"layers": list(order), **everything}]
    for count in range(1, len(order)):
        chosen = tuple(order[:count])
        row = measure(chosen)
        tried.append({"layers": list(chosen), **row})
        if row["exp"] <= EXP_LIMIT * everything["exp"]:
            if row["style_leak"] <= STYLE_LIMIT * everything["style_leak"]:
                return Choice(chosen, tuple(tried), f"{count} of {len(order)} groups")
            return Choice(None, tuple(tried), f"{count} groups carry the expression, but the style leaks with them")
    return Choice(None, tuple(tried), "no part of the groups carries the expression as well as all of them")


def measured_by(evaluation: Evaluation) -> Callable[[Sequence[str] | None], dict[str, float]]:
    """Exp and style leak of a set of groups over an evaluation's pairs; `evaluation.plain` must be set."""
    model = evaluation.model

    def measure(layers: Sequence[str] | None) -> dict[str, float]:
        before = model.settings
        model.settings = replace(before, layers=None if layers is None else tuple(layers))
        figures = evaluation.measure(evaluation.pictures(1.0, lambda done, total: None))
        model.settings = before
        return {name: float(figures[name].mean()) for name in ("exp", "style_leak", "id")}

    return measure

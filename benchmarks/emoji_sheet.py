"""The picture of `docs/emoji.md`: six people with six expressions, none of which the model has seen.

    python -m benchmarks.emoji_sheet [--output docs/images/emoji.jpg]

Above, the expression pictures; at the left, the portraits; each row has a style of its own. All are rendered heads.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fye_pipeline.emoji.face_nets import as_batch, encoder_states
from fye_pipeline.emoji.model import EmojiModel
from fye_pipeline.emoji.network_training import embed
from fye_pipeline.emoji.people import Meta, is_woman, render_people
from fye_pipeline.emoji.pipeline import SHIPPED
from fye_pipeline.emoji.sampling import sample_batch
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World, sample_identity
from fye_pipeline.world.dataset import SPLITS

COUNT = 6
PEOPLE = Meta(seed=0, split="held", first=500_000, people=2 * COUNT)
STYLES = ("photo", "painting", "cartoon", "ink painting", "sculpture", "photo")
BACKGROUNDS = ("blue", "green", "yellow", "", "grey", "red")


def prompts() -> list[str]:
    """One a person: a style and a background."""
    told = []
    for row, (style, background) in enumerate(zip(STYLES, BACKGROUNDS, strict=True)):
        who = sample_identity(1, PEOPLE.seed, SPLITS[PEOPLE.split], PEOPLE.first + row)
        text = f"{'an' if style.startswith('ink') else 'a'} {style} of a {'woman' if is_woman(who) else 'man'}"
        told.append(f"{text}, {background} background" if background else text)
    return told


def sheet(model: EmojiModel, *, steps: int = 30, guidance: float | None = None) -> np.ndarray:
    """Rows of people, columns of expressions. -> uint8 [7 x 128, 7 x 128, 3]."""
    world = World(CanonicalFace.load(), size=128)
    with tempfile.TemporaryDirectory() as folder:
        people = render_people(world, Path(folder), PEOPLE)
        portraits, marks = np.asarray(people.pictures[:COUNT, 0]), np.asarray(people.landmarks[:COUNT, 0])
        asked = np.asarray(people.pictures[COUNT:, 1])
        crops = np.asarray(people.crops[COUNT:, 1])
    identities = embed(model.identity_net, portraits, marks)
    states = encoder_states(model.encoder, as_batch(crops)).detach()
    model.scale(model.settings.identity_scale, model.settings.expression_scale)
    rows = [np.concatenate([np.full_like(asked[0], 255), *asked], axis=1)]
    for row, prompt in enumerate(prompts()):
        made = sample_batch(
            model,
            [prompt] * COUNT,
            identities[row : row + 1].expand(COUNT, -1),
            states,
            [row] * COUNT,
            steps=steps,
            guidance=model.settings.guidance if guidance is None else guidance,
        )
        rows.append(np.concatenate([portraits[row], *made], axis=1))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emoji_sheet", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--output", type=Path, default=Path("docs/images/emoji.jpg"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    picture = sheet(EmojiModel.load(options.model), steps=options.steps)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(options.output, quality=88)


if __name__ == "__main__":
    main()

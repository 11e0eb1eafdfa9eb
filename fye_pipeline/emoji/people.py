"""People of the rendered world for EmojiDiff: portraits, the same people in other styles, and captions of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.emoji.expression_crop import expression_crop
from fye_pipeline.world import Head, Identity, Motion, World, sample_identity, sample_motion, sample_portrait_motion
from fye_pipeline.world.dataset import SPLITS
from fye_pipeline.world.motion import HOME

Picture = NDArray[np.uint8]
Colour = tuple[float, float, float]

# What a prompt may ask for. A style's words, and how the rendered world draws it.
STYLES: dict[str, tuple[str, str]] = {
    "photo": ("photo", "photo"),
    "painting": ("painting", "photo"),
    "ink": ("ink painting", "photo"),
    "cartoon": ("cartoon", "cartoon"),
    "sculpture": ("sculpture", "statue"),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (0.93, 0.93, 0.92),
    "grey": (0.52, 0.53, 0.55),
    "black": (0.10, 0.10, 0.11),
    "red": (0.72, 0.20, 0.18),
    "green": (0.25, 0.55, 0.28),
    "blue": (0.20, 0.38, 0.72),
    "yellow": (0.90, 0.78, 0.30),
    "purple": (0.48, 0.26, 0.60),
}
LONG_HAIR = ("medium", "long")  # drawn so, a head is called a woman's
GLASSES = 0.25  # share of the pictures
SIZE, CROP = 128, 64  # pixels of a picture, and of what the tiny encoder sees
EXPRESSIONS = 5  # pictures of each person beside the portrait
# Of the world's turns and ways of the head; nearer to the camera and lower than there (cm): the face fills the picture.
TURN, WAY, NEARER, FRAMED = 0.45, 0.4, 5.5, -0.6


@dataclass(frozen=True)
class Look:
    """What the caption says of a picture, and the light, which it does not."""

    style: str
    background: str
    glasses: bool
    light: float
    ambient: float


def sample_look(rng: np.random.Generator, style: str | None = None) -> Look:
    """A style, a background, glasses in one of four, and a light."""
    return Look(
        style=style or str(rng.choice(list(STYLES))),
        background=str(rng.choice(list(BACKGROUNDS))),
        glasses=bool(rng.random() < GLASSES),
        light=float(rng.uniform(-1, 1)),
        ambient=float(rng.uniform(0.45, 0.7)),
    )


def is_woman(identity: Identity) -> bool:
    """The rendered world knows no sexes: whose hair is long is called a woman."""
    return identity.hair_style in LONG_HAIR


def caption(look: Look, woman: bool, rng: np.random.Generator) -> str:
    """A prompt for a picture, such as "an ink painting of a man with glasses"; details are left out now and then."""
    words = STYLES[look.style][0]
    if rng.random() < 0.3 and look.style != "ink":
        words = f"{words} portrait"
    article = "an" if words.startswith("ink") else "a"
    text = f"{article} {words} of a {'woman' if woman else 'man'}"
    if look.glasses:
        text += " with glasses"
    if look.style != "ink" and rng.random() < 0.8:
        text += f", {look.background} background"
    return text


def draw(
    world: World, who: tuple[int, ...], motion: Motion, look: Look
) -> tuple[Picture, NDArray[np.float64], NDArray[np.float64]]:
    """One picture of a person. -> (uint8 [size, size, 3], landmarks [478, 3], blendshapes [52])."""
    identity = sample_identity(*who, style=STYLES[look.style][1])
    red, green, blue = BACKGROUNDS[look.background]
    darker = (red * 0.8, green * 0.8, blue * 0.8)
    identity = replace(
        identity,
        background=((red, green, blue), darker, (red, green, blue)),
        glasses=(0.12, 0.11, 0.13) if look.glasses else None,
        light=(float(np.sin(look.light)) * 0.7, 0.4, 0.8),
        ambient=look.ambient,
    )
    clip = world.render(Head(world.canonical.vertices, identity), motion, fps=None)
    picture = clip.frames[0]
    if look.style == "painting":
        picture = paint(picture)
    elif look.style == "ink":
        picture = ink(picture)
    return picture, clip.sequence.landmarks[0], np.asarray(clip.sequence.blendshapes)[0]


def paint(picture: Picture) -> Picture:
    """Broad strokes of few, warm colours."""
    smooth = cv2.bilateralFilter(picture, 5, 60, 3)
    steps = np.round(smooth.astype(np.float32) / 255 * 9) / 9
    warm = steps * np.array([1.04, 0.97, 0.84]) + np.array([0.03, 0.015, 0.0])
    rows = np.sin(np.add.outer(np.arange(len(picture)) * 1.1, np.arange(picture.shape[1]) * 0.7))
    return (np.clip(warm + 0.018 * rows[..., None], 0, 1) * 255).round().astype(np.uint8)


def ink(picture: Picture) -> Picture:
    """Black strokes and washes on paper."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    near, far = cv2.GaussianBlur(grey, (0, 0), 0.7), cv2.GaussianBlur(grey, (0, 0), 2.5)
    strokes = np.clip((far - near) * 6, 0, 1)
    wash = np.clip((far - 0.15) / 0.6, 0, 1) * 0.45 + 0.55
    shade = np.clip(wash - strokes, 0.06, 1)[..., None]
    return (shade * np.array([0.97, 0.95, 0.89]) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Meta:
    """What a folder of people holds; one that differs is rendered anew."""

    seed: int
    split: str
    first: int
    people: int
    version: int = 2


@dataclass(frozen=True)
class People:
    """P people, E expressions of each. Pictures are uint8 RGB, crops what the expression encoder sees.

    pictures [P, 1 + E, 128, 128, 3]: a photograph, eyes open and almost frontal, then the expressions in any style.
    landmarks [P, 1 + E, 478, 3] in 0..1; scores [P, 1 + E, 52], the blendshapes. crops [P, 1 + E, 64, 64, 3].
    swapped [P, E, 64, 64, 3]: the crop of another person with the same expression in another picture, which no
    collection of photographs has; `others` [P, E] says whose. prompts: a caption for each picture.
    """

    pictures: Picture
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]
    crops: Picture
    swapped: Picture
    others: NDArray[np.int64]
    prompts: list[list[str]]
    meta: Meta

    def __len__(self) -> int:
        return len(self.pictures)


ARRAYS = ("pictures", "landmarks", "scores", "crops", "swapped", "others")


def _who(meta: Meta, person: int) -> tuple[int, ...]:
    return 1, meta.seed, SPLITS[meta.split], meta.first + person


def _motion(key: tuple[int, ...], number: int) -> Motion:
    """An expression, gaze and pose; number 0 is a portrait's."""
    motion = sample_motion(*key, 70 + number, frames=1) if number else sample_portrait_motion(*key, 70)
    place = HOME + WAY * (motion.translation - HOME) + np.array([0, FRAMED, NEARER])
    return replace(motion, rotation=motion.rotation * (TURN if number else 1.0), translation=place)


def render_people(
    world: World,
    folder: Path,
    meta: Meta,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    jobs: int = 1,
) -> People:
    """Render people of a split into a folder, by `jobs` processes, or take what is there already."""
    path = folder / "meta.json"
    if not (path.exists() and json.loads(path.read_text(encoding="utf-8")) == asdict(meta)):
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _render(world, folder, meta, on_progress, jobs)
        path.write_text(json.dumps(asdict(meta)), encoding="utf-8")
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return People(**arrays, prompts=prompts, meta=meta)


def _render(world: World, folder: Path, meta: Meta, on_progress: Callable[[int, int], None], jobs: int) -> None:
    count, takes = meta.people, 1 + EXPRESSIONS
    arrays: dict[str, NDArray[Any]] = {
        "pictures": np.empty((count, takes, SIZE, SIZE, 3), np.uint8),
        "landmarks": np.empty((count, takes, 478, 3), np.float32),
        "scores": np.empty((count, takes, 52), np.float32),
        "crops": np.empty((count, takes, CROP, CROP, 3), np.uint8),
        "swapped": np.empty((count, EXPRESSIONS, CROP, CROP, 3), np.uint8),
        "others": np.empty((count, EXPRESSIONS), np.int64),
    }
    prompts: list[list[str]] = []
    draw_one = partial(_render_person, world, meta)
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(jobs)) if jobs > 1 else None
        people = map(draw_one, range(count)) if pool is None else pool.map(draw_one, range(count), chunksize=16)
        for person, (told, drawn) in enumerate(people):
            prompts.append(told)
            for name, array in arrays.items():
                array[person] = drawn[name]
            on_progress(person + 1, count)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", arrays[name])
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")


def _render_person(world: World, meta: Meta, person: int) -> tuple[list[str], dict[str, list[Any]]]:
    """The captions of one person, and what the arrays hold of them."""
    who = _who(meta, person)
    rng = np.random.default_rng([70, *who])
    woman = is_woman(sample_identity(*who))
    prompts: list[str] = []
    drawn: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    for take in range(1 + EXPRESSIONS):
        motion, look = _motion(who, take), sample_look(rng, None if take else "photo")
        picture, marks, shapes = draw(world, who, motion, look)
        crop = expression_crop(picture, marks, CROP)
        for name, value in (("pictures", picture), ("landmarks", marks), ("scores", shapes), ("crops", crop)):
            drawn[name].append(value)
        prompts.append(caption(look, woman, rng))
        if take:
            other = int((person + rng.integers(1, max(meta.people, 2))) % meta.people)
            twin, marks, _ = draw(world, _who(meta, other), motion, sample_look(rng))
            drawn["swapped"].append(expression_crop(twin, marks, CROP))
            drawn["others"].append(other)
    return prompts, drawn


def render_twins(
    world: World,
    people: People,
    who: NDArray[np.int64],
    others: NDArray[np.int64],
    takes: NDArray[np.int64],
    *,
    seed: int,
) -> Picture:
    """What a model is asked for: person `who` with the expression of `takes` of `others`, photographed. -> [N, ...]."""
    rng = np.random.default_rng([76, seed])
    made = []
    for person, other, take in zip(who, others, takes, strict=True):
        motion = _motion(_who(people.meta, int(other)), int(take))
        made.append(draw(world, _who(people.meta, int(person)), motion, sample_look(rng, "photo"))[0])
    return np.stack(made)

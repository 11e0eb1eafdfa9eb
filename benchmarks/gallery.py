"""The pictures of `docs/gallery.md`, the first of which stands at the head of the README.

    python -m benchmarks.gallery [--folder docs/images] [--only portrait portraits motion several-people emoji]

Everything is made by the models that ship; drivers and all portraits but the demo's photograph are rendered.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.emoji_sheet import sheet as emoji_sheet
from fye_pipeline.animate.config import DEMO_PORTRAIT, AnimationSettings
from fye_pipeline.emoji.model import EmojiModel
from fye_pipeline.emoji.pipeline import SHIPPED
from fye_pipeline.evaluation.pair_evaluator import read_video
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.multi_portrait.settings import GroupSettings
from fye_pipeline.world import World
from fye_pipeline.world.dataset import DRIVER_INDEX
from fye_pipeline.world.motion import demonstration_motion

Picture = NDArray[np.uint8]
TILE, GAP = 190, 4  # pixels
SHOWN = (4, 14, 22, 31, 42)  # frames of the demo's 48
RATE = 24
HEADS = (2, 7, 9, 10)  # portraits of the rendered world: of each style, held out from training
SIDE = 512  # pixels of a rendered portrait
MOTIONS: dict[str, dict[str, Any]] = {
    "lips": {"regions": ("lips",)},
    "eyes": {"regions": ("eyes",)},
    "half": {"intensity": 0.5},
    "more": {"intensity": 1.5},
}
BRIEF = {"steps": 12}
GROUP_HEADS, GROUP_TAKES, GROUP_FRAMES, GROUP_SHOWN = (2, 5), (0, 1, 2), 16, (6, 12)
GROUP_CROP = {"crop_scale": 2.5}  # a hat that leaves the square would stay where it is


def driver_frames(size: int = TILE) -> Picture:
    """The rendered head that drives the demo, [48, size, size, 3]."""
    world = World(CanonicalFace.load(), size=size)
    motion = demonstration_motion(48, RATE)
    return world.render(world.head("demo", DRIVER_INDEX), motion, fps=Fraction(RATE)).frames


def photograph() -> Picture:
    """The demo's portrait."""
    return np.asarray(Image.open(DEMO_PORTRAIT).convert("RGB"))


def animated(settings: AnimationSettings) -> Picture:
    """The frames of an animation, uint8 [F, H, W, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        result = settings.runner().animate(settings, Path(folder) / "made.mp4")
        return read_video(result.output)


def laid_out(rows: Sequence[Sequence[Picture | None]], tile: int = TILE) -> Picture:
    """Square pictures in rows of tiles with gaps between them; None is left white."""
    sheet = np.full((len(rows) * (tile + GAP) - GAP, len(rows[0]) * (tile + GAP) - GAP, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                y, x = row * (tile + GAP), column * (tile + GAP)
                sheet[y : y + tile, x : x + tile] = cv2.resize(picture, (tile, tile), interpolation=cv2.INTER_AREA)
    return sheet


def portrait() -> Picture:
    """A photograph, what drives it above, and what comes out below."""
    made, driver = animated(AnimationSettings()), driver_frames()
    sheet = laid_out([[None, *(driver[frame] for frame in SHOWN)], [None, *(made[frame] for frame in SHOWN)]])
    middle = (sheet.shape[0] - TILE) // 2  # the portrait stands between the two rows
    sheet[middle : middle + TILE, :TILE] = cv2.resize(photograph(), (TILE, TILE), interpolation=cv2.INTER_AREA)
    return sheet


def portraits() -> Picture:
    """Rendered portraits at the left, each with the demo's movement."""
    world = World(CanonicalFace.load(), size=SIDE)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for head in HEADS:
            path = Path(folder) / f"{head}.png"
            picture = world.portrait("held", head).frames[0]
            Image.fromarray(picture).save(path)
            made = animated(AnimationSettings.from_dict({"reference": str(path), **BRIEF}))
            rows.append([picture, *(made[frame] for frame in SHOWN)])
    return laid_out(rows)


def motion() -> Picture:
    """The photograph with parts of the movement, a row each: the lips alone, the eyes alone, half of it, more of it."""
    rows = []
    for changed in MOTIONS.values():
        made = animated(AnimationSettings().model_copy(update={**BRIEF, **changed}))
        rows.append([made[frame] for frame in SHOWN])
    return laid_out(rows)


def several_people() -> Picture:
    """Above a picture of three people, below two frames, in which each follows a driver of their own."""
    world, small = World(CanonicalFace.load(), size=SIDE), World(CanonicalFace.load(), size=128)
    heads = [world.portrait("held", head).frames[0] for head in GROUP_HEADS]
    middle = cv2.resize(photograph(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    group = np.concatenate([heads[0], middle, heads[1]], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "group.png"
        Image.fromarray(group).save(reference)
        drivers = [Path(folder) / f"{take}.npz" for take in GROUP_TAKES]
        for path, take in zip(drivers, GROUP_TAKES, strict=True):
            small.clip("held", 11, take=take, frames=GROUP_FRAMES).sequence.save(path)
        given = {"reference": str(reference), "drivers": [str(path) for path in drivers], **BRIEF, **GROUP_CROP}
        made = animated(GroupSettings.from_dict(given))
    shown = (group, *(made[frame] for frame in GROUP_SHOWN))
    small_ones = [np.asarray(cv2.resize(each, (900, 300), interpolation=cv2.INTER_AREA), np.uint8) for each in shown]
    return np.concatenate(small_ones)


def emoji() -> Picture:
    """Six people with six expressions."""
    return emoji_sheet(EmojiModel.load(SHIPPED))


PICTURES: dict[str, Callable[[], Picture]] = {
    "portrait.png": portrait,
    "portraits.jpg": portraits,
    "motion.jpg": motion,
    "several-people.jpg": several_people,
    "emoji.jpg": emoji,
}


def main() -> None:
    names = {name.partition(".")[0]: name for name in PICTURES}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    parser.add_argument("--only", nargs="+", choices=list(names), default=list(names))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for short in arguments.only:
        path = arguments.folder / names[short]
        picture = PICTURES[names[short]]()
        options: dict[str, Any] = {"optimize": True} if path.suffix == ".png" else {"quality": 88}
        Image.fromarray(picture).save(path, **options)
        print(f"{path}: {picture.shape[1]} x {picture.shape[0]}", flush=True)


if __name__ == "__main__":
    main()

"""The picture at the head of the README: a photograph, what drives it, and what comes out.

    python -m benchmarks.gallery [--output docs/images/portrait.png]

The portrait is the demo's photograph; the driver is the rendered head whose motion the demo ships.
"""

from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fye_pipeline.animate.config import DEMO_PORTRAIT, AnimationSettings
from fye_pipeline.animate.run import animate
from fye_pipeline.evaluation.pair_evaluator import read_video
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World
from fye_pipeline.world.dataset import DRIVER_INDEX
from fye_pipeline.world.motion import demonstration_motion

TILE, GAP = 190, 4  # pixels
SHOWN = (4, 14, 22, 31, 42)  # frames of the demo's 48
RATE = 24


def driver_frames(size: int = TILE) -> NDArray[np.uint8]:
    """The rendered head that drives the demo, [48, size, size, 3]."""
    world = World(CanonicalFace.load(), size=size)
    motion = demonstration_motion(48, RATE)
    return world.render(world.head("demo", DRIVER_INDEX), motion, fps=Fraction(RATE)).frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/images/portrait.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = animate(AnimationSettings(), Path(folder) / "demo.mp4")
        made = read_video(result.output)
    portrait = np.asarray(Image.open(DEMO_PORTRAIT).convert("RGB"))
    driver = driver_frames()
    rows = [
        [portrait, *(driver[frame] for frame in SHOWN)],
        [np.full_like(portrait, 255), *(made[frame] for frame in SHOWN)],
    ]
    sheet = np.full((len(rows) * (TILE + GAP) - GAP, len(rows[0]) * (TILE + GAP) - GAP, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            y, x = row * (TILE + GAP), column * (TILE + GAP)
            sheet[y : y + TILE, x : x + TILE] = cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_AREA)
    # The portrait stands between the two rows, as large as a tile.
    middle = (sheet.shape[0] - TILE) // 2
    sheet[:, :TILE] = 255
    sheet[middle : middle + TILE, :TILE] = cv2.resize(portrait, (TILE, TILE), interpolation=cv2.INTER_AREA)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(arguments.output, optimize=True)
    print(f"{arguments.output}: {sheet.shape[1]} x {sheet.shape[0]}")


if __name__ == "__main__":
    main()

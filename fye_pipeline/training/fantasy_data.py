"""What FantasyPortrait's adapter is trained on: clips of people, whose face each pixel is, and their expressions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fye_pipeline.animate.driver import OpenDriver, open_driver
from fye_pipeline.animate.session import LazyDetector
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.multi_portrait.drivers import read_people
from fye_pipeline.multi_portrait.expression import FACTORS, ExpressionExtractor, ExpressionSequence
from fye_pipeline.multi_portrait.extractors import extract
from fye_pipeline.multi_portrait.ownership import face_shares
from fye_pipeline.storage.files import digest_of_text, existing_file
from fye_pipeline.world import World

Frames = NDArray[np.uint8]
_LONGEST_GAP = 3600.0  # seconds: who is out of sight is held still, and no video is refused for it


@dataclass(frozen=True)
class PeopleClip:
    """frames [F, H, W, 3] of a clip; features of P people, each [1, P, F, d]; masks [1, P, F, H / cell, W / cell]."""

    frames: Frames
    features: dict[str, Tensor]
    masks: Tensor


class Clips(Protocol):
    """Clips to train on, drawn at random."""

    def draw(self, random: np.random.Generator, frames: int) -> PeopleClip: ...


def people_clip(
    frames: Frames, people: Sequence[LandmarkSequence], features: Sequence[ExpressionSequence], cell: int
) -> PeopleClip:
    """A clip from what was seen in each of its frames. cell: pixels a side of a latent."""
    height, width = frames.shape[1:3]
    made = {
        name: torch.stack([torch.from_numpy(np.asarray(each.features[name])) for each in features])[None]
        for name in FACTORS
    }
    landmarks = ([each.landmarks[frame] for each in people] for frame in range(len(frames)))
    return PeopleClip(frames, made, face_shares(landmarks, width, height, cell))


@dataclass(frozen=True)
class RenderedPairs:
    """Two heads of the rendered world side by side, each `size` pixels."""

    extractor: ExpressionExtractor
    size: int
    cell: int
    split: str = "train"

    @cached_property
    def world(self) -> World:
        return World(CanonicalFace.load(), size=self.size)

    def draw(self, random: np.random.Generator, frames: int) -> PeopleClip:
        """Heads and motions by chance."""
        clips = [
            self.world.clip(self.split, int(random.integers(1000)), take=int(random.integers(8)), frames=frames)
            for _ in range(2)
        ]
        joined = [beside(clip.sequence, place, 2) for place, clip in enumerate(clips)]
        features = [self.extractor(clip.frames, clip.sequence) for clip in clips]
        return people_clip(np.concatenate([clip.frames for clip in clips], axis=2), joined, features, self.cell)


def beside(sequence: LandmarkSequence, place: int, count: int) -> LandmarkSequence:
    """A square's landmarks in a row of `count` such squares; `place` counts from the left."""
    landmarks = np.array(sequence.landmarks[:], np.float32)
    landmarks[..., 0] = (landmarks[..., 0] + place) / count
    landmarks[..., 2] /= count
    arrays = {name: getattr(sequence, name) for name in ("mesh", "transforms", "blendshapes", "found")}
    return LandmarkSequence(landmarks, **arrays, width=sequence.width * count, height=sequence.height, fps=sequence.fps)


class VideoClips:
    """The videos that `fye prepare --people` chose, at one rate; people are looked for once and kept beside the run.

    folder: with `people.jsonl`. size: pixels of the shorter side. multiples: across and down, of the frames' sides.
    kept: where landmarks are written. Raises `UserError` where there is no list, or no video of it has enough frames.
    """

    def __init__(
        self,
        folder: Path,
        extractor: ExpressionExtractor,
        detector: LazyDetector,
        kept: Path,
        *,
        size: int,
        multiples: tuple[int, int],
        cell: int,
        fps: Fraction = Fraction(25),
    ) -> None:
        path = existing_file(folder / "people.jsonl", "the list that fye prepare --people writes")
        self._videos = [Path(json.loads(line)["video"]) for line in path.read_text(encoding="utf-8").splitlines()]
        if not self._videos:
            raise UserError(f"{path} names no videos.")
        self._extractor, self._detector, self._kept = extractor, detector, kept
        self._size, self._multiples, self._cell, self._fps = size, multiples, cell, fps

    def draw(self, random: np.random.Generator, frames: int) -> PeopleClip:
        """So many frames of one of the videos, from a place by chance."""
        for index in random.permutation(len(self._videos)):
            opened = open_driver(self._videos[index], fps=self._fps)
            people, features = self._people(self._videos[index], opened)
            if len(people[0]) >= frames:
                start = int(random.integers(len(people[0]) - frames + 1))
                part = slice(start, start + frames)
                rows = [
                    ExpressionSequence(
                        {name: each.features[name][part] for name in FACTORS},
                        each.boxes[part],
                        each.extractor,
                        each.version,
                    )
                    for each in features
                ]
                return people_clip(self._frames(opened, part), [each[part] for each in people], rows, self._cell)
        raise UserError(f"None of the videos has {frames} frames at {float(self._fps):g} a second.")

    def _people(self, video: Path, opened: OpenDriver) -> tuple[list[LandmarkSequence], list[ExpressionSequence]]:
        """Landmarks and features of everybody in a video, from their files where there are any."""
        self._kept.mkdir(parents=True, exist_ok=True)
        key = f"{video.stem[:40]}-{digest_of_text(str(video.resolve()))[:8]}"
        found = sorted(self._kept.glob(f"{key}_*_expression.npz"))
        if found:
            landmarks = [LandmarkSequence.load(Path(str(file).replace("_expression.npz", ".npz"))) for file in found]
            return landmarks, [ExpressionSequence.load(file) for file in found]
        people = read_people(opened, self._detector, no_face="hold", max_gap=_LONGEST_GAP)
        features = [extract(self._extractor, opened, each) for each in people]
        for number, (sequence, made) in enumerate(zip(people, features, strict=True)):
            sequence.save(self._kept / f"{key}_{number}.npz")
            made.save(self._kept / f"{key}_{number}_expression.npz")
        return people, features

    def _frames(self, opened: OpenDriver, part: slice) -> Frames:
        assert opened.source is not None
        made = []
        for frame in islice(opened.source.frames(), part.start, part.stop):
            height, width = frame.shape[:2]
            scale = self._size / min(height, width)
            across, down = self._multiples
            side = max(round(width * scale / across), 1) * across, max(round(height * scale / down), 1) * down
            made.append(np.asarray(cv2.resize(frame, side, interpolation=cv2.INTER_AREA), np.uint8))
        return np.stack(made)

"""What ExprBench measures: entries of a manifest, or scenes of the rendered world that are made for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.media.writer import write_video
from fye_pipeline.storage.files import existing_file, write_json
from fye_pipeline.world import World

MANIFEST = "exprbench.json"
_NAMES = ("portrait", "drivers", "assign", "truth", "name")


@dataclass(frozen=True)
class BenchEntry:
    """A picture and its drivers, as for `fye animate`. truth: a video of what should come out. error: of the entry."""

    name: str
    portrait: Path = Path()
    drivers: tuple[Path, ...] = ()
    assign: str | None = None
    truth: Path | None = None
    error: str | None = None

    @property
    def is_multi(self) -> bool:
        """Whether several faces are meant."""
        return len(self.drivers) > 1 or self.assign is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read."""
        return self.portrait, *self.drivers, *([] if self.truth is None else [self.truth])


def read_entries(path: Path) -> list[BenchEntry]:
    """A JSON list of objects with `portrait`, `drivers` (a list, or one file), and any of `assign`, `truth`, `name`.

    Relative paths count from the manifest's folder. An entry that cannot be read carries its error. Raises `UserError`
    for another file, and for an empty list.
    """
    path = existing_file(path, "the manifest")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must be a list of entries, each with portrait and drivers.")
    entries, taken = [], set[str]()
    for number, values in enumerate(content, 1):
        entry = _entry(values, f"entry-{number:03}", path.parent)
        if entry.name in taken or Path(entry.name).name != entry.name:
            entry = BenchEntry(f"entry-{number:03}", error=f"its name {entry.name!r} is taken, or no file's name.")
        taken.add(entry.name)
        entries.append(entry)
    return entries


def _entry(values: Any, number: str, folder: Path) -> BenchEntry:
    if not isinstance(values, Mapping):
        return BenchEntry(number, error="it is no object.")
    drivers = values.get("drivers")
    drivers = [drivers] if isinstance(drivers, str) else drivers
    texts = [values.get("portrait"), *(drivers if isinstance(drivers, list) else [None])]
    texts += [values[name] for name in ("truth", "assign", "name") if values.get(name) is not None]
    if unknown := sorted(set(map(str, values)) - set(_NAMES)):
        return BenchEntry(number, error=f"there is no {', '.join(unknown)}; there are {', '.join(_NAMES)}.")
    if not drivers or not all(isinstance(text, str) and text for text in texts):
        return BenchEntry(number, error="it must name a portrait and drivers, all as text.")
    truth = values.get("truth")
    return BenchEntry(
        values.get("name") or number,
        folder / Path(values["portrait"]).expanduser(),
        tuple(folder / Path(driver).expanduser() for driver in drivers),
        values.get("assign"),
        None if truth is None else folder / Path(truth).expanduser(),
    )


@dataclass(frozen=True)
class RenderedBench:
    """The rendered ExprBench: `singles` pictures of one head and `multis` of two. seed: which heads and motions.

    Of each kind every second is driven by its own heads (self-reenactment, which has a truth), the others by heads that
    are not in the picture. size: pixels a side of a head's square.
    """

    singles: int = 40
    multis: int = 20
    frames: int = 16
    seed: int = 0
    size: int = 128

    def make(self, folder: Path) -> Path:
        """Write pictures, drivers, truths and the manifest into a folder. -> the manifest."""
        folder.mkdir(parents=True, exist_ok=True)
        world = World(CanonicalFace.load(), size=self.size)
        entries = [self._entry(world, folder, "single", k, 1) for k in range(self.singles)]
        entries += [self._entry(world, folder, "multi", k, 2) for k in range(self.multis)]
        write_json(folder / MANIFEST, entries)
        return folder / MANIFEST

    def _entry(self, world: World, folder: Path, kind: str, k: int, people: int) -> dict[str, Any]:
        own_people = k % 2 == 0
        first = 1000 * self.seed + 4 * k + (0 if kind == "single" else 500)
        heads = range(first, first + people)
        movers = heads if own_people else range(first + people, first + 2 * people)
        clips = [world.clip("held", head, take=1, frames=self.frames) for head in movers]
        # Who moves themselves begins where the picture shows them, as in self-reenactment everywhere.
        moving = [clip.frames[0] for clip in clips]
        pictures = moving if own_people else [world.portrait("held", head).frames[0] for head in heads]
        name = f"{kind}-{k:02}-{'self' if own_people else 'cross'}"
        Image.fromarray(np.concatenate(pictures, axis=1)).save(folder / f"{name}.png")
        drivers = []
        for number, clip in enumerate(clips):
            drivers.append(f"{name}-driver{number}.mp4")
            write_video(folder / drivers[-1], clip.frames, clip.sequence.fps or Fraction(12))
        entry: dict[str, Any] = {"name": name, "portrait": f"{name}.png", "drivers": drivers}
        if own_people:
            entry["truth"] = f"{name}-truth.mp4"
            together = np.concatenate([clip.frames for clip in clips], axis=2)
            write_video(folder / entry["truth"], together, clips[0].sequence.fps or Fraction(12))
        return entry

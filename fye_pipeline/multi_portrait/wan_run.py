"""From files to a file with Wan's pipeline: every moved face of a picture is given its driver's expression."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from fye_pipeline.animate.output import Shown, to_uint8
from fye_pipeline.animate.portrait import Portrait, pick_face, read_still
from fye_pipeline.animate.run import LANDMARKS, RunOptions, check_room, open_run, video_bytes
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.retargeting import RetargetedLandmarks
from fye_pipeline.multi_portrait.assignment import Assignment, assign
from fye_pipeline.multi_portrait.drivers import open_drivers, read_drivers, sound_of, who_is_moved
from fye_pipeline.multi_portrait.expression import FACTORS, ExpressionSequence
from fye_pipeline.multi_portrait.extractors import extract, extractor_for
from fye_pipeline.multi_portrait.output import GroupResult
from fye_pipeline.multi_portrait.ownership import face_shares
from fye_pipeline.multi_portrait.portraits import find_people, portrait_of
from fye_pipeline.multi_portrait.wan_model import GUIDANCE, WanModel, wan_model
from fye_pipeline.multi_portrait.wan_settings import WanSettings, window_starts
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import atomic_target

Frames = NDArray[np.uint8]  # [F, H, W, 3]


@dataclass(frozen=True)
class WanPerson:
    """Somebody who is moved.

    face: from 1; driven_by: from 0. landmarks: of the driven face, in the portrait's square.
    """

    face: int
    driven_by: int
    portrait: Portrait
    landmarks: RetargetedLandmarks
    features: ExpressionSequence
    gaps: list[tuple[int, int]]

    def at(self, frame: int) -> NDArray[np.float64]:
        """One frame's landmarks in 0..1 of the whole picture, [478, 2]; after the driver's end those of its last."""
        crop = self.portrait.crop
        assert crop is not None
        frame = min(frame, len(self.landmarks) - 1)
        points = np.asarray(self.landmarks[frame : frame + 1][0], np.float64)[:, :2] * crop.side
        return (points + np.array([crop.left, crop.top])) / (crop.width, crop.height)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"face": self.face, "driver": self.driven_by, "frames_without_face": self.gaps}


def animate(
    settings: WanSettings, output: Path, *, on_progress: OnProgress = silent, **how: Unpack[RunOptions]
) -> GroupResult:
    """Animate one face or several; arguments and errors as `animate.run.animate`, and those of `load_wan`."""
    with open_run(settings, output, **how) as run:
        session, detector, landmarks = run.session, run.session.detector, run.work / LANDMARKS
        picture = read_still(settings, detector)
        height, width = picture.shape[:2]
        model = wan_model(session, settings)
        extractor = extractor_for(model.expression.encoder.config, settings.expression_weights, session.device)
        size = model.size(width, height, settings.size)
        faces = find_people(settings, picture, detector)
        assignment = _assignment(settings, faces)
        opened = open_drivers(settings, landmarks)
        frames = max((each.frames or 0 for each in opened), default=0)
        check_room(run.output, video_bytes(frames, size))
        drivers = read_drivers(settings, opened, assignment, detector, landmarks, on_progress)
        moved, count = who_is_moved(settings, len(faces), assignment, drivers)
        features = {
            driver: extract(extractor, opened[0 if settings.splits else driver], drivers[driver])
            for driver in sorted({driver for _, driver in moved})
        }
        people = []
        for index, driver in moved:
            portrait = portrait_of(settings, picture, faces[index], index + 1, detector)
            shown = RetargetedLandmarks(drivers[driver], portrait.face)
            people.append(WanPerson(index + 1, driver, portrait, shown, features[driver], drivers[driver].gaps()))
        sound = sound_of(settings, opened)
        began = time.perf_counter()
        still = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        made = _frames(settings, model, still, people, count, run.work / "denoising", on_progress)
        named = [{"face": person.face, "driver": person.driven_by} for person in people]
        run.write(map(Shown, made), opened[0].fps, size, sound, people=named)
        return GroupResult(
            output=run.output,
            frames=count,
            fps=opened[0].fps,
            size=size,
            seconds=time.perf_counter() - began,
            faces=len(faces),
            people=[person.to_dict() for person in people],
            sound=sound is not None,
            notes=run.notes,
            settings=settings,
        )


def _assignment(settings: WanSettings, faces: Sequence[Face]) -> Assignment | None:
    """Who is moved by what, as far as it can be told before the drivers are read. Raises `UserError` as `assign`."""
    if settings.splits:
        return settings.assignment
    if settings.moves_all:
        return assign(len(faces), len(settings.drivers), settings.assignment, str(settings.reference))
    chosen, _ = pick_face(list(faces), settings.face, str(settings.reference))
    return tuple(0 if face is chosen else None for face in faces)


def _frames(
    settings: WanSettings,
    model: WanModel,
    still: Image.Image,
    people: Sequence[WanPerson],
    count: int,
    folder: Path,
    on_progress: OnProgress,
) -> Iterator[NDArray[np.uint8]]:
    """The video's frames, window by window; finished windows lie in `folder`, from which a broken run goes on."""
    windows = window_starts(count, settings.chunk)
    work, done = settings.steps * len(windows), 0
    picture = still

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_progress("denoising", done + step + 1, work)
        return tensors

    for number, (start, length) in enumerate(windows):
        kept = folder / f"clip-{number:04}.safetensors"
        made = _finished(kept)
        if made is None:
            made = to_uint8(_window(settings, model, picture, people, start, length, after_step))
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_target(kept) as temporary:
                save_file({"frames": made}, temporary)
        done += settings.steps
        picture = Image.fromarray(made[-1])
        yield from made[int(number > 0) :][: count - start - int(number > 0)]


def _finished(path: Path) -> Frames | None:
    """A window that was kept; None where it is absent, or was cut off by a crash of the machine."""
    try:
        return load_file(path)["frames"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _window(
    settings: WanSettings,
    model: WanModel,
    picture: Image.Image,
    people: Sequence[WanPerson],
    start: int,
    length: int,
    after_step: Callable[..., Any],
) -> NDArray[np.float32]:
    """Frames start.. of the video, which begins with `picture`. -> [F, H, W, 3] in [0, 1]."""
    device = model.pipe._execution_device
    wanted = range(start, start + length)
    features = {
        name: torch.stack([torch.from_numpy(held_rows(each.features.features[name], wanted)) for each in people])[None]
        for name in FACTORS
    }
    masks = person_masks(people, wanted, picture.size, model.cell).to(device)
    with torch.no_grad(), model.expression.given({name: each.to(device) for name, each in features.items()}, masks):
        return model.run(
            picture,
            length,
            steps=settings.steps,
            guidance=GUIDANCE if settings.guidance is None else settings.guidance,
            seed=settings.seed + start,
            after_step=after_step,
        )


def held_rows(rows: NDArray[np.float32], wanted: range) -> NDArray[np.float32]:
    """Some rows of [T, d]; after the end the last one."""
    return rows[np.minimum(np.arange(wanted.start, wanted.stop), len(rows) - 1)]


def person_masks(people: Sequence[WanPerson], wanted: range, size: tuple[int, int], cell: int) -> Tensor:
    """How much of each latent's pixels are a person's face. size: width, height. -> [1, P, F, H / cell, W / cell]."""
    width, height = size
    return face_shares(([person.at(frame) for person in people] for frame in wanted), width, height, cell)

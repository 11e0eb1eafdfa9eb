"""The handle that `apply` gives: reports, pauses, changes the region, removes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ticache import ops
from ticache.cache_maker import CacheMaker
from ticache.calibration import Calibration
from ticache.config import CacheConfig
from ticache.controller import Controller
from ticache.region import Region, RegionMask
from ticache.report import Report, build_report

FEW_STEPS = 4  # of a distilled model: no step is like the one before


class Session:
    """One cache on one UNet. A context manager: leaving it, also by an error, removes the cache."""

    def __init__(self, controller: Controller):
        self._controller = controller
        self._removed: str | None = None

    @property
    def config(self) -> CacheConfig:
        """The settings in force."""
        return self._controller.config

    @property
    def region(self) -> Region:
        """The mask of Eq. 4, (H, W), (F, H, W) or (B, F, H, W) in [0, 1], or a callable `step -> mask`; None: all."""
        return self._controller.region.given

    @region.setter
    def region(self, region: Region) -> None:
        self._controller.region = RegionMask(region)

    @property
    def active(self) -> bool:
        """Is the cache in place?"""
        return self._removed is None

    @property
    def calibration(self) -> Calibration | None:
        """With `schedule="auto"`: what the runs made in full tell, None before the first has ended.

        `to_json()` writes it down; `apply(..., calibration=...)` goes on from it in another process.
        """
        return self._controller.calibration

    @property
    def recorded(self) -> CacheMaker:
        """What `schedule="auto"` goes by, for `ticache.tune`."""
        return self._controller.maker

    def report(self, *, reference: bool = False) -> Report:
        """The last run in figures.

        reference: run some predicted steps (three per stream) again in full, and give the relative error of each site
            there, over all and inside and outside the region. Needs a run under `apply(..., keep=True)`.
        """
        controller = self._controller
        report = build_report(
            controller.records, self.config, self._recipe(), self._backend(), self._notes(), controller.held_bytes
        )
        if reference:
            report.values["reference"] = controller.measure_errors()
            if controller.errors.refusal is not None:
                report.values["notes"].append(f"reference: {controller.errors.refusal}")
        return report

    @contextmanager
    def paused(self) -> Iterator[Session]:
        """Within it every call runs exactly as without a cache, and none is counted."""
        self._controller.paused += 1
        try:
            yield self
        finally:
            self._controller.paused -= 1

    @contextmanager
    def stream(self, name: Any) -> Iterator[Session]:
        """Within it this thread's (or task's) calls belong to the caller of that name, which nothing else may tell.

        Threads need schedulers of their own, copied before the first of them begins.
        """
        variable = self._controller.stream_name
        token = variable.set(name)
        try:
            yield self
        finally:
            variable.reset(token)

    def kept(self) -> dict[int, dict[str, list[Tensor]]]:
        """With `keep=True`: what the last run kept, by stream and site; the differences D_0, D_1, ... of each."""
        controller = self._controller
        return {
            number: {controller.feature_name(key): list(history.tensors) for key, history in cache.kept.items()}
            for number, cache in controller.kept.items()
        }

    def reset(self) -> None:
        """Forget every run and free what is kept. Never needed between runs."""
        self._controller.reset()

    def remove(self) -> None:
        """Take the cache off, exactly. Twice is fine."""
        self._end("removed")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        notes = "".join(f"; {note}" for note in self._notes())
        return f"<ticache.Session {self._recipe()}, backend={self._backend()}{notes}>"

    def _end(self, why: str) -> None:
        if self._removed is not None:
            return
        self._removed = why
        self._controller.close()

    def _backend(self) -> str:
        parameter = next(self._controller.unet.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        if device.type == "meta":
            return "reference"
        return ops.resolve_backend(self.config.backend, device)

    def _recipe(self) -> str:
        config = self.config
        schedule = "a callable" if callable(config.schedule) else config.schedule
        auto = config.schedule == "auto"  # the recording chooses order and forecaster
        parts = [f"N={config.N}", *([] if auto else [f"order={config.order}"]), f"cut={config.cut}"]
        parts += [f"depth={config.depth}"] if config.depth else []
        parts += ["resnets"] if config.resnets else []
        parts += [] if auto else [f"forecaster={config.forecaster}"]
        return ", ".join([*parts, f"schedule={schedule}", f"axis={config.axis}"])

    def _notes(self) -> list[str]:
        controller = self._controller
        notes = []
        if self._removed is not None:
            notes.append(f"this cache is {self._removed}")
        elif (note := controller.pipeline.exchange_note(controller.unet)) is not None:
            notes.append(note)
        if controller.disabled is not None:
            notes.append(controller.disabled)
        if self.region is not None and self.config.boundary == 0:
            notes.append("the region serves the report only: with boundary=0 every token is predicted at every step")
        elif self.region is not None:
            notes.append(f"before boundary={self.config.boundary} only the region is predicted")
        notes += controller.maker.notes
        notes += controller.check.notes
        if (steps := controller.records.run.fewest_steps()) is not None and steps <= FEW_STEPS:
            notes.append(f"a run of {steps} steps has nothing to skip, each changes much: leave the cache off")
        if controller.records.run.order_capped:
            notes.append(f"the sampler adds noise, so order is capped at {self.config.noise_order}")
        return notes

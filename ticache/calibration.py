"""What one run made in full tells about the best full steps: its features, reduced to inner products.

A recording holds, for each pair of steps, the inner product of the features there, less their mean over the run (every
forecaster reproduces constants). With classifier-free guidance the conditional and the unconditional row are kept
apart, so that one recording serves every guidance scale. Pure: torch and numpy, no diffusers.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticache.best_steps import Array, Choice, best_choice
from ticache.provenance import scheduler_identity

FEATURES = 4096  # numbers of a row that stand for its whole feature: inner products to about a percent
STRONG_GUIDANCE = 5.0  # fitted weights win 2 to 5 dB at 7.5 and lose up to 2 at 3
MAX_STEPS = 256  # three matrices of so many steps are 0.75 MiB
_MATRICES = ("conditional", "unconditional", "cross")


@dataclass(frozen=True)
class Kind:
    """What runs must have in common to be predicted alike.

    scheduler: its class and settings as JSON text, "null" without one. num_steps: of the stream. guided: are the rows
    of a call the unconditional and the conditional half? features: what the cut predicts.
    """

    scheduler: str
    num_steps: int
    guided: bool
    features: str

    @classmethod
    def of(cls, scheduler: Any, num_steps: int, *, guided: bool, cut: str, depth: int, resnets: bool) -> Kind:
        """The kind of a run under this scheduler, with these settings of a cut."""
        text = json.dumps(scheduler_identity(scheduler), sort_keys=True)
        return cls(text, num_steps, guided, f"{cut} {depth} {resnets}")


@dataclass(frozen=True, eq=False)
class Recording:
    """Inner products of the features of every step of one kind of run, means over `runs` runs.

    matrices: [1, T, T] of every row; with guidance [3, T, T] of the conditional rows, of the unconditional ones, and
    u c^T + c u^T. timesteps: of each step, None where no scheduler tells.
    """

    kind: Kind
    matrices: NDArray[np.float32]
    timesteps: tuple[float, ...] | None = None
    runs: int = 1

    def gram(self, guidance: float | None) -> Array:
        """Inner products of u + g (c - u), which is what reaches the sampler. [T, T] float64

        Without a scale, or without rows to guide, of the conditional rows.
        """
        matrices = self.matrices.astype(np.float64)
        if guidance is None or len(matrices) == 1:
            return matrices[0]
        g, (conditional, unconditional, cross) = guidance, matrices
        return (1 - g) ** 2 * unconditional + g * (1 - g) * cross + g * g * conditional

    def choose(
        self,
        count: int,
        *,
        guidance: float | None,
        coordinates: Sequence[float],
        timesteps: Sequence[float] | None = None,
        orders: Sequence[int] = (1, 2, 3),
        forecasters: Sequence[str] | None = None,
    ) -> Choice:
        """The best choice with `count` full steps for a run whose steps are at `coordinates`.

        forecasters: None for fitted weights with strong guidance, and else the better of the polynomials.

        A run of another number of steps, or at other `timesteps`, is taken to have the features between those recorded.
        """
        gram = self.gram(guidance)
        if forecasters is None:
            strong = self.kind.guided and guidance is not None and guidance >= STRONG_GUIDANCE
            forecasters = ("fitted",) if strong else ("newton", "taylor")
        between = _interpolation(self, len(coordinates), timesteps)
        if between is not None:
            gram = between @ gram @ between.T
        return best_choice(gram, count, np.asarray(coordinates, np.float64), orders, forecasters)

    def merged(self, other: Recording) -> Recording:
        """The mean of two recordings of one kind."""
        runs = self.runs + other.runs
        means = (self.runs * self.matrices + other.runs * other.matrices) / runs
        return replace(self, matrices=means, runs=runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the upper triangles as base64 of little-endian float32."""
        rows, columns = np.triu_indices(self.kind.num_steps)
        matrices = {
            name: base64.b64encode(matrix[rows, columns].astype("<f4").tobytes()).decode()
            for name, matrix in zip(_MATRICES, self.matrices, strict=False)
        }
        timesteps = None if self.timesteps is None else list(self.timesteps)
        return {"kind": asdict(self.kind), "timesteps": timesteps, "runs": self.runs, **matrices}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recording:
        """Read what `to_dict` wrote. ValueError, KeyError or TypeError for anything else."""
        kind = Kind(**values["kind"])
        rows, columns = np.triu_indices(kind.num_steps)
        texts = [values[name] for name in (_MATRICES if kind.guided else _MATRICES[:1])]
        matrices = np.zeros((len(texts), kind.num_steps, kind.num_steps), np.float32)
        for matrix, text in zip(matrices, texts, strict=True):
            numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
            matrix[rows, columns] = matrix[columns, rows] = numbers
        timesteps = values["timesteps"]
        return cls(kind, matrices, None if timesteps is None else tuple(timesteps), values["runs"])


class Recorder:
    """Takes in the features of one run as it is made. Waits for no device until `finish`.

    rows: samples of a call, the leading part of every feature's first axis. features: numbers kept of a row, shared by
    the kinds of features that a call has.
    """

    def __init__(self, kind: Kind, rows: int, features: int = FEATURES):
        self.kind = kind
        self._rows = rows
        self._features = features
        self._steps: list[dict[Any, Tensor]] = []
        self._picked: dict[Any, Tensor] = {}

    def begin_step(self) -> None:
        """The features of another step follow."""
        self._steps.append({})

    def take(self, key: Any, feature: Tensor) -> None:
        """Take in one feature [rows * n, ...] of the present step: a fixed part of its numbers, on its device."""
        numbers = feature.detach().reshape(self._rows, -1)
        picked = self._picked.get(key)
        if picked is None or picked.device != numbers.device:
            size, generator = numbers.shape[1], torch.Generator().manual_seed(0)
            chosen = torch.arange(size)
            if size > self._features:
                chosen = torch.randint(size, (self._features,), generator=generator).sort().values
            picked = self._picked[key] = chosen.to(numbers.device)
        self._steps[-1][key] = numbers[:, picked]

    def finish(self, timesteps: Sequence[float] | None = None) -> Recording | None:
        """The recording; None where a step is missing or has other features or numbers that are not finite."""
        if len(self._steps) != self.kind.num_steps or any(step.keys() != self._steps[0].keys() for step in self._steps):
            return None
        # [T, rows, numbers], brought over at once
        rows = torch.stack([torch.cat(list(step.values()), dim=1) for step in self._steps]).cpu().double().numpy()
        if not np.isfinite(rows).all() or not rows.size:
            return None
        rows = rows - rows.mean(axis=0)
        rows /= np.sqrt(max(float(np.square(rows).sum(axis=(0, 2)).mean()), 1e-30))  # of one size, whatever the model
        when = None if timesteps is None else tuple(timesteps)
        if not self.kind.guided:
            return Recording(self.kind, _inner(rows, rows)[None], when)
        unconditional, conditional = np.split(rows, 2, axis=1)
        cross = _inner(unconditional, conditional)
        own = [_inner(conditional, conditional), _inner(unconditional, unconditional)]
        return Recording(self.kind, np.stack([*own, cross + cross.T]), when)


def _inner(a: Array, b: Array) -> NDArray[np.float32]:
    """Inner products of steps [T, rows, n], means over rows. -> [T, T] float32"""
    return (np.einsum("trn,srn->ts", a, b, optimize=True) / a.shape[1]).astype(np.float32)


@dataclass
class Calibration:
    """Recordings by kind of run, and the model they are of (`ticache.provenance.model_identity`; None: unknown)."""

    model: dict[str, str] | None = None
    recordings: dict[Kind, Recording] = field(default_factory=dict)

    def add(self, recording: Recording) -> None:
        """Keep a recording; a second one of a kind is averaged with the first."""
        known = self.recordings.get(recording.kind)
        self.recordings[recording.kind] = recording if known is None else known.merged(recording)

    def copy(self) -> Calibration:
        """One to which recordings can be added while this stays as it is."""
        return Calibration(self.model, dict(self.recordings))

    def covers(self, scheduler: Any, *, cut: str = "outer", depth: int = 0, resnets: bool = False) -> bool:
        """Is every run of a cut under this scheduler, with guidance or without, predicted from a recording?"""
        return self.find(Kind.of(scheduler, 1, guided=True, cut=cut, depth=depth, resnets=resnets)) is not None

    def find(self, kind: Kind) -> Recording | None:
        """The recording of a kind; else of the same with guidance; else of the nearest number of steps."""
        alike = [
            each
            for each in self.recordings.values()
            if (each.kind.scheduler, each.kind.features) == (kind.scheduler, kind.features)
            and each.kind.guided >= kind.guided
        ]

        def distance(each: Recording) -> tuple[float, bool]:
            return abs(each.kind.num_steps - kind.num_steps), each.kind.guided != kind.guided

        return min(alike, key=distance, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"model": self.model, "recordings": [each.to_dict() for each in self.recordings.values()]}

    def to_json(self) -> str:
        """Everything as JSON text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what `to_json` wrote. ValueError for anything else."""
        values: Any = text
        with contextlib.suppress(ValueError):
            values = json.loads(text)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Read what `to_dict` wrote. ValueError for anything else."""
        try:
            recordings = [Recording.from_dict(each) for each in values["recordings"]]
            return cls(values["model"], {recording.kind: recording for recording in recordings})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"a calibration is what session.calibration.to_json() writes, got {values!r:.60}"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.to_json() == other.to_json()

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind.num_steps} steps{' guided' * kind.guided}" for kind in self.recordings)
        return f"<ticache.Calibration of {kinds or 'nothing yet'}>"


def _interpolation(recording: Recording, num_steps: int, timesteps: Sequence[float] | None) -> Array | None:
    """What a run's features are made of, from those recorded: [T', T]; None where they are the same steps."""
    recorded = recording.timesteps
    if recorded is None or timesteps is None:
        if recording.kind.num_steps == num_steps:
            return None
        at = np.linspace(0, recording.kind.num_steps - 1, num_steps)
    else:
        if tuple(timesteps) == recorded:
            return None
        # np.interp wants increasing numbers; timesteps fall, and may be there twice.
        falling = -np.asarray(recorded, np.float64)
        at = np.interp(-np.asarray(timesteps, np.float64), falling, np.arange(len(recorded)))
    below = np.minimum(at.astype(np.intp), recording.kind.num_steps - 1)
    above = np.minimum(below + 1, recording.kind.num_steps - 1)
    matrix = np.zeros((num_steps, recording.kind.num_steps))
    share = at - below
    matrix[np.arange(num_steps), below] += 1 - share
    matrix[np.arange(num_steps), above] += share
    return matrix

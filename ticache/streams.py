"""Attributes each UNet call to a stream: the sequence of calls, one per step, that share one cache.

A *group* is one caller, told apart by its sample's shape, its tokens' identity and the name it may have given. Within a
group, calls at one timestep are streams in the order they come (context windows), unless their other inputs tell them
apart; a second-order scheduler makes two streams of alternate calls. A call that continues nothing begins something:
a call whose place lies before the group's last one begins a new run; one that jumps ahead is counted as unattributed.

A run that was interrupted leaves a group that nothing completes. Other callers may be under way beside it; so it is
taken for abandoned by what they do: two runs have begun since it moved, or one that began later has ended.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ticache.inputs import writes_into
from ticache.timesteps import StepPosition, Timesteps

LOOK_AHEAD = 64  # steps


class Identity:
    """Recognises a caller's tensors again, by object and by address, without holding more than they do.

    A tensor that is a slice of a longer one is told from other slices of it; a fresh copy of unknown origin is unknown.
    """

    def __init__(self, tensors: Iterable[Tensor], *, hold: bool = False):
        self._marks = [_Mark(tensor, hold) for tensor in tensors]

    def compare(self, tensors: list[Tensor]) -> bool | None:
        """True: the same tensors. False: certainly others. None: cannot be told."""
        if len(tensors) != len(self._marks):
            return False
        answers = [mark.compare(tensor) for mark, tensor in zip(self._marks, tensors, strict=True)]
        if False in answers:
            return False
        return True if True in answers or not answers else None

    def equals(self, tensors: list[Tensor]) -> bool:
        """Compare by content: the last resort, for callers who rebuild their tokens at every call."""
        held = [mark.held for mark in self._marks]
        return len(held) == len(tensors) and all(
            a is not None and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
            for a, b in zip(held, tensors, strict=True)
        )


class _Mark:
    def __init__(self, tensor: Tensor, hold: bool):
        slice_of_longer = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        # Holding a slice costs nothing while the whole is alive, and keeps its address from being given to another.
        self.held = tensor if hold or slice_of_longer else None
        self._object = weakref.ref(tensor)
        self._view = _view(tensor)
        self._writes = writes_into(tensor)  # so that a buffer refilled with another request's tokens is told

    def compare(self, tensor: Tensor) -> bool | None:
        if self._object() is tensor:
            return self._writes == writes_into(tensor)
        if self.held is None or self._view[0] != _view(tensor)[0]:
            return None
        return self._view == _view(tensor) and self._writes == writes_into(tensor)


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


@dataclass(eq=False)
class Stream:
    """One sequence of calls that share one cache; `cache` is what is kept for it, with `release` and `end`."""

    number: int
    first: int
    num_steps: int | None
    group: Group
    step: int = -1
    extras: Identity = field(default_factory=lambda: Identity(()))
    cache: Any = None

    @property
    def done(self) -> bool:
        return self.num_steps is not None and self.step >= self.num_steps - 1

    def coordinate(self, axis: str, step: int) -> float | None:
        """Where a step lies on an axis, increasing along the run; None for one to come whose place is not known."""
        if axis == "step":
            return float(step)
        timesteps, position = self.group.timesteps, self.first + step * self.group.stride
        if timesteps is None:
            return -self.group.value if step == self.step else None
        return timesteps.coordinate(position, axis) if position < len(timesteps) else None

    def ahead(self, axis: str) -> list[float]:
        """Where the present step and those to come lie on an axis, as far as is known."""
        last = self.step + LOOK_AHEAD if self.num_steps is None else min(self.num_steps - 1, self.step + LOOK_AHEAD)
        found = [self.coordinate(axis, step) for step in range(self.step, last + 1)]
        return list(itertools.takewhile(lambda each: each is not None, found))  # pyright: ignore[reportReturnType]

    def span(self, axis: str) -> tuple[float, float]:
        """The whole range on an axis. The number of steps must be known."""
        assert self.num_steps is not None
        last, timesteps = self.num_steps - 1, self.group.timesteps
        if axis == "step" or timesteps is None:
            return 0.0, float(last)
        end = min(self.first + last * self.group.stride, len(timesteps) - 1)
        return timesteps.coordinate(self.first, axis), timesteps.coordinate(end, axis)

    def coordinates(self, axis: str) -> tuple[float, ...]:
        """Where all steps lie on an axis; 0, 1, 2, ... where some would coincide or nothing tells."""
        assert self.num_steps is not None
        if axis != "step" and self.group.timesteps is not None:
            found = [self.coordinate(axis, step) for step in range(self.num_steps)]
            known = tuple(each for each in found if each is not None)
            if len(known) == self.num_steps and all(b > a for a, b in itertools.pairwise(known)):
                return known
        return tuple(float(step) for step in range(self.num_steps))

    def listed_timesteps(self) -> tuple[float, ...] | None:
        """The timesteps of all steps, None where no list tells."""
        assert self.num_steps is not None
        if self.group.timesteps is None:
            return None
        values = self.group.timesteps.values[self.first :: self.group.stride][: self.num_steps]
        return values if len(values) == self.num_steps else None

    @property
    def position(self) -> int:
        """The place of its last call in the timesteps."""
        return self.first + self.step * self.group.stride


@dataclass(eq=False)
class Group:
    """The streams of one caller over one run, and how far it has come.

    former: the group in whose place this one began in mid-run, with other tokens.
    """

    key: tuple[Any, ...]
    tokens: Identity
    timesteps: Timesteps | None
    start: int
    end: int | None
    born: int
    touched: int
    stride: int = 1
    position: int = -1
    value: float = 0.0
    rising: bool | None = None
    calls: int = 0
    calls_per_position: int | None = None
    former: Group | None = None
    streams: dict[tuple[int, int], Stream] = field(default_factory=dict)

    def relation(self, place: StepPosition) -> tuple[str, int]:
        """How a call relates to the last one: "same", "next", "back" or "gap", and its position."""
        position = self._position_of_value(place) if place.position is None else place.position
        if position == self.position:
            return "same", position
        if position == self.position + 1:
            return "next", position
        return ("back" if position < self.position else "gap"), position

    def _position_of_value(self, place: StepPosition) -> int:
        if self.timesteps is None:
            return self._position_by_change(place.value)
        values = self.timesteps.values_in(place.dtype)
        following = self.position + 1
        if values[self.position] == place.value:
            # A timestep that is listed twice: the next position once this one has had its calls.
            repeated = following < len(values) and values[following] == place.value
            full = self.calls_per_position is not None and self.calls >= self.calls_per_position
            return following if repeated and full else self.position
        if following < len(values) and values[following] == place.value:
            return following
        ahead = [p for p in range(following, len(values)) if values[p] == place.value]
        return ahead[0] if ahead and place.value not in values[: self.position] else values.index(place.value)

    def _position_by_change(self, value: float) -> int:
        """Without a list of timesteps: another value is the next position, a turn of direction a new run."""
        if value == self.value:
            return self.position
        turned = self.rising is not None and self.rising != (value > self.value)
        return self.start if turned and self.position != self.start else self.position + (-1 if turned else 1)


@dataclass(frozen=True)
class Attribution:
    """What a call belongs to. `stream` is None where it cannot be told; `note` then says why."""

    stream: Stream | None
    new_run: bool = False
    note: str | None = None


class Streams:
    """All groups of one UNet.

    run_length: how many positions a run has that begins at a position of a timesteps; None if nobody knows.
    """

    def __init__(self, run_length: Callable[[Timesteps | None, int], int | None]):
        self._run_length = run_length
        self.groups: list[Group] = []
        self._now = 0  # counts calls
        self._numbers = itertools.count()
        self._run_begun = 0  # when the last run began

    def attribute(
        self, place: StepPosition, key: tuple[Any, ...], tokens: list[Tensor], extras: list[Tensor]
    ) -> Attribution:
        """The stream of a call at `place`, with tensors `tokens` and `extras`."""
        self._now += 1
        timesteps = place.timesteps
        if timesteps is not None and place.position is None and place.value not in timesteps.values_in(place.dtype):
            return Attribution(None, note="its timestep is not one of the scheduler's")
        group = self._find(place, key, tokens)
        if group is None:
            former = self._former(place, key)
            note = None if former is None else "its embeddings are not those of the step before"
            return self._begin(place, key, tokens, extras, note, former)
        relation, position = group.relation(place)
        if relation in ("back", "gap"):
            self.drop(group)
            note = "its timestep skips ahead of what came before" if relation == "gap" else None
            begun = StepPosition(place.timesteps or group.timesteps, position, place.value)
            return self._begin(begun, key, tokens, extras, note)
        if relation == "next":
            group.calls_per_position = group.calls_per_position or group.calls
            group.rising = place.value > group.value if group.timesteps is None else None
            group.position, group.value, group.calls = position, place.value, 0
        group.touched = self._now
        group.calls += 1
        return self._within(group, extras)

    def expecting(self, place: StepPosition, tokens: list[Tensor]) -> list[Stream]:
        """The streams that a call at `place` would continue; nothing is changed. Empty if a new one would begin."""
        groups = [g for g in self.groups if _same_list(g, place) and g.relation(place)[0] in ("next", "same")]
        own = [g for g in groups if g.tokens.compare(tokens) is True]
        found = []
        for group in own or groups:
            relation, position = group.relation(place)
            ordinal = 0 if relation == "next" else group.calls
            stream = group.streams.get(((position - group.start) % group.stride, ordinal))
            if stream is None or stream.position != position - group.stride:
                return []
            found.append(stream)
        return found

    def complete(self, stream: Stream) -> None:
        """Call when a stream's call has ended; ends the stream, and the run, after the last step."""
        if not stream.done:
            return
        stream.cache.end()
        group = stream.group
        if all(other.done for other in group.streams.values()):
            # Groups that have not moved since this one began were abandoned.
            former, born = group.former, group.born
            self.retire(lambda other: other is group or (other.touched < born and former in (None, other)))

    def retire(self, is_over: Callable[[Group], bool]) -> None:
        """Drop every group that can have no further call."""
        for group in [g for g in self.groups if is_over(g)]:
            self.drop(group)

    def drop(self, group: Group) -> None:
        """Forget a group and all that is kept for it."""
        if group in self.groups:
            self.groups.remove(group)
        for stream in group.streams.values():
            if stream.cache is not None:
                stream.cache.release()

    def clear(self) -> None:
        """Forget everything."""
        self.retire(lambda _: True)

    def _former(self, place: StepPosition, key: tuple[Any, ...]) -> Group | None:
        """For a call with new tokens: the group of a caller that was expected here with others, if there is one.

        Where that had itself begun so, tokens are made anew at every step, and the one before it is over.
        """
        taken = [g.former for g in self.groups]
        expected = [g for g in self.groups if g.key == key and _same_list(g, place) and g.relation(place)[0] == "next"]
        former = min((g for g in expected if g not in taken), key=lambda g: g.touched, default=None)
        if former is not None and former.former is not None and former.born == former.touched:
            self.drop(former.former)
            former.former = None
        return former

    def _find(self, place: StepPosition, key: tuple[Any, ...], tokens: list[Tensor]) -> Group | None:
        alike = [g for g in self.groups if g.key == key and (g.timesteps is place.timesteps or _same_list(g, place))]
        found = [g for g in alike if g.tokens.compare(tokens) is True]
        if not found:
            # Tokens rebuilt at every call: only now is it worth comparing what they hold.
            found = [g for g in alike if g.tokens.compare(tokens) is None and g.tokens.equals(tokens)]
        expecting = [g for g in found if g.relation(place)[0] in ("next", "same")]
        candidates = expecting or found
        return candidates[-1] if candidates else None

    def _begin(
        self,
        place: StepPosition,
        key: tuple[Any, ...],
        tokens: list[Tensor],
        extras: list[Tensor],
        note: str | None,
        former: Group | None = None,
    ) -> Attribution:
        timesteps = place.timesteps
        position = place.position
        if position is None:
            position = 0 if timesteps is None else self._position_beside(place)
        count = self._run_length(timesteps, position)
        group = Group(
            key=key,
            tokens=Identity(tokens, hold=True),
            timesteps=timesteps,
            start=position,
            end=None if count is None else position + count,
            born=self._now,
            touched=self._now,
            stride=timesteps.order if timesteps is not None else 1,
            position=position,
            value=place.value,
            calls=1,
            former=former,
        )
        beside = any(g.timesteps is timesteps and g.position in (position, position - 1) for g in self.groups)
        new_run = note is None and not beside
        if new_run:
            self.retire(lambda other: other.touched < self._run_begun)
            self._run_begun = self._now
        self.groups.append(group)
        return replace(self._within(group, extras), new_run=new_run, note=note)

    def _position_beside(self, place: StepPosition) -> int:
        """A position with this value: where the other groups of this timesteps are, else the first."""
        assert place.timesteps is not None
        values = place.timesteps.values_in(place.dtype)
        beside = [
            g.position for g in self.groups if g.timesteps is place.timesteps and values[g.position] == place.value
        ]
        return beside[-1] if beside else values.index(place.value)

    def _within(self, group: Group, extras: list[Tensor]) -> Attribution:
        parity = (group.position - group.start) % group.stride
        ordinal = group.calls - 1
        before = group.position - group.stride
        siblings = {o: s for (p, o), s in group.streams.items() if p == parity and s.position == before}
        stream = siblings.get(ordinal)
        answers = {o: s.extras.compare(extras) for o, s in siblings.items()}
        if answers.get(ordinal) is not True:
            recognised = [o for o, answer in answers.items() if answer is True]
            if recognised:
                stream = siblings[recognised[0]]
            elif answers.get(ordinal) is False:
                return Attribution(None, note="its inputs are those of no earlier call at its place in the step")
        if stream is None:
            if (parity, ordinal) in group.streams:
                # The sequence was interrupted: what is kept is older than one step.
                former = group.streams.pop((parity, ordinal))
                if former.cache is not None:
                    former.cache.release()
            count = None if group.end is None else -(-(group.end - group.position) // group.stride)
            stream = Stream(next(self._numbers), group.position, count, group)
            group.streams[parity, ordinal] = stream
        stream.step += 1
        stream.extras = Identity(extras)
        return Attribution(stream)


def _same_list(group: Group, place: StepPosition) -> bool:
    if place.position is None and place.timesteps is not None and group.timesteps is not None:
        # Known by value only: it may belong to an earlier list that another request still follows.
        return group.timesteps is place.timesteps or place.value in group.timesteps.values_in(place.dtype)
    return group.timesteps is place.timesteps

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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ticache.timeline import Place, Timeline


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
        self._version = _version(tensor)

    def compare(self, tensor: Tensor) -> bool | None:
        if self._object() is tensor:
            return _version(tensor) == self._version
        if self.held is None:
            return None
        if self._view[0] == _view(tensor)[0]:
            return self._view == _view(tensor) and _version(tensor) == self._version
        return None


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _version(tensor: Tensor) -> int:
    """Counts writes in place, so that a buffer refilled with another request's tokens is not taken for the same."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(eq=False)
class Stream:
    """One sequence of calls that share one cache; `payload` is what its owner keeps for it."""

    number: int
    first: int
    num_steps: int | None
    group: Group
    step: int = -1
    extras: Identity | None = None
    payload: Any = None

    @property
    def done(self) -> bool:
        return self.num_steps is not None and self.step >= self.num_steps - 1

    @property
    def position(self) -> int:
        """The place of its last call in the timeline."""
        return self.first + self.step * self.group.stride


@dataclass(eq=False)
class Group:
    """The streams of one caller over one run, and how far it has come.

    former: the group in whose place this one began in mid-run, with other tokens.
    """

    key: tuple[Any, ...]
    tokens: Identity
    timeline: Timeline | None
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

    def relation(self, place: Place) -> tuple[str, int]:
        """How a call relates to the last one: "same", "next", "back" or "gap", and its position."""
        position = self._position(place)
        if position == self.position:
            return "same", position
        if position == self.position + 1:
            return "next", position
        return ("back" if position < self.position else "gap"), position

    def _position(self, place: Place) -> int:
        if place.position is not None:
            return place.position
        if self.timeline is None:
            return self._position_by_change(place.value)
        values = self.timeline.values_in(place.dtype)
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
    born: bool = False
    new_run: bool = False
    note: str | None = None


class Streams:
    """All groups of one UNet. `finish(stream)` is called where a stream ends, `release(stream)` where it is dropped."""

    def __init__(self, release: Callable[[Stream], None], finish: Callable[[Stream], None]):
        self.groups: list[Group] = []
        self._release = release
        self._finish = finish
        self._serial = itertools.count()
        self._numbers = itertools.count()
        self._run_begun = 0  # when the last run began

    def attribute(
        self,
        place: Place,
        key: tuple[Any, ...],
        tokens: list[Tensor],
        extras: list[Tensor],
        num_steps: Callable[[Timeline | None, int], int | None],
    ) -> Attribution:
        """The stream of a call at `place`, with tensors `tokens` and `extras`.

        num_steps: how many positions a run has that begins at a position of a timeline; None if nobody knows.
        """
        serial = next(self._serial)
        timeline = place.timeline
        by_value = timeline is not None and place.position is None
        if timeline is not None and by_value and place.value not in timeline.values_in(place.dtype):
            return Attribution(None, note="its timestep is not one of the scheduler's")
        group = self._find(place, key, tokens)
        if group is None:
            former = self._former(place, key)
            note = None if former is None else "its embeddings are not those of the step before"
            return self._begin(place, key, tokens, extras, num_steps, serial, note, former)
        relation, position = group.relation(place)
        if relation in ("back", "gap"):
            self.drop(group)
            note = "its timestep skips ahead of what came before" if relation == "gap" else None
            begun = Place(place.timeline or group.timeline, position, place.value)
            return self._begin(begun, key, tokens, extras, num_steps, serial, note, None)
        if relation == "next":
            group.calls_per_position = group.calls_per_position or group.calls
            group.rising = place.value > group.value if group.timeline is None else None
            group.position, group.value, group.calls = position, place.value, 0
        group.touched = serial
        group.calls += 1
        return self._within(group, extras)

    def expecting(self, place: Place, tokens: list[Tensor]) -> list[Stream]:
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
        self._finish(stream)
        group = stream.group
        if all(other.done for other in group.streams.values()):
            # Groups that have not moved since this one began were abandoned.
            former, born = group.former, group.born
            if former is None:
                self.retire(lambda other: other is group or other.touched < born)
            else:
                self.retire(lambda other: other is group or (other is former and other.touched < born))

    def retire(self, is_over: Callable[[Group], bool]) -> None:
        """Drop every group that can have no further call."""
        for group in [g for g in self.groups if is_over(g)]:
            self.drop(group)

    def drop(self, group: Group) -> None:
        """Forget a group and all that is kept for it."""
        if group in self.groups:
            self.groups.remove(group)
        for stream in group.streams.values():
            self._release(stream)

    def clear(self) -> None:
        """Forget everything."""
        self.retire(lambda _: True)

    def _former(self, place: Place, key: tuple[Any, ...]) -> Group | None:
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

    def _find(self, place: Place, key: tuple[Any, ...], tokens: list[Tensor]) -> Group | None:
        alike = [g for g in self.groups if g.key == key and _same_list(g, place)]
        found = [g for g in alike if g.tokens.compare(tokens) is True]
        if not found:
            # Tokens rebuilt at every call: only now is it worth comparing what they hold.
            found = [g for g in alike if g.tokens.compare(tokens) is None and g.tokens.equals(tokens)]
        expecting = [g for g in found if g.relation(place)[0] in ("next", "same")]
        candidates = expecting or found
        return candidates[-1] if candidates else None

    def _begin(
        self,
        place: Place,
        key: tuple[Any, ...],
        tokens: list[Tensor],
        extras: list[Tensor],
        num_steps: Callable[[Timeline | None, int], int | None],
        serial: int,
        note: str | None,
        former: Group | None,
    ) -> Attribution:
        timeline = place.timeline
        position = place.position
        if position is None:
            position = 0 if timeline is None else self._position_beside(place)
        count = num_steps(timeline, position)
        group = Group(
            key=key,
            tokens=Identity(tokens, hold=True),
            timeline=timeline,
            start=position,
            end=None if count is None else position + count,
            born=serial,
            touched=serial,
            stride=timeline.order if timeline is not None else 1,
            position=position,
            value=place.value,
            calls=1,
            former=former,
        )
        new_run = not any(g.timeline is timeline and g.position in (position, position - 1) for g in self.groups)
        self.groups.append(group)
        attribution = self._within(group, extras)
        if note is not None:
            return Attribution(attribution.stream, born=True, new_run=False, note=note)
        if new_run:
            self.retire(lambda other: other.touched < self._run_begun)
            self._run_begun = serial
        return Attribution(attribution.stream, born=True, new_run=new_run)

    def _position_beside(self, place: Place) -> int:
        """A position with this value: where the other groups of this timeline are, else the first."""
        assert place.timeline is not None
        values = place.timeline.values_in(place.dtype)
        beside = [g.position for g in self.groups if g.timeline is place.timeline and values[g.position] == place.value]
        return beside[-1] if beside else values.index(place.value)

    def _within(self, group: Group, extras: list[Tensor]) -> Attribution:
        parity = (group.position - group.start) % group.stride
        ordinal = group.calls - 1
        before = group.position - group.stride
        siblings = {o: s for (p, o), s in group.streams.items() if p == parity and s.position == before}
        stream = siblings.get(ordinal)
        answers = {o: s.extras.compare(extras) for o, s in siblings.items() if s.extras is not None}
        if answers.get(ordinal) is not True:
            recognised = [o for o, answer in answers.items() if answer is True]
            if recognised:
                stream = siblings[recognised[0]]
            elif answers.get(ordinal) is False:
                return Attribution(None, note="its inputs are those of no earlier call at its place in the step")
        born = stream is None
        if stream is None:
            if (parity, ordinal) in group.streams:
                # The sequence was interrupted: what is kept is older than one step.
                self._release(group.streams.pop((parity, ordinal)))
            count = None if group.end is None else -(-(group.end - group.position) // group.stride)
            stream = Stream(next(self._numbers), group.position, count, group)
            group.streams[parity, ordinal] = stream
        stream.step += 1
        stream.extras = Identity(extras)
        return Attribution(stream, born=born)


def _same_list(group: Group, place: Place) -> bool:
    if place.position is None and place.timeline is not None and group.timeline is not None:
        # Known by value only: it may belong to an earlier list that another request still follows.
        return group.timeline is place.timeline or place.value in group.timeline.values_in(place.dtype)
    return group.timeline is place.timeline

"""Reuse of the whole UNet's residual until its input has changed too much: what EasyCache and ucache do.

ComfyUI's EasyCache and stable-diffusion.cpp's ucache estimate how much the output has changed since the last full call
from how much the input has, add that up, and call again when the sum passes a threshold; else the output is the input
plus what the last full call added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from benchmarks.baselines import Running, tensor_bytes

START, END = 0.15, 0.95  # the shares of a run between which calls may be left out, by EasyCache's defaults


class ThresholdReuse:
    """The rule, for one run after another of `num_steps` calls each. `calls`: full ones in the last run."""

    def __init__(self, threshold: float, num_steps: int, *, start: float = START, end: float = END):
        self.threshold, self.num_steps = threshold, num_steps
        self._active = range(round(start * num_steps + 0.499), round(end * num_steps + 0.499))
        self._begin()

    def _begin(self) -> None:
        self.step = self.calls = 0
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._rate: float | None = None
        self._sum = 0.0

    def __call__(self, sample: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The output for `sample` [B, C, ...]: computed, or guessed from the last that was."""
        if self.step == self.num_steps:
            self._begin()
        step, self.step = self.step, self.step + 1
        change = None if self._input is None else float((sample - self._input).abs().mean())
        if step in self._active and self._may_reuse(change):
            assert self._input is not None
            assert self._output is not None
            channels = self._output.shape[1]
            return sample[:, :channels] + (self._output - self._input[:, :channels])
        output = compute()
        self.calls += 1
        if change and self._output is not None:
            self._rate = float((output - self._output).abs().mean()) / change
        self._input, self._output = sample.clone(), output.clone()
        return output

    def _may_reuse(self, change: float | None) -> bool:
        if self._rate is None or change is None or self._output is None:
            return False
        self._sum += self._rate * change / float(self._output.abs().mean())
        if self._sum < self.threshold:
            return True
        self._sum = 0.0
        return False

    def bytes_held(self) -> int:
        return tensor_bytes([self._input, self._output])


def tune_threshold(inputs: Sequence[Tensor], outputs: Sequence[Tensor], calls: int) -> float:
    """The least threshold with which an uncached run's inputs and outputs need at most `calls` full calls.

    Where even reuse at every step that allows it needs more, the threshold that gives the fewest.
    """

    def needed(threshold: float) -> int:
        rule = ThresholdReuse(threshold, len(inputs))
        for sample, output in zip(inputs, outputs, strict=True):
            rule(sample, lambda output=output: output)
        return rule.calls

    low, high = 0.0, 1.0
    while needed(high) > calls and high < 1e3:
        high *= 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle) <= calls else (middle, high)
    return high


def _sample_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["sample"]


@contextmanager
def threshold_reuse(pipe: Any, *, threshold: float, num_steps: int) -> Iterator[Running]:
    """Around the UNet of a pipeline that asks for tuples (`return_dict=False`)."""
    rule = ThresholdReuse(threshold, num_steps)
    original = pipe.unet.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (rule(_sample_of(args, kwargs), lambda: original(*args, **kwargs)[0]),)

    pipe.unet.forward = forward
    try:
        yield Running(full_calls=lambda: rule.calls, bytes_held=rule.bytes_held)
    finally:
        pipe.unet.__dict__.pop("forward", None)


@contextmanager
def recorded(pipe: Any) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Every input and output of the UNet within it, for `tune_threshold`."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs.append(_sample_of(args, kwargs).clone())
        outputs.append(output[0].clone())

    handle = pipe.unet.register_forward_hook(note, with_kwargs=True)
    try:
        yield inputs, outputs
    finally:
        handle.remove()

"""Pictures larger than the model was trained on: wider convolutions in the deepest blocks, in the early steps.

At twice the size a 3x3 convolution sees half as much of the picture, and a model that has learned what a face is from
the whole of it begins to draw several. ScaleCrafter (He et al., 2023, arXiv 2310.07702) spreads the nine taps of the
deepest convolutions by the same factor while the layout is decided, and takes them back for the detail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

Dilation = Literal["auto", "none"]
DILATIONS: tuple[Dilation, ...] = get_args(Dilation)
EARLY = 0.6  # share of the steps: ScaleCrafter's 30 of 50 at 1024 pixels
DEEP = 8  # cells a side: the middle of Stable Diffusion's UNet at 512 pixels
LEAST = 1.25  # a smaller factor is left alone: resampling the features would cost more than it mends


def dilation_factor(size: Sequence[int], trained: int) -> float:
    """The side of a picture [.., h, w] over the `trained` one, both in latent cells; 1 where that is below `LEAST`."""
    factor = math.sqrt(size[-2] * size[-1]) / trained
    return factor if factor >= LEAST else 1.0


def is_early(step: int, num_steps: int) -> bool:
    """Whether the layout is still being decided at a step, counted from 0."""
    return step < math.ceil(EARLY * num_steps)


def deepest_convolutions(unet: Any) -> list[nn.Conv2d]:
    """The 3x3 convolutions on maps of at most `DEEP` cells a side at the trained size, and always the lowest ones.

    Down blocks, middle, and up blocks with their upsamplers; for Stable Diffusion's UNet what ScaleCrafter spreads.
    """
    levels = len(unet.down_blocks)
    count = max(sum(unet.config["sample_size"] / 2**level <= DEEP for level in range(levels)), 1)
    deepest = (*unet.down_blocks[-count:], unet.mid_block, *unet.up_blocks[:count])
    convolutions = (module for block in deepest for module in block.modules() if isinstance(module, nn.Conv2d))
    return [each for each in convolutions if each.kernel_size == (3, 3) and each.stride == (1, 1)]


def dilated_step(unet: Any, size: Sequence[int], step: int, num_steps: int) -> AbstractContextManager[None]:
    """What one step's calls of a UNet are made within: wider convolutions for latents [.., h, w], while it is early."""
    return dilated(unet, dilation_factor(size, unet.config["sample_size"]) if is_early(step, num_steps) else 1.0)


@contextmanager
def dilated(unet: Any, factor: float) -> Iterator[None]:
    """Within the block the deepest convolutions see `factor` times as far; after it, also after an error, as before.

    A whole factor spreads the taps. Any other spreads them by the next whole one, over features that are resized so
    that they reach as far as the factor says, and back (ScaleCrafter's re-dilation; bicubic, which blurs less than its
    bilinear). 1 changes nothing.
    """
    with ExitStack() as undo:
        if factor != 1:
            for convolution in deepest_convolutions(unet):
                _spread(convolution, factor, undo)
        yield


def _spread(convolution: nn.Conv2d, factor: float, undo: ExitStack) -> None:
    whole = math.ceil(factor)
    undo.callback(setattr, convolution, "dilation", convolution.dilation)
    undo.callback(setattr, convolution, "padding", convolution.padding)
    convolution.dilation = convolution.padding = (whole, whole)
    if whole != factor:
        resize = _Resize(whole / factor)
        undo.callback(convolution.register_forward_pre_hook(resize.before).remove)
        undo.callback(convolution.register_forward_hook(resize.after).remove)


class _Resize:
    """Hooks that enlarge what a convolution is given, and bring what it gives back to size."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._size: tuple[int, int] = (0, 0)

    def before(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (features,) = inputs
        self._size = height, width = features.shape[-2], features.shape[-1]
        larger = (round(height * self._factor), round(width * self._factor))
        return F.interpolate(features, size=larger, mode="bicubic")

    def after(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.interpolate(output, size=self._size, mode="bicubic")

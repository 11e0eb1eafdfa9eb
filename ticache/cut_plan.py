"""Where a UNet is cut: which modules are predicted, which are then dead, deduced from its module tree.

Every diffusers UNet is conv_in, down blocks, a mid block, up blocks and a head. Layer j of a block is the j-th share of
each of its module lists (resnet, attentions, motion module, ...). Each up layer reads one skip, in the reverse of the
order in which conv_in, the down layers and the downsamplers wrote them; that pairing tells what is dead. Which module
runs last in a layer is not assumed: the one seen to run last in the first full step is the site.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

HEAD = ("conv_norm_out", "conv_act", "conv_act_out", "conv_out")
_PARTS = ("conv_in", "down_blocks", "up_blocks", "conv_out")
_TRUNK = ("down_blocks", "mid_block", "up_blocks", "transformer_in")
# AnimateDiff's motion modules, text-to-video's temporal transformers, and the temporal blocks of video diffusion (SVD).
_TEMPORAL = re.compile(r"(^|\.)(motion_modules?|temp_\w+|temporal_\w+|transformer_in)\.")
_UNCACHED = "run it uncached, or with fewer steps"
_INSTEAD = {
    "UNetControlNetXSModel": "take a ControlNet in StableDiffusion(XL)ControlNetPipeline, cached with its UNet",
    "StableCascadeUNet": f"{_UNCACHED}, or cache an SDXL pipeline",
    "WuerstchenDiffNeXt": f"{_UNCACHED}, or cache an SDXL pipeline",
    "WuerstchenPrior": f"{_UNCACHED}, or cache an SDXL pipeline",
    "UniDiffuserModel": f"{_UNCACHED}, or cache a Stable Diffusion pipeline",
}

Named = tuple[str, str]  # a module's name in the UNet, and its role


@dataclass(eq=False)
class CutModule:
    """A module that does not run at a predicted step.

    role: "skipped", its output is a placeholder; "point", the last of these to run, the cache point, puts out the
    prediction, the others are skipped; "branch", its own output is predicted; "residual", so is the output less the
    input that the module adds to it.
    """

    index: int
    name: str
    module: nn.Module
    role: str

    @property
    def temporal(self) -> bool:
        """Does it attend over time: are its tokens [B*h*w, F, C]? Told by what holds it, never by shapes."""
        return _TEMPORAL.search(self.name) is not None


@dataclass(frozen=True)
class CutPlan:
    """What one cut means for one UNet.

    executed_skips: how many skips, from conv_in on, executed layers read; nobody reads ControlNet's residuals beyond.
    None: all. executed_mid: does an executed layer read what ControlNet adds to the mid block?
    executed_down_blocks: how many down blocks run whole, and so take a T2I-Adapter's features. None: all.
    """

    modules: tuple[CutModule, ...]
    executed_skips: int | None
    executed_mid: bool
    executed_down_blocks: int | None

    @property
    def temporal(self) -> frozenset[int]:
        """Which modules work over time."""
        return frozenset(cut.index for cut in self.modules if cut.temporal)


def why_not_a_unet(model: Any) -> str | None:
    """None if `model` has a UNet's layout, else the sentence to refuse it with."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        return f"expected a diffusers pipeline or a UNet, got {name}"
    parts: Any = model
    missing = [part for part in _PARTS if not isinstance(getattr(model, part, None), nn.Module)]
    instead = _INSTEAD.get(name, _UNCACHED)
    if missing:
        transformer = "transformer" in name.lower()
        kind = "a transformer" if transformer else "no UNet of diffusers' layout"
        if transformer:
            instead = "use diffusers' own caches (`enable_cache`) or cache-dit for it"
        return f"{name} is {kind} (it has no {', '.join(missing)}), and ticache caches UNets; {instead}"
    if _hands_on_whole_levels(model):
        return None
    if any(not _layers(block) for block in parts.up_blocks):
        return f"{name} has up blocks without resnets, and ticache needs diffusers' layout; {instead}"
    if any(hasattr(block, "skip_conv") for block in parts.up_blocks):
        return f"{name} carries a second skip through its up blocks, which ticache cannot cut; {instead}"
    skips = len(_skip_writers(model))
    readers = sum(len(_layers(block)) for block in parts.up_blocks)
    if skips != readers:
        return f"{name} writes {skips} skips and reads {readers}, and ticache needs one for each up layer; {instead}"
    return None


def plan(model: nn.Module, cut: str, *, depth: int = 0, resnets: bool = False) -> CutPlan:
    """What is predicted and what is dead in `model` at a cut. ValueError for a depth that the model does not have."""
    if cut == "output":
        return _plan_output(model)
    if cut == "branches":
        return _plan_branches(model, resnets)
    if _hands_on_whole_levels(model):
        return _plan_levels(model, depth)
    return _plan_outer(model, depth)


def _plan_output(model: nn.Module) -> CutPlan:
    last = len(model.up_blocks) - 1  # pyright: ignore[reportArgumentType]
    named: list[Named] = []
    for name, child in model.named_children():
        if name in ("down_blocks", "up_blocks"):
            for index, block in _blocks(child):
                site = name == "up_blocks" and index == last
                named += _whole(f"{name}.{index}", block, "point" if site else "skipped")
        elif name not in HEAD:
            named.append((name, "skipped"))
    return CutPlan(_modules(model, named), executed_skips=0, executed_mid=False, executed_down_blocks=0)


def _plan_outer(model: nn.Module, depth: int) -> CutPlan:
    up_layers = [(b, j) for b, block in _blocks(model.up_blocks) for j in range(len(_layers(block)))]
    if depth >= len(up_layers):
        raise ValueError(f"depth must be 0 to {len(up_layers) - 1} for this {type(model).__name__}, got {depth}")
    first_block, first_layer = up_layers[len(up_layers) - 1 - depth]
    named, executed_down_blocks = _dead_down(model, executed_skips=depth + 1)
    at_mid = first_block == 0 and first_layer == 0
    if isinstance(model.mid_block, nn.Module):
        named.append(("mid_block", "point" if at_mid else "skipped"))
    elif at_mid:
        raise ValueError(f"depth={depth} predicts the mid block, and this {type(model).__name__} has none")
    for b, block in _blocks(model.up_blocks):
        if b < first_block:
            before = b == first_block - 1 and first_layer == 0
            named += _whole(f"up_blocks.{b}", block, "point" if before else "skipped")
        elif b == first_block:
            for j, layer in enumerate(_layers(block)[:first_layer]):
                role = "point" if j == first_layer - 1 else "skipped"
                named += [(f"up_blocks.{b}.{name}", role) for name in layer]
    return CutPlan(_modules(model, named), depth + 1, executed_mid=at_mid, executed_down_blocks=executed_down_blocks)


def _plan_levels(model: nn.Module, depth: int) -> CutPlan:
    """Like `_plan_outer`, where every level hands on one skip: its down block's output, read by its up block."""
    downs, ups, live = len(_blocks(model.down_blocks)), len(_blocks(model.up_blocks)), depth + 1
    if live >= ups:
        raise ValueError(f"depth must be 0 to {ups - 2} for this {type(model).__name__}, got {depth}")
    named = [(f"down_blocks.{index}", "skipped") for index in range(live, downs)]
    named += [(f"up_blocks.{index}", "skipped") for index in range(ups - live - 1)]
    named.append((f"up_blocks.{ups - live - 1}", "point"))
    return CutPlan(_modules(model, named), executed_skips=None, executed_mid=False, executed_down_blocks=live)


def _dead_down(model: nn.Module, executed_skips: int) -> tuple[list[Named], int]:
    """The modules of the down path behind the last live skip, and the number of down blocks that run whole."""
    writers = _skip_writers(model)
    named: list[Named] = []
    whole = 0
    for index, block in _blocks(model.down_blocks):
        dead = [modules for at, modules in writers[executed_skips:] if at == index]
        if len(dead) == sum(at == index for at, _ in writers):
            named += _whole(f"down_blocks.{index}", block, "skipped")
        else:
            whole += not dead
            named += [(f"down_blocks.{index}.{name}", "skipped") for modules in dead for name in modules]
    return named, whole


def _plan_branches(model: nn.Module, resnets: bool) -> CutPlan:
    named: list[Named] = []
    for name, module in model.named_modules():
        if name.split(".")[0] not in _TRUNK:
            continue
        if all(hasattr(module, part) for part in ("to_q", "to_k", "to_v", "to_out")):
            named.append((name, "residual" if getattr(module, "residual_connection", False) else "branch"))
        elif hasattr(module, "conv4") and hasattr(module, "conv1"):
            # The temporal convolutions of text-to-video: identity + conv4(conv3(conv2(conv1(x)))).
            named += _chain(name, module, ("conv1", "conv2", "conv3", "conv4"))
        elif resnets and all(hasattr(module, part) for part in ("norm1", "conv1", "norm2", "conv2")):
            named += _chain(name, module, ("norm1", "conv1", "time_emb_proj", "norm2", "conv2"))
    return CutPlan(_modules(model, named), executed_skips=None, executed_mid=True, executed_down_blocks=None)


def _chain(parent: str, module: nn.Module, parts: tuple[str, ...]) -> list[Named]:
    """The parts of a residual branch: the last is predicted, the others are dead."""
    present = [part for part in parts if isinstance(getattr(module, part, None), nn.Module)]
    return [(f"{parent}.{part}", "branch" if part == present[-1] else "skipped") for part in present]


def _whole(name: str, block: nn.Module, role: str) -> list[Named]:
    """A block and all that is in it: some UNets call their blocks' layers and never the block.

    The last to run is the site: the block, or where that is not called what runs last in it.
    """
    *earlier, last = _layers(block) or [[]]
    named = [(f"{name}.{child}", "skipped") for layer in earlier for child in layer]
    return [(name, role), *named, *((f"{name}.{child}", role) for child in (*last, *_samplers(block)))]


def _samplers(block: nn.Module) -> list[str]:
    """The names in a block of its downsamplers or upsamplers."""
    lists = [(n, c) for n, c in block.named_children() if "sampler" in n and isinstance(c, nn.ModuleList)]
    return [f"{name}.{index}" for name, child in lists for index in range(len(child))]


def _modules(model: nn.Module, named: list[Named]) -> tuple[CutModule, ...]:
    return tuple(CutModule(index, name, model.get_submodule(name), role) for index, (name, role) in enumerate(named))


def _blocks(blocks: object) -> list[tuple[int, nn.Module]]:
    assert isinstance(blocks, nn.Module)
    return list(enumerate(blocks.children()))


def _hands_on_whole_levels(model: nn.Module) -> bool:
    """Is this Kandinsky 3's layout: no mid block, and one skip from each down block but the last to an up block?"""
    levels = [*_blocks(model.down_blocks), *_blocks(model.up_blocks)]
    has_mid = isinstance(getattr(model, "mid_block", None), nn.Module)
    return not has_mid and all(hasattr(block, "resnets_in") and hasattr(block, "resnets_out") for _, block in levels)


def _layers(block: nn.Module) -> list[list[str]]:
    """Layer j: the j-th share of each of the block's lists that go with `resnets`, by their names in the block.

    A list with a multiple of `resnets`' entries has as many for every layer: AudioLDM2's attentions, one a condition.
    """
    resnets = getattr(block, "resnets", None)
    if not isinstance(resnets, nn.ModuleList) or not len(resnets):
        return []
    layers: list[list[str]] = [[] for _ in resnets]
    for name, child in block.named_children():
        if not isinstance(child, nn.ModuleList) or "sampler" in name or len(child) % len(resnets):
            continue
        share = len(child) // len(resnets)
        for index in range(len(child)):
            layers[index // share].append(f"{name}.{index}")
    return layers


def _skip_writers(model: nn.Module) -> list[tuple[int, list[str]]]:
    """What writes each skip, in order: (block, names of modules in it); conv_in is block -1."""
    writers: list[tuple[int, list[str]]] = [(-1, [])]
    for index, block in _blocks(model.down_blocks):
        writers += [(index, layer) for layer in _layers(block)]
        samplers = _samplers(block)
        if samplers:
            writers.append((index, samplers))
    return writers

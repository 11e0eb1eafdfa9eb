"""What a call is given, and what the pipeline around it tells: scheduler, ControlNet, adapters, latents.

All of it is read anew at each call, so that exchanging a part after `apply` just works; no values on the device are
looked at.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ticache.timesteps import Timesteps

RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
_DIFFUSERS_NAMES = ("sample", "timestep", "encoder_hidden_states")
NOISE_ARGUMENTS = ("eta", "s_churn")  # of a scheduler's step: what makes it add noise where it would not
_NOISY = (
    *("DDPM", "Ancestral", "LCM", "TCD", "SDE", "ScoreSde", "UnCLIP", "CMStochastic", "SASolver", "CosineDPMSolver"),
    *("RePaint", "KarrasVe", "ConsistencyDecoder", "SCM", "CogVideoXDPM", "RFD4Proteina", "HeliosDMD"),
)
_NOISY_SETTINGS = ("use_stochastic_sampling", "stochastic_sampling")
_TOLD_APART_OTHERWISE = frozenset(
    ("sample", "timestep", "timesteps", "t", "encoder_hidden_states", "context", *RESIDUALS)
)
REMEMBERED = 64  # samples: several requests, or windows, may be under way at once


class PipelineInfo:
    """Reads the pipeline's present scheduler and ControlNet, so that exchanging them after `apply` just works.

    A copy made with the pipeline belongs to the copied pipeline; a copy of the UNet alone belongs to none, and goes on
    reading the scheduler it read.
    """

    def __init__(self, pipe: Any = None, scheduler: Any = None, num_steps: int | None = None, component: str = "unet"):
        self.pipe = pipe
        self.num_steps = num_steps
        self.component = component
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        """The scheduler that sets the run's timesteps, None if there is none."""
        if self._scheduler is not None:
            return self._scheduler
        # A pipeline of several denoisers, such as UnCLIP, has a scheduler for each.
        own = getattr(self.pipe, f"{self.component}_scheduler", None)
        return own if own is not None else getattr(self.pipe, "scheduler", None)

    @property
    def controlnet(self) -> nn.Module | None:
        """The pipeline's ControlNet (or several in one), None if it has none."""
        found = getattr(self.pipe, "controlnet", None)
        return found if isinstance(found, nn.Module) else None

    def exchange_note(self, unet: nn.Module) -> str | None:
        """The sentence on a UNet of the pipeline that was replaced after `apply`; None where it was not."""
        name = self.component
        present = getattr(self.pipe, name, None)
        if self.pipe is None or (isinstance(present, nn.Module) and unwrapped(present) is unet):
            return None
        return f"pipe.{name} was replaced after ticache.apply: the cache sits on the old one; call apply again"

    def run_length(self, timesteps: Timesteps | None, start: int) -> int | None:
        """How many calls per stream of a list of timesteps a run has that begins at position `start`."""
        if self.num_steps is not None:
            return self.num_steps * (timesteps.order if timesteps is not None else 1)
        if timesteps is None:
            return None
        left = len(timesteps) - start
        # A base model that hands over to a refiner stops early; it alone knows where.
        if getattr(self.pipe, "denoising_end", None) is not None:
            left = min(left, getattr(self.pipe, "num_timesteps", left))
        return left

    def adds_noise(self, asked: float | None) -> bool:
        """Does the sampler add fresh noise at each step? asked: the step's own `eta` or `s_churn`."""
        scheduler = self.scheduler
        config = getattr(scheduler, "config", {})
        algorithm = str(config.get("algorithm_type", "")) if hasattr(config, "get") else ""
        settings = any(getattr(config, name, False) for name in _NOISY_SETTINGS)
        name = type(scheduler).__name__
        return bool(asked) or algorithm.startswith("sde") or settings or any(word in name for word in _NOISY)

    def guidance(self) -> float | None:
        """The scale of classifier-free guidance in the pipeline's present call; None without, or where it tells none.

        Pipelines that combine more than two predictions have further scales; what reaches their samplers is not told.
        """
        scale = getattr(self.pipe, "guidance_scale", None)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or scale <= 1:
            return None
        several = any(getattr(self.pipe, f"{name}_guidance_scale", None) is not None for name in ("image", "pag"))
        if several or getattr(self.pipe, "do_classifier_free_guidance", True) is False:
            return None
        return float(scale)

    def few_step_model(self, num_steps: int | None) -> str | None:
        """The sentence that refuses a consistency model's handful of steps; None for others."""
        name = type(self.scheduler).__name__
        if num_steps is not None and num_steps <= 8 and name.startswith(("LCM", "TCD")):
            return (
                f"{name} with {num_steps} steps cannot be accelerated: each step of a few-step model is far from the "
                "last, so nothing can be predicted; take more than 8 steps, or no cache"
            )
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineInfo:
        pipe = memo.get(id(self.pipe)) if self.pipe is not None else None
        scheduler = self._scheduler if pipe is not None or self._scheduler is not None else self.scheduler
        return PipelineInfo(pipe, memo.get(id(scheduler), scheduler), self.num_steps, self.component)


@dataclass(eq=False)
class CallInputs:
    """One call's arguments by name, in the order in which they came, and what is looked at in them.

    positional: how many came by place. sample: the noisy sample. tokens: what the caller is told apart by. extras:
    every other tensor that may tell calls apart; not what ControlNet makes anew at each step. batch, frames: of the
    sample, [B, C, H, W], [B, C, F, H, W] or, as SVD has it, [B, F, C, H, W]. kind: shapes, dtypes and devices.
    has_residuals: does a ControlNet or a T2I-Adapter add features?
    """

    bound: dict[str, Any]
    positional: int
    sample: Tensor | None
    timestep: Any
    tokens: list[Tensor]
    extras: list[Tensor]
    batch: int
    frames: int
    kind: tuple[Any, ...]
    has_residuals: bool

    def arguments(self, bound: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments as they came, with the values of `bound`."""
        items = list(bound.items())
        return tuple(value for _, value in items[: self.positional]), dict(items[self.positional :])


class Arguments:
    """Finds a UNet's inputs among positional and keyword arguments, by its forward's own names."""

    def __init__(self, unet: nn.Module):
        self._names = _argument_names(type(unet))
        channels = getattr(getattr(unet, "conv_in", None), "in_channels", None)
        self._in_channels = channels if isinstance(channels, int) else None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallInputs:
        """All arguments by name; those beyond the signature by their place."""
        names = [*self._names[: len(args)], *(str(place) for place in range(len(self._names), len(args)))]
        bound = {**dict(zip(names, args, strict=True)), **kwargs}
        sample = bound.get("sample")
        if sample is None:
            sample = next((value for value in bound.values() if isinstance(value, Tensor)), None)
        if not isinstance(sample, Tensor):
            sample = None
        timestep = next((bound[name] for name in ("timestep", "timesteps", "t") if name in bound), None)
        if timestep is None and len(bound) > 1:
            timestep = list(bound.values())[1]
        told = next((bound[n] for n in ("encoder_hidden_states", "context") if bound.get(n) is not None), None)
        tokens = tensors_in(bound.get("class_labels") if told is None else told)
        others = {name: value for name, value in bound.items() if name not in _TOLD_APART_OTHERWISE}
        extras = [tensor for tensor in tensors_in(others) if tensor is not sample]
        batch, frames = (0, 1) if sample is None else (sample.shape[0], 1)
        if sample is not None and sample.ndim >= 5:
            frames_first = sample.shape[1] != self._in_channels and sample.shape[2] == self._in_channels
            frames = sample.shape[1 if frames_first else 2]
        looked_at = [*([] if sample is None else [sample]), *tokens, *extras]
        kind = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in looked_at)
        has_residuals = any(bound.get(name) is not None for name in RESIDUALS)
        return CallInputs(bound, len(args), sample, timestep, tokens, extras, batch, frames, kind, has_residuals)


class Adapters:
    """The modules of one UNet that carry adapters, and its convolutions, which may be spread out in mid-run.

    They are looked for once, and again where others were loaded.
    """

    def __init__(self, unet: nn.Module):
        self._unet = unet
        self._loaded: tuple[Any, tuple[str, ...]] | None = None

    def in_force(self, bound: dict[str, Any]) -> tuple[Any, ...]:
        """What acts in a call with these arguments, and how strongly; equal where nothing has changed."""
        config = getattr(self._unet, "peft_config", None)
        loaded = config, tuple(config or ())
        if self._loaded is None or config is not self._loaded[0] or loaded[1] != self._loaded[1]:
            self._loaded = loaded
            self._look()
        given = bound.get("cross_attention_kwargs") or bound.get("attention_kwargs") or {}
        return (
            given.get("scale"),
            [bound.get(name) is not None for name in RESIDUALS],
            [(each.processor, _copied(getattr(each.processor, "scale", None))) for each in self._attentions],
            [_lora_strength(layer) for layer in self._lora],
            [gate.enabled for gate in self._grounding],
            [each.dilation for each in self._convolutions],
        )

    def _look(self) -> None:
        modules: list[Any] = list(self._unet.modules())
        self._attentions = [module for module in modules if hasattr(module, "processor")]
        self._lora = [module for module in modules if hasattr(module, "merged_adapters") and hasattr(module, "scaling")]
        self._grounding = [module for module in modules if type(module).__name__ == "GatedSelfAttentionDense"]
        self._convolutions = [each for each in modules if isinstance(each, nn.Conv2d) and each.kernel_size != (1, 1)]


def _copied(scale: Any) -> Any:
    return list(scale) if isinstance(scale, list) else scale


def _lora_strength(layer: Any) -> tuple[Any, ...]:
    # diffusers multiplies the scales by a call's own and divides them again after it, which leaves rounding errors.
    scales = [round(scale, 6) if isinstance(scale, float) else scale for scale in layer.scaling.values()]
    return tuple(layer.active_adapters), layer.disable_adapters, list(layer.merged_adapters), scales


class KnownLatents:
    """The latest samples that the scheduler's steps gave, and what it scaled from them; held weakly."""

    def __init__(self) -> None:
        self._known: deque[tuple[weakref.ref[Tensor], int]] = deque(maxlen=REMEMBERED)

    def add(self, sample: Any) -> None:
        """Take in what the scheduler gave."""
        if isinstance(sample, Tensor):
            self._known.appendleft((weakref.ref(sample), writes_into(sample)))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy knows none yet."""
        return KnownLatents, ()

    def __contains__(self, latents: Tensor) -> bool:
        """Are these known latents, or a part of such, that nobody has written into since?"""
        place = latents.untyped_storage().data_ptr()
        for reference, writes_then in self._known:
            known = reference()
            if known is not None and (known is latents or known.untyped_storage().data_ptr() == place):
                return writes_into(latents) == writes_then
        return False


def writes_into(tensor: Tensor) -> int:
    """How often a tensor was written into in place; 0 for one made in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def latents_of(pipe: Any, sample: Tensor) -> Tensor | None:
    """The latents behind a call's sample: in a loop of one's own the sample, None where nobody can have replaced them.

    A pipeline hands the UNet a copy of its latents, for both halves of guidance, and only its loop knows what
    `callback_on_step_end` gave back; so its own variables are looked at.
    """
    frame = sys._getframe(1)
    while frame is not None:
        names = frame.f_code.co_varnames
        if "callback_on_step_end" in names and pipe is not None and frame.f_locals.get("self") is pipe:
            values = frame.f_locals
            latents = values.get("latents") if values.get("callback_on_step_end") is not None else None
            return latents if isinstance(latents, Tensor) else None
        frame = frame.f_back
    return sample


def unwrapped(model: nn.Module) -> nn.Module:
    """The module under `torch.compile` and PEFT's wrapper, both of which call it as a module."""
    inner: Any = getattr(model, "_orig_mod", model)
    if type(inner).__module__.partition(".")[0] == "peft" and hasattr(inner, "get_base_model"):
        return unwrapped(inner.get_base_model())
    return inner


def _argument_names(kind: type) -> list[str]:
    """The names of a forward's arguments; what it takes as `*args` is taken to be its base class's."""
    names: list[str] = []
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        if "forward" in vars(base):
            parameters = list(inspect.signature(vars(base)["forward"]).parameters.values())[1:]
            plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            names += plain[len(names) :]
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                return names
    return names + list(_DIFFUSERS_NAMES[len(names) :])


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a tensor, list, tuple or dict of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def training_call(unet: nn.Module, inputs: CallInputs) -> tuple[str, str] | None:
    """Why a call is one to learn from, whose gradients a skipped module would not get, and what to do; None if not."""
    if unet.training:
        return "the UNet is in training mode", "call unet.eval()"
    if any(tensor.requires_grad for tensor in (inputs.sample, *inputs.tokens) if tensor is not None):
        return "gradients of its inputs are recorded", "wrap the loop in torch.no_grad()"
    if any(parameter.requires_grad for parameter in unet.parameters()):
        return "gradients of the UNet are recorded", "wrap the loop in torch.no_grad()"
    return None

"""What a cached UNet lives in: a pipeline, a bare loop with a scheduler, or a bare loop with a number of steps."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ticache.timeline import Timeline

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


class Host:
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

    def exchanged(self, unet: nn.Module) -> bool:
        """Was the pipeline's UNet replaced after `apply`?"""
        if self.pipe is None:
            return False
        present = getattr(self.pipe, self.component, None)
        return not isinstance(present, nn.Module) or unwrapped(present) is not unet

    def run_length(self, timeline: Timeline | None, start: int) -> int | None:
        """How many calls per stream of the timeline a run has that begins at position `start`."""
        if self.num_steps is not None:
            return self.num_steps * (timeline.order if timeline is not None else 1)
        if timeline is None:
            return None
        left = len(timeline) - start
        # A base model that hands over to a refiner stops early; it alone knows where.
        if getattr(self.pipe, "denoising_end", None) is not None:
            left = min(left, getattr(self.pipe, "num_timesteps", left))
        return left

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

    def adds_noise(self, asked: float | None) -> bool:
        """Does the sampler add fresh noise at each step? asked: the step's own `eta` or `s_churn`."""
        scheduler = self.scheduler
        config = getattr(scheduler, "config", {})
        algorithm = str(config.get("algorithm_type", "")) if hasattr(config, "get") else ""
        settings = any(getattr(config, name, False) for name in _NOISY_SETTINGS)
        name = type(scheduler).__name__
        return bool(asked) or algorithm.startswith("sde") or settings or any(word in name for word in _NOISY)

    def few_step_model(self, num_steps: int | None) -> str | None:
        """The sentence that refuses a consistency model's handful of steps; None for others."""
        name = type(self.scheduler).__name__
        if num_steps is not None and num_steps <= 8 and name.startswith(("LCM", "TCD")):
            return (
                f"{name} with {num_steps} steps cannot be accelerated: each step of a few-step model is far from the "
                "last, so nothing can be predicted; take more than 8 steps, or no cache"
            )
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        pipe = memo.get(id(self.pipe)) if self.pipe is not None else None
        scheduler = self._scheduler if pipe is not None or self._scheduler is not None else self.scheduler
        return Host(pipe, memo.get(id(scheduler), scheduler), self.num_steps, self.component)


class Arguments:
    """Finds a UNet's inputs among positional and keyword arguments, by its forward's own names."""

    def __init__(self, unet: nn.Module):
        self._names = _argument_names(type(unet))
        self._positional = 0
        channels = getattr(getattr(unet, "conv_in", None), "in_channels", None)
        self._in_channels = channels if isinstance(channels, int) else None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name, in the order in which they came; those beyond the signature by their place."""
        self._positional = len(args)
        names = [*self._names[: len(args)], *(str(place) for place in range(len(self._names), len(args)))]
        return {**dict(zip(names, args, strict=True)), **kwargs}

    def unbind(self, bound: dict[str, Any], positional: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of what `bind` gave, as many positional ones as came (at the last call)."""
        count = self._positional if positional is None else positional
        items = list(bound.items())
        return tuple(value for _, value in items[:count]), dict(items[count:])

    @staticmethod
    def sample(bound: dict[str, Any]) -> Tensor | None:
        """The noisy sample: the argument of that name, else the first tensor."""
        found = bound.get("sample")
        if found is None:
            found = next((value for value in bound.values() if isinstance(value, Tensor)), None)
        return found if isinstance(found, Tensor) else None

    @staticmethod
    def timestep(bound: dict[str, Any]) -> Any:
        """The timestep: `timestep`, `timesteps` or `t`, else the second argument."""
        for name in ("timestep", "timesteps", "t"):
            if name in bound:
                return bound[name]
        return list(bound.values())[1] if len(bound) > 1 else None

    @staticmethod
    def tokens(bound: dict[str, Any]) -> list[Tensor]:
        """What the caller is told apart by: the conditioning tokens."""
        for name in ("encoder_hidden_states", "context"):
            if bound.get(name) is not None:
                return tensors_in(bound[name])
        return tensors_in(bound.get("class_labels"))

    def extras(self, bound: dict[str, Any]) -> list[Tensor]:
        """Every other input tensor that may tell calls apart; not what ControlNet makes anew at each step."""
        known = ("sample", "timestep", "timesteps", "t", "encoder_hidden_states", "context", *RESIDUALS)
        sample = self.sample(bound)
        found = [t for name, value in bound.items() if name not in known for t in tensors_in(value)]
        return [tensor for tensor in found if tensor is not sample]

    def batch_and_frames(self, sample: Tensor) -> tuple[int, int]:
        """Samples and frames of a call: [B, C, H, W], [B, C, F, H, W] or, as SVD has it, [B, F, C, H, W]."""
        if sample.ndim < 5:
            return sample.shape[0], 1
        frames_first = sample.shape[1] != self._in_channels and sample.shape[2] == self._in_channels
        return sample.shape[0], sample.shape[1 if frames_first else 2]


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

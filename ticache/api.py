"""Put a cache on a pipeline's UNet, or on a bare UNet, and take it off again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from ticache import cut_plan, ops
from ticache.calibration import Calibration
from ticache.config import CacheConfig
from ticache.controller import Controller
from ticache.hooks import attached_controller
from ticache.inputs import PipelineInfo, unwrapped
from ticache.provenance import TuningCheck, model_identity
from ticache.region import Region, RegionMask
from ticache.session import Session

logger = logging.getLogger("ticache")

_COMPONENTS = ("unet", "denoising_unet", "image_unet", "decoder")
_OTHER_DENOISERS = ("transformer", "prior")
_SETTINGS = frozenset(field.name for field in dataclasses.fields(CacheConfig))

P = ParamSpec("P")
T = TypeVar("T")


def _telling_what_was_given(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function know, in `_given`, which options its caller named: a default must not win over a preset."""

    @functools.wraps(function)
    def told(*args: P.args, **options: P.kwargs) -> T:
        return function(*args, **{**options, "_given": frozenset(options)})  # pyright: ignore[reportCallIssue]

    signature = inspect.signature(function)
    shown = [parameter for name, parameter in signature.parameters.items() if name != "_given"]
    told.__signature__ = signature.replace(parameters=shown)  # pyright: ignore[reportAttributeAccessIssue]
    return told


@_telling_what_was_given
def apply(
    target: Any,
    config: CacheConfig | None = None,
    *,
    N: int = 3,
    order: int = 2,
    cut: str = "outer",
    depth: int = 0,
    resnets: bool = False,
    forecaster: str = "newton",
    schedule: str | Sequence[int] | Callable[..., bool] = "spread",
    axis: str = "step",
    boundary: float | int = 0,
    warmup: int = 0,
    dtype: torch.dtype | None = None,
    offload: str | None = None,
    keep: bool = False,
    noise_order: int | None = 1,
    backend: str = "auto",
    calibration: Calibration | str | None = None,
    preset: str | None = None,
    region: Region = None,
    scheduler: Any = None,
    num_steps: int | None = None,
    compile: bool | Mapping[str, Any] = False,
    on_mismatch: str = "map",
    _given: frozenset[str] = frozenset(),
) -> Session:
    """Cache the UNet of a diffusers pipeline, or a bare UNet, until `remove`.

    target: a pipeline with a UNet, or the UNet itself.
    N to calibration: see `CacheConfig`. They win over `config`, or over the preset ("paper", "fast", "balanced" or
        "faithful"), which fills what is left out. The default is N=3, order=2, cut="outer", Newton weights on the
        "spread" schedule: 10 of 30 steps in full, 2.6x fewer operations for SD 1.5. Over samplers and
        guidance 1 to 7.5 it is better than as many operations in solver steps, except on DPM-Solver++ 20 at 7.5
        (docs/schedules.md).
        schedule="auto" fits the full steps to your model, sampler and guidance: the first run of a kind is made in full
        and recorded, the next are predicted. calibration: `session.calibration` of another process, or its JSON text;
        with it the first run is predicted too, and schedule is "auto".
    region: mask of Eq. 4, (H, W), (F, H, W) or (B, F, H, W) in [0, 1], or a callable `step -> mask`.
    scheduler, num_steps: for a bare UNet, what tells how many steps a run has.
    compile: True, or options of `torch.compile` such as {"mode": "reduce-overhead"}: compile the UNet's calls until
        `remove`, full steps into one graph and predicted ones into another. A UNet that is compiled already stays so.
    on_mismatch: for a `config` that was tuned under another scheduler, number of steps or architecture: "map" puts its
        full steps at the same shares of the run and warns, "error" refuses (the number of steps at the first call).

    A second `apply` replaces the first. ValueError or TypeError, before anything is changed, for a setting that cannot
    be and for a model that cannot be cached.
    """
    if not isinstance(compile, bool | Mapping):
        raise TypeError(f"compile must be a bool or options of torch.compile, got {compile!r}")
    if isinstance(calibration, str):
        calibration = Calibration.from_json(calibration)
    given = {name: value for name, value in locals().items() if name in _SETTINGS & _given}
    if calibration is not None and (config is None or config.schedule != "auto"):
        given.setdefault("schedule", "auto")
    pipe, component, unet = find_unet(target)
    config = _settings(config, preset, given)
    pipeline = PipelineInfo(pipe, scheduler, num_steps, component)
    _check_pipeline(pipeline, config)
    check = TuningCheck(config.provenance, on_mismatch)
    check.check_model(unet)
    check.steps(config.steps or (), pipeline.num_steps, pipeline.scheduler)
    config = _known_model(config, unet)
    ops.resolve_backend(config.backend, _device(unet))
    options: Any = {} if compile is True else compile
    if options is not False:
        torch.compile(lambda: None, **options)  # raises for options that are none
    plan = cut_plan.plan(unet, config.cut, depth=config.depth, resnets=config.resnets)
    mask = RegionMask(region)
    _replace(unet, pipeline)
    controller = Controller(unet, plan, config, pipeline, check)
    controller.region = mask
    controller.session = session = Session(controller)
    if options is not False:
        controller.attachment.compile(options)
    return session


def remove(target: Any) -> None:
    """Take the cache off a pipeline or a UNet, exactly; does nothing where there is none."""
    found = _module_of(target, _COMPONENTS)
    controller = None if found is None else attached_controller(unwrapped(found[1]))
    if controller is not None:
        controller.session.remove()


def find_unet(target: Any) -> tuple[Any, str, nn.Module]:
    """The pipeline (None for a bare UNet), the name of its component, and the UNet. ValueError if there is none."""
    found = _module_of(target, (*_COMPONENTS, *_OTHER_DENOISERS))
    if found is None:
        raise ValueError(_why_no_unet(target))
    component, model = found
    unet = unwrapped(model)
    why = cut_plan.why_not_a_unet(unet)
    if why is not None:
        raise ValueError(why)
    return None if model is target else target, component, unet


def _module_of(target: Any, names: Sequence[str]) -> tuple[str, nn.Module] | None:
    """The first of these components that a pipeline has as a module, with its name; a bare UNet is its own "unet"."""
    if isinstance(target, nn.Module):
        return "unet", target
    components = ((name, getattr(target, name, None)) for name in names)
    return next(((name, module) for name, module in components if isinstance(module, nn.Module)), None)


def _why_no_unet(target: Any) -> str:
    """The sentence for a target that holds no module where a UNet stands."""
    name, unet = type(target).__name__, getattr(target, "unet", None)
    if unet is not None:
        kind = type(unet).__name__
        return f"{name} runs its UNet as {kind}, outside PyTorch; load the same model as a PyTorch pipeline to cache it"
    return f"expected a diffusers pipeline with a UNet, or a UNet, got {name}"


def _settings(config: CacheConfig | None, preset: str | None, settings: dict[str, Any]) -> CacheConfig:
    if config is None:
        return CacheConfig.from_preset(preset, **settings)
    if not isinstance(config, CacheConfig):
        raise TypeError(f"config must be a CacheConfig, got {type(config).__name__}; name single settings, as in N=3")
    if preset is not None:
        raise ValueError("pass config or preset, not both: a config leaves nothing out for a preset to fill")
    return config.replaced(**settings)


def _check_pipeline(pipeline: PipelineInfo, config: CacheConfig) -> None:
    if pipeline.num_steps is not None and (isinstance(pipeline.num_steps, bool) or pipeline.num_steps < 1):
        raise ValueError(f"num_steps must be >= 1, got {pipeline.num_steps}")
    if pipeline.scheduler is None and pipeline.num_steps is None and config.needs_num_steps:
        raise ValueError(
            "the number of steps is unknown: pass scheduler= or num_steps=, or use schedule='uniform' with an absolute "
            "boundary"
        )
    if config.axis == "logsnr" and pipeline.scheduler is None:
        raise ValueError("axis='logsnr' needs a scheduler with alphas_cumprod or sigmas; pass scheduler=")
    if type(pipeline.pipe).__name__.startswith("LEditsPP"):
        raise ValueError(
            f"{type(pipeline.pipe).__name__} stores attention maps at every step and inverts with fresh noise at each, "
            "so no step can be predicted; run it uncached"
        )
    refusal = pipeline.few_step_model(pipeline.num_steps)
    if refusal is not None:
        raise ValueError(refusal)


def _known_model(config: CacheConfig, unet: nn.Module) -> CacheConfig:
    """The settings without a calibration that is of another model, or of other weights of it, which a warning tells."""
    recorded = None if config.calibration is None else config.calibration.model
    if recorded is None:
        return config
    here = model_identity(unet)
    # Weights that are streamed in call by call (on "meta" between) cannot be read.
    unread = any(parameter.device.type == "meta" for parameter in unet.parameters())
    differing = {name for name in ("class", "config", "weights") if recorded[name] != here[name]}
    if not differing or (unread and differing == {"weights"}):
        return config
    how = "with other weights or in another precision" if differing == {"weights"} else "of another configuration"
    warnings.warn(
        f"ticache: the calibration is of a {recorded['class']} {how} and is not used; the next run is recorded anew",
        UserWarning,
        stacklevel=3,
    )
    return config.replaced(calibration=None)


def _replace(unet: nn.Module, pipeline: PipelineInfo) -> None:
    """Take off the cache that is there."""
    controller = attached_controller(unet)
    if controller is None:
        return
    before, now = controller.pipeline.pipe, pipeline.pipe
    if before is not None and now is not None and before is not now:
        logger.warning("this UNet is shared: the cache that another pipeline had put on it is replaced for both")
    controller.session._end("replaced by a later apply")


def _device(unet: nn.Module) -> Any:
    parameter = next(unet.parameters(), None)
    return "cpu" if parameter is None or parameter.device.type == "meta" else parameter.device

"""What is hung on modules, and taken off again. Instances only: no class is touched, no forward copied.

A module that may be skipped gets a callable in place of its bound `forward`; the UNet itself gets PyTorch's own forward
hooks, which survive accelerate's offloading and run outside a compiled graph. diffusers' HookRegistry wraps `forward`
in closures that a deep copy shares with the original, so it does not serve here; the two can be stacked in any order.
"""

from __future__ import annotations

import copy
import inspect
import operator
import types
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ticache.cut_plan import CutModule
from ticache.forward_context import CurrentForward
from ticache.inputs import NOISE_ARGUMENTS, Arguments, KnownLatents, PipelineInfo
from ticache.processors import attentions_in, keeps_state


class ForwardOverride:
    """Stands in a module's instance dictionary as `forward`, and calls what stood there before."""

    def __init__(self, module: nn.Module):
        self.module = module
        self._found = module.__dict__.get("forward")
        self.original = module.forward
        self.active = True
        module.forward = self  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def __wrapped__(self) -> Any:
        """The forward underneath, so that `inspect.signature` sees its parameters."""
        return self.original

    def lost(self) -> bool:
        """Was `forward` reset by others (accelerate does, when it takes its hooks off)?"""
        current = self.module.__dict__.get("forward")
        return current is None or isinstance(current, types.MethodType)

    def detach(self) -> None:
        """Put back what was found; where others have wrapped this since, stay as a mere pass-through."""
        self.active = False
        if self.module.__dict__.get("forward") is not self:
            return
        if self._found is None:
            del self.module.forward
        else:
            self.module.forward = self._found


class ModuleHook(ForwardOverride):
    """Runs a module of the cut at a full step; at a predicted step puts out its placeholder or its prediction."""

    def __init__(self, cut: CutModule, controller: Any):
        super().__init__(cut.module)
        self.cut = cut
        self.current: CurrentForward = controller.current
        self.controller = controller

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        context = self.current.get() if self.active else None
        if context is None:
            return self.original(*args, **kwargs)
        if not context.full:
            output = context.output_of(self.cut, args, kwargs)
            return self.original(*args, **kwargs) if output is None else output
        output = self.original(*args, **kwargs)
        context.seen(self.cut, output, args, kwargs)
        return output


class ControlNetHook(ForwardOverride):
    """Hands the calls of a ControlNet to what may leave them out."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]):
        super().__init__(module)
        self.run = run
        self.arguments = Arguments(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        return self.run(self, args, kwargs)


class NextCall:
    """Stands in an object's instance dictionary in place of a method until its next call, and tells who listens of it.

    It is hung for one call and gone when that is made, so that an object which is copied, pickled, or has its
    `__dict__` saved and written back (StableDiffusionPanorama does) between calls is as it would be without. What
    listens is held weakly, so that nothing of a cache is reached from here. A copy made while it hangs has the plain
    method.
    """

    def __init__(self, owner: Any, name: str):
        self._owner = owner
        self._name = name
        self._before = {key: value for key, value in vars(owner).items() if key == name}
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self.__wrapped__ = getattr(owner, name)
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listeners = list(self._listeners)
        self._put_back()
        output = self.__wrapped__(*args, **kwargs)
        for listener in listeners:
            listener.called(args, kwargs, output)
        return output

    def add(self, listener: Listener) -> None:
        self._listeners.add(listener)

    def discard(self, listener: Listener) -> None:
        """Tell this one no more; where nobody else listens, put back what stood here."""
        self._listeners.discard(listener)
        if not self._listeners:
            self._put_back()

    def _put_back(self) -> None:
        self._listeners.clear()
        if vars(self._owner).get(self._name) is self:
            del vars(self._owner)[self._name]
            vars(self._owner).update(self._before)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before:
            return copy.deepcopy(self._before[self._name], memo)
        return _method_of_class(memo.get(id(self._owner), self._owner), self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._before:
            return _itself, (self._before[self._name],)
        return _method_of_class, (self._owner, self._name)


def _method_of_class(owner: Any, name: str) -> Any:
    return getattr(type(owner), name).__get__(owner)


def _itself(value: Any) -> Any:
    return value


class Listener:
    """Hears of the next call of one method, of one object at a time, and tells `called` of it."""

    def __init__(self, method: str, called: Callable[[tuple[Any, ...], dict[str, Any], Any], None]):
        self.method = method
        self.called = called  # (args, kwargs, output)
        self.owner: Any = None
        self.next: NextCall | None = None

    def listen(self, owner: Any) -> None:
        """Hear of this object's next call, and of no other object's."""
        if self.owner is not owner:
            self.detach()
            usable = hasattr(owner, "__dict__") and callable(getattr(owner, self.method, None))
            self.owner = owner if usable else None
        if self.owner is None:
            return
        found = vars(owner).get(self.method)
        if self.next is None or found is not self.next:
            self.next = found if isinstance(found, NextCall) else NextCall(owner, self.method)
        self.next.add(self)

    def detach(self) -> None:
        """Hear of nothing any more."""
        if self.next is not None:
            self.next.discard(self)
        self.next = self.owner = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins listening at its own first call."""
        return vars(self) | {"next": None, "owner": None}


class Attachment:
    """Everything that hangs on one UNet (and its ControlNet, scheduler and pipeline) for one cache.

    conflict: why no call can be predicted now. noise_asked: of the scheduler's last step, by `eta` or `s_churn`, beyond
    what it adds by itself.
    """

    def __init__(self, controller: Any):
        self.conflict: str | None = None
        self.noise_asked: float | None = None
        self.modules: list[ModuleHook] = []
        self.controlnet: ControlNetHook | None = None
        self.step = Listener("step", self._stepped)
        self.scaling = Listener("scale_model_input", self._scaled)
        self.begin = Listener("progress_bar", self._begun)
        self._controller = controller
        self._unet: nn.Module = controller.unet
        self._pipeline: PipelineInfo = controller.pipeline
        self._latents: KnownLatents = controller.latents
        self._cuts: Sequence[CutModule] = controller.plan.modules
        self._owners = [_owner(self._unet, cut.name) for cut in self._cuts]
        self._processors: list[Any] = []  # at the last call
        self._stateful: str | None = None
        self._goes_on = False  # does a run, behind the last call?
        self._has_warned = False
        self._compiled: Any = None
        self._handles = [
            self._unet.register_forward_pre_hook(controller.before, with_kwargs=True),
            self._unet.register_forward_hook(controller.after, with_kwargs=True, always_call=True),
        ]
        self._hang_modules()
        self._hook_controlnet(self._pipeline.controlnet)
        self.begin.listen(self._pipeline.pipe)

    def follow(self) -> bool:
        """Look what has changed since the last call. -> False where modules were exchanged, and the hooks hung anew."""
        controlnet = self._pipeline.controlnet
        hooked = self.controlnet
        if controlnet is not (None if hooked is None else hooked.module) or (hooked is not None and hooked.lost()):
            self._hook_controlnet(controlnet)
        if self.scaling.next is not None:
            self.scaling.detach()  # called or not, it hangs only from a step to the next call
        # Modules may have been exchanged, or forwards reset.
        hung = zip(self._owners, self.modules, strict=True)
        intact = all(getattr(owner, name, None) is hook.module and not hook.lost() for (owner, name), hook in hung)
        if not intact:
            self._hang_modules()
        wrapped = self._unet.__dict__.get("forward")
        if getattr(wrapped, "__module__", "").partition(".")[0] == "DeepCache":
            self.conflict = "DeepCache is enabled on this UNet too, and stores the output of every module"
            return intact
        processors = [attention.processor for attention in self._attentions]
        if len(processors) != len(self._processors) or not all(map(operator.is_, processors, self._processors)):
            kept = next((processor for processor in processors if keeps_state(processor)), None)
            self._processors, self._stateful = processors, None if kept is None else type(kept).__name__
        self.conflict = self._stateful and f"{self._stateful} keeps what it sees of the attention at every call"
        return intact

    def listen(self, *, more: bool) -> None:
        """Hear of the pipeline's next run and the scheduler's next step. more: does a run go on?"""
        self.begin.listen(self._pipeline.pipe)
        self._goes_on = more
        self.step.listen(self._pipeline.scheduler)

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compile the UNet's calls in place, unless they are already."""
        if getattr(self._unet, "_compiled_call_impl", None) is None:
            self._unet.compile(**options)
            self._compiled = self._unet.__dict__.get("_compiled_call_impl")

    def detach(self) -> None:
        """Take everything off."""
        # PyTorch compiles a module in place but has no way back; another's compilation stays.
        if self._compiled is not None and self._unet.__dict__.get("_compiled_call_impl") is self._compiled:
            del self._unet.__dict__["_compiled_call_impl"]
        for handle in self._handles:
            handle.remove()
        for hook in (*self.modules, *([self.controlnet] if self.controlnet else [])):
            hook.detach()
        for listener in (self.step, self.scaling, self.begin):
            listener.detach()

    def _hang_modules(self) -> None:
        """Hang hooks on the modules of the cut that stand there now, and on no others."""
        for hook in self.modules:
            hook.detach()
        for cut in self._cuts:
            cut.module = self._unet.get_submodule(cut.name)
        self.modules = [ModuleHook(cut, self._controller) for cut in self._cuts]
        self._attentions = attentions_in(cut.module for cut in self._cuts)

    def _hook_controlnet(self, controlnet: nn.Module | None) -> None:
        """Hook this ControlNet (or several in one), and no other."""
        if self.controlnet is not None:
            self.controlnet.detach()
        run = self._controller.run_controlnet
        self.controlnet = None if controlnet is None else ControlNetHook(controlnet, run)

    def _stepped(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The scheduler has made a step: was noise asked for, and what did it give back?"""
        scheduler, given = self.step.owner, kwargs
        if len(args) > 3:  # behind the model's output, the timestep and the sample
            names = inspect.signature(scheduler.step).parameters
            given = {**dict(zip(names, args, strict=False)), **kwargs}
        self.noise_asked = next((given[name] for name in NOISE_ARGUMENTS if given.get(name)), None)
        self._latents.add(output[0] if isinstance(output, tuple) else getattr(output, "prev_sample", None))
        if self._goes_on:
            code = getattr(getattr(scheduler, "scale_model_input", None), "__code__", None)
            if code is None or code.co_names:  # most schedulers hand on the very sample that they are given
                self.scaling.listen(scheduler)

    def _scaled(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The scheduler has scaled a sample, which may be that of its last step."""
        sample = args[0] if args else kwargs.get("sample")
        if isinstance(sample, Tensor) and sample in self._latents:
            self._latents.add(output)

    def _begun(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A run of the pipeline begins: say once if that is of a UNet without this cache."""
        note = None if self._has_warned else self._pipeline.exchange_note(self._unet)
        if note is not None:
            self._has_warned = True
            warnings.warn(note, UserWarning, stacklevel=4)


def attached_controller(unet: nn.Module) -> Any:
    """The controller of the cache that hangs on `unet`, None if there is none."""
    names = ("forward", "_old_forward")  # accelerate's hooks keep what they wrap under the latter
    found = (module.__dict__.get(name) for module in unet.modules() for name in names)
    return next((hook.controller for hook in found if isinstance(hook, ModuleHook) and hook.active), None)


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, child = name.rpartition(".")
    return root.get_submodule(parent), child

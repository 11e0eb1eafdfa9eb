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
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ticache.cuts import Unit
from ticache.ghosts import ghost
from ticache.host import NOISE_ARGUMENTS, Arguments
from ticache.processors import attentions_in, keeps_state

if TYPE_CHECKING:
    from ticache.state import State


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


class UnitHook(ForwardOverride):
    """Runs a unit of the cut at a full step; at a predicted step puts out its ghost or its prediction."""

    def __init__(self, unit: Unit, state: State):
        super().__init__(unit.module)
        self.unit = unit
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.state.call if self.active else None
        if call is None:
            return self.original(*args, **kwargs)
        if call.full:
            output = self.original(*args, **kwargs)
            call.seen(self.unit, output, args, kwargs)
            return output
        if self.unit.role in ("branch", "residual"):
            whole = self.unit.role == "residual"
            predicted = call.predicted_residual(self.unit, args, kwargs) if whole else call.predicted_branch(self.unit)
            return self.original(*args, **kwargs) if predicted is None else predicted
        if call.site == self.unit.index:
            return call.predicted_site()
        spec = call.shapes.get(self.unit.index)
        if spec is None or call.passed:
            return self.original(*args, **kwargs)
        return ghost(spec, call.writable, call.poison)


class ControlNetHook(ForwardOverride):
    """Leaves a ControlNet out at a step that will be predicted."""

    def __init__(self, module: nn.Module, state: State):
        super().__init__(module)
        self.state = state
        self.arguments = Arguments(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        return self.state.run_controlnet(self, args, kwargs)


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
    """Listens to the next call of one method, of one object at a time."""

    method: str

    def __init__(self, state: State):
        self.state = state
        self._next: NextCall | None = None
        self._owner: Any = None

    def listen(self, owner: Any) -> None:
        """Hear of this object's next call, and of no other object's."""
        if self._owner is not owner:
            self.detach()
            usable = hasattr(owner, "__dict__") and callable(getattr(owner, self.method, None))
            self._owner = owner if usable else None
        if self._owner is None:
            return
        found = vars(owner).get(self.method)
        if self._next is None or found is not self._next:
            self._next = found if isinstance(found, NextCall) else NextCall(owner, self.method)
        self._next.add(self)

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        raise NotImplementedError

    def detach(self) -> None:
        """Hear of nothing any more."""
        if self._next is not None:
            self._next.discard(self)
        self._next = self._owner = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins listening at its own first call."""
        return {"state": self.state, "_next": None, "_owner": None}


class SchedulerHook(Listener):
    """Learns from each `step` of the scheduler whether noise was asked for, and what it gave back."""

    method = "step"

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = kwargs
        if len(args) > 3:  # behind the model's output, the timestep and the sample
            names = inspect.signature(getattr(self._owner, self.method)).parameters
            given = {**dict(zip(names, args, strict=False)), **kwargs}
        noise = next((given[name] for name in NOISE_ARGUMENTS if given.get(name)), None)
        sample = output[0] if isinstance(output, tuple) else getattr(output, "prev_sample", None)
        self.state.stepped(self._owner, noise, sample)


class ScalingHook(Listener):
    """Learns what the scheduler's `scale_model_input` made of the sample that its last step gave."""

    method = "scale_model_input"

    def listen(self, owner: Any) -> None:
        """Hear of this scheduler's next scaling, if it does any: most hand on the very sample that they are given."""
        code = getattr(getattr(owner, self.method, None), "__code__", None)
        if code is None or code.co_names:
            super().listen(owner)

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.state.scaled(args[0] if args else kwargs.get("sample"), output)


class PipelineHook(Listener):
    """Learns from a pipeline's progress bar that a run begins, also one of a UNet that this cache does not sit on."""

    method = "progress_bar"

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.state.warn_if_exchanged()


class Attachment:
    """Everything that hangs on one UNet (and its ControlNet and scheduler) for one cache."""

    def __init__(self, unet: nn.Module, units: Iterable[Unit], state: State):
        self.unet = unet
        self.units = [UnitHook(unit, state) for unit in units]
        self.controlnet: ControlNetHook | None = None
        self.scheduler = SchedulerHook(state)
        self.scaling = ScalingHook(state)
        self.pipeline = PipelineHook(state)
        self._compiled: Any = None
        self._owners = [_owner(unet, hook.unit.name) for hook in self.units]
        self._attentions = attentions_in(hook.module for hook in self.units)
        self._seen: list[Any] = []  # their processors at the last call
        self._stateful: str | None = None
        before: Any = state.before  # pyright: ignore[reportAttributeAccessIssue]
        after: Any = state.after  # pyright: ignore[reportAttributeAccessIssue]
        self._handles = [
            unet.register_forward_pre_hook(before, with_kwargs=True),
            unet.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def intact(self) -> bool:
        """Do all hooks still stand where they were hung? Modules may have been exchanged, forwards reset."""
        return all(
            getattr(owner, name, None) is hook.module and not hook.lost()
            for (owner, name), hook in zip(self._owners, self.units, strict=True)
        )

    def rehang(self, state: State) -> None:
        """Hang the hooks anew on the modules that stand there now."""
        for hook in self.units:
            hook.detach()
            hook.unit.module = self.unet.get_submodule(hook.unit.name)
        self.units = [UnitHook(hook.unit, state) for hook in self.units]
        self._attentions = attentions_in(hook.module for hook in self.units)

    def conflict(self) -> str | None:
        """Why no call can be predicted now: what else sits on the UNet, and needs every module to run."""
        wrapped = self.unet.__dict__.get("forward")
        if getattr(wrapped, "__module__", "").partition(".")[0] == "DeepCache":
            return "DeepCache is enabled on this UNet too, and stores the output of every module"
        processors = [attention.processor for attention in self._attentions]
        if len(processors) != len(self._seen) or not all(map(operator.is_, processors, self._seen)):
            kept = next((processor for processor in processors if keeps_state(processor)), None)
            self._seen, self._stateful = processors, None if kept is None else type(kept).__name__
        return f"{self._stateful} keeps what it sees of the attention at every call" if self._stateful else None

    def listen(self, pipe: Any, scheduler: Any) -> None:
        """Hear of this pipeline's next run and this scheduler's next step."""
        self.pipeline.listen(pipe)
        self.scheduler.listen(scheduler)

    def hook_controlnet(self, controlnet: nn.Module | None, state: State) -> None:
        """Hook this ControlNet (or several in one), and no other."""
        if self.controlnet is not None and self.controlnet.module is controlnet and not self.controlnet.lost():
            return
        if self.controlnet is not None:
            self.controlnet.detach()
        self.controlnet = ControlNetHook(controlnet, state) if controlnet is not None else None

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compile the UNet's calls in place, unless they are already."""
        if getattr(self.unet, "_compiled_call_impl", None) is None:
            self.unet.compile(**options)
            self._compiled = self.unet.__dict__.get("_compiled_call_impl")

    def detach(self) -> None:
        """Take everything off."""
        # PyTorch compiles a module in place but has no way back; another's compilation stays.
        if self._compiled is not None and self.unet.__dict__.get("_compiled_call_impl") is self._compiled:
            del self.unet.__dict__["_compiled_call_impl"]
        for handle in self._handles:
            handle.remove()
        for hook in (*self.units, *([self.controlnet] if self.controlnet else [])):
            hook.detach()
        self.scheduler.detach()
        self.scaling.detach()
        self.pipeline.detach()


def attached_state(unet: nn.Module) -> State | None:
    """The state of the cache that hangs on `unet`, None if there is none."""
    for hook in _hooks(unet):
        return hook.state
    return None


def _hooks(unet: nn.Module) -> Iterator[UnitHook]:
    for module in unet.modules():
        for name in ("forward", "_old_forward"):
            found = module.__dict__.get(name)
            if isinstance(found, UnitHook) and found.active:
                yield found


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, child = name.rpartition(".")
    return root.get_submodule(parent), child

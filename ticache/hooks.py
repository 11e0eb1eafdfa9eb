"""What is hung on modules, and taken off again. Instances only: no class is touched, no forward copied.

A module that may be skipped gets a callable in place of its bound `forward`; the UNet itself gets PyTorch's own forward
hooks, which survive accelerate's offloading and run outside a compiled graph. diffusers' HookRegistry wraps `forward`
in closures that a deep copy shares with the original, so it does not serve here; the two can be stacked in any order.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ticache.cuts import Unit
from ticache.ghosts import ghost
from ticache.host import Arguments

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


class SchedulerWatch:
    """Stands in a scheduler's instance dictionary as `step`: tells that a step was taken, and its `eta`."""

    def __init__(self, scheduler: Any, state: State):
        self.scheduler = scheduler
        self.state = state
        self.original = scheduler.step
        scheduler.step = self

    @property
    def __wrapped__(self) -> Any:
        return self.original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.state.stepped(kwargs.get("eta"))
        return self.original(*args, **kwargs)

    def detach(self) -> None:
        if self.scheduler.__dict__.get("step") is self:
            del self.scheduler.step


class Attachment:
    """Everything that hangs on one UNet (and its ControlNet and scheduler) for one cache."""

    def __init__(self, unet: nn.Module, units: Iterable[Unit], state: State):
        self.unet = unet
        self.units = [UnitHook(unit, state) for unit in units]
        self.controlnet: ControlNetHook | None = None
        self.watch: SchedulerWatch | None = None
        self._compiled: Any = None
        self._owners = [_owner(unet, hook.unit.name) for hook in self.units]
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

    def watch_scheduler(self, scheduler: Any, state: State) -> None:
        """Watch this scheduler, and no other."""
        if self.watch is not None and self.watch.scheduler is scheduler:
            return
        if self.watch is not None:
            self.watch.detach()
        usable = scheduler is not None and hasattr(scheduler, "step") and hasattr(scheduler, "__dict__")
        self.watch = SchedulerWatch(scheduler, state) if usable else None

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
        if self.watch is not None:
            self.watch.detach()


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

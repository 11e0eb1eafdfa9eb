"""What a ControlNet adds, where it is left out, and whose it is."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import torch
from ticache_models import make_unet

from ticache.controlnet import DOWN, MID, Control
from ticache.inputs import Arguments


def test_two_threads_do_not_take_each_others_placeholders() -> None:
    """A call of one thread has left the ControlNet out; a full call of another must keep its own residuals."""
    control = Control()
    hook: Any = SimpleNamespace(original=lambda: ([torch.ones(1)], torch.ones(1)))
    inputs = Arguments(make_unet("unconditional")).bind((), {"sample": torch.zeros(1)})
    given = {DOWN: [torch.full((1,), 2.0)], MID: torch.full((1,), 2.0)}
    control.run(hook, (), {}, inputs, skip=False)
    control.run(hook, (), {}, inputs, skip=True)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(control.restored(given)))
    thread.start()
    thread.join()
    assert found[0] is given
    mine = control.run(hook, (), {}, inputs, skip=True)
    restored = control.restored({DOWN: mine[0], MID: mine[1]})
    assert restored[MID].item() == 1

"""What a ControlNet adds, where it is left out, and whose it is."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import torch

from ticache.residuals import DOWN, MID, Control


def test_two_threads_do_not_take_each_others_placeholders() -> None:
    """A call of one thread has left the ControlNet out; a full call of another must keep its own residuals."""
    control = Control()
    hook: Any = SimpleNamespace(original=lambda: ([torch.ones(1)], torch.ones(1)))
    bound = {"sample": torch.zeros(1)}
    given = {DOWN: [torch.full((1,), 2.0)], MID: torch.full((1,), 2.0)}
    control.run(hook, (), {}, bound, skip=False)
    control.run(hook, (), {}, bound, skip=True)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(control.restored(given)))
    thread.start()
    thread.join()
    assert found[0] == (given, False)
    mine = control.run(hook, (), {}, bound, skip=True)
    restored, changed = control.restored({DOWN: mine[0], MID: mine[1]})
    assert changed
    assert restored[MID].item() == 1

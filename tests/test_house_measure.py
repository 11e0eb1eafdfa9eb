"""The count of files and functions that a piece of work runs through."""

from __future__ import annotations

import threading

import torch
from house_measure import measure

from ticache import CacheConfig
from ticache.schedule import late_steps_of


def test_counts_functions_of_our_own_files() -> None:
    measured = measure(lambda: (late_steps_of(3, 9, 1.5), torch.zeros(1)), "ticache")
    assert ("ticache/schedule.py", "late_steps_of") in measured.functions
    assert measured.files == {"ticache/schedule.py"}
    assert not measured.arrows


def test_counts_other_threads_and_calls_between_files() -> None:
    thread = threading.Thread(target=lambda: CacheConfig(N=2))
    measured = measure(lambda: (thread.start(), thread.join()), "ticache")
    assert "ticache/config.py" in measured.files
    assert all(a != b for a, b in measured.arrows)

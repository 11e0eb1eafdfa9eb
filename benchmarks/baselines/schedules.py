"""Which steps others compute in full: rules of public code, as lists for `ticache.apply(schedule=...)`."""

from __future__ import annotations

SPECTRUM_WARMUP, SPECTRUM_WINDOW, SPECTRUM_GROWTH = 5, 2.0, 0.75


def spectrum_steps(
    num_steps: int,
    *,
    warmup: int = SPECTRUM_WARMUP,
    window: float = SPECTRUM_WINDOW,
    growth: float = SPECTRUM_GROWTH,
) -> list[int]:
    """Spectrum's growing windows: after a warm-up one step in floor(window) is full, and each one widens the window.

    The defaults are those of its SDXL script; 11 of 30 steps are full.
    """
    full, cached = list(range(min(warmup, num_steps))), 0
    for step in range(warmup, num_steps):
        if (cached + 1) % int(window) == 0:
            full.append(step)
            window += growth
            cached = 0
        else:
            cached += 1
    return full


def taylorseer_steps(num_steps: int, *, interval: int, warmup: int = 3) -> list[int]:
    """diffusers' `TaylorSeerCacheConfig(cache_interval, disable_cache_before_step)`: 10 of 30 steps for interval 4."""
    return [step for step in range(num_steps) if step < warmup or (step - warmup - 1) % interval == 0]

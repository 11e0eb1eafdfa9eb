"""What is kept of rendered heads serves the very heads that it was made from, and never half of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_parts import small_parts

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.training import heads
from fye_pipeline.world import World

SIZE = 64


def world(seed: int) -> World:
    return World(CanonicalFace.load(), size=SIZE, seed=seed)


def test_latents_are_of_the_heads_that_are_there_now(tmp_path: Path) -> None:
    vae, found = small_parts()["vae"].eval(), []
    for seed in (0, 1, 1):
        data = heads.render_heads(world(seed), tmp_path, 1)
        found.append(np.array(heads.encode_heads(vae, data, tmp_path)))
    assert np.abs(found[1] - found[0]).max() > 0.01, "another world's heads"
    assert np.array_equal(found[2], found[1])


def test_heads_that_were_half_overwritten_are_rendered_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.array(heads.render_heads(world(0), tmp_path, 1).frames)

    def broken_off(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(heads, "run_parts", broken_off)
        with pytest.raises(KeyboardInterrupt):
            heads.render_heads(world(1), tmp_path, 1)
    again = heads.render_heads(world(0), tmp_path, 1).frames
    assert np.abs(again.astype(int) - whole).mean() < 0.1, "zeros, or another world's heads"

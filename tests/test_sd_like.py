"""The small Stable-Diffusion-like model stands by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import sd_like

AUTOENCODER = "vae/diffusion_pytorch_model.safetensors"


def test_the_model_needs_nothing_of_the_portrait_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """New weights of the portrait model, its autoencoder too, leave the figures of this one as they are."""
    folder = tmp_path / "sd_like"
    shutil.copytree(sd_like.ASSETS, folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = sd_like.load_pipeline(folder)
    saved = load_file(folder / AUTOENCODER)
    assert all(torch.equal(value.half(), saved[name].half()) for name, value in pipe.vae.state_dict().items())


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sd_like"
    shutil.copytree(sd_like.ASSETS, folder)
    saved = load_file(folder / AUTOENCODER)
    name = next(iter(saved))
    save_file({**saved, name: saved[name] + 1}, folder / AUTOENCODER, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="another autoencoder"):
        sd_like.load_pipeline(folder)

"""What runs start from: AnimateDiff's motion modules under both key names, and UNets that get more inputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from training_parts import save_small, small_parts

from fye_pipeline.errors import UserError
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.training import start
from fye_pipeline.training.config import build_config
from fye_pipeline.training.start import load_motion, load_parts, widened

OFFICIAL = (  # ours -> AnimateDiff's, within a motion module
    ("norm1", "norms.0"),
    ("norm2", "norms.1"),
    ("norm3", "ff_norm"),
    ("pos_embed.pe", "attention_blocks.0.pos_encoder.pe"),
    ("attn1", "attention_blocks.0"),
    ("attn2", "attention_blocks.1"),
)


def adapter(seed: int = 5) -> dict[str, torch.Tensor]:
    """Motion weights under diffusers' names, as a MotionAdapter's file has them."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: value for key, value in small_parts()["unet"].state_dict().items() if ".motion_modules." in key}
    return {
        key: value if key.endswith(".pe") else torch.randn(value.shape, generator=generator)
        for key, value in state.items()
    }


def original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same under the names that AnimateDiff's own code gives them."""
    renamed = {}
    for key, value in state.items():
        place, inner = re.fullmatch(r"(.*\.motion_modules\.\d+)\.(.*)", key).groups()  # type: ignore[union-attr]
        for ours, theirs in OFFICIAL:
            inner = re.sub(rf"(?<![a-z]){re.escape(ours)}\b", theirs, inner)
        renamed[f"{place}.temporal_transformer.{inner}"] = value
        if inner.endswith("attention_blocks.0.pos_encoder.pe"):
            second = inner.replace("attention_blocks.0", "attention_blocks.1")
            renamed[f"{place}.temporal_transformer.{second}"] = value.clone()
    return renamed


def motion_of(unet: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in unet.state_dict().items() if ".motion_modules." in key}


def test_every_layout_of_a_checkpoint_gives_the_same_modules(tmp_path: Path) -> None:
    state = adapter()
    names = original(state)
    assert any("ff_norm" in key for key in names)
    assert not names.keys() & state.keys()
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / "diffusion_pytorch_model.safetensors")
    save_file(names, tmp_path / "mm.safetensors")
    torch.save(names, tmp_path / "mm.ckpt")
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": v for key, v in names.items()}}, tmp_path / "wrapped.ckpt")
    rest = {key: value for key, value in small_parts()["unet"].state_dict().items() if ".motion_modules." not in key}
    for name in ("adapter", "mm.safetensors", "mm.ckpt", "wrapped.ckpt"):
        unet = small_parts()["unet"]
        said = load_motion(unet, tmp_path / name)
        assert said.startswith("motion modules: ")
        loaded = motion_of(unet)
        assert all(torch.equal(loaded[key], value) for key, value in state.items()), name
        assert all(torch.equal(unet.state_dict()[key], value) for key, value in rest.items())


def test_a_checkpoint_without_a_middle_block_and_of_fewer_frames_fits(tmp_path: Path) -> None:
    state = {key: value for key, value in adapter().items() if not key.startswith("mid_block.")}
    short = {key: value[:, :24].clone() if key.endswith(".pe") else value for key, value in state.items()}
    save_file(short, tmp_path / "v1.safetensors")
    unet = small_parts()["unet"]
    before = motion_of(unet)
    said = load_motion(unet, tmp_path / "v1.safetensors")
    assert "the middle block's is not in the file" in said
    for key, value in motion_of(unet).items():
        expected = before[key] if key.startswith("mid_block.") or key.endswith(".pe") else state[key]
        assert torch.equal(value, expected), key


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    unet = small_parts()["unet"]
    with pytest.raises(UserError, match="does not exist; name an AnimateDiff checkpoint"):
        load_motion(unet, tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="holds no MotionAdapter: expected diffusion_pytorch_model"):
        load_motion(unet, tmp_path)
    state = adapter()
    key = next(key for key in state if key.endswith("attn1.to_q.weight"))
    faults: dict[str, dict[str, torch.Tensor]] = {
        f"1 missing, such as {re.escape(key)}": {k: v for k, v in state.items() if k != key},
        f"1 of another shape, such as {re.escape(key)}": {**state, key: torch.zeros(3, 3)},
        "1 unexpected, such as down_blocks.9": {**state, "down_blocks.9.motion_modules.0.x": torch.zeros(1)},
        "is not the table of sines": {k: v + 0.5 if k.endswith(".pe") else v for k, v in state.items()},
        "holds no motion modules": {"conv_in.weight": torch.zeros(1)},
    }
    before = motion_of(unet)
    for number, (message, weights) in enumerate(faults.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(weights, path)
        with pytest.raises(UserError, match=message):
            load_motion(unet, path)
    assert all(torch.equal(value, before[key]) for key, value in motion_of(unet).items())


def test_more_inputs_change_nothing_until_they_are_trained() -> None:
    unet = small_parts(in_channels=4, reference_hint=False)["unet"]
    wide = widened(unet, 9, reference_hint=False)
    assert wide.config["in_channels"] == 9
    sample, tokens = torch.randn(1, 9, 2, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        assert torch.allclose(wide(sample, 3, tokens).sample, unet(sample[:, :4], 3, tokens).sample, atol=1e-6)
    assert widened(wide, 4, reference_hint=False) is wide


def test_a_model_without_the_bent_portrait_learns_it_from_nothing(tmp_path: Path) -> None:
    """The new columns begin at zero, also where the model comes from a folder that does not name the hint."""
    nine = small_parts(in_channels=9)["unet"]
    nine.save_pretrained(tmp_path)
    read = type(nine).from_pretrained(tmp_path)
    wide = widened(read, 14, reference_hint=True, bent_hint=True)
    assert wide.config["bent_hint"]
    sample, tokens = torch.randn(1, 14, 2, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        assert torch.allclose(wide(sample, 3, tokens).sample, nine(sample[:, :9], 3, tokens).sample, atol=1e-6)


def test_a_run_starts_from_a_folder_and_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_small(tmp_path / "model", in_channels=4, reference_hint=False)
    save_file(original(adapter()), tmp_path / "mm.safetensors")
    options = {"reference_hint": False, "motion_init": str(tmp_path / "mm.safetensors")}
    said: list[str] = []
    parts = load_parts(build_config({"init": str(folder), **options}), said.append)
    assert parts["unet"].config["in_channels"] == 14
    assert parts["unet"].config["bent_hint"]
    assert all(torch.equal(motion_of(parts["unet"])[key], value) for key, value in adapter().items())
    assert said == [f"motion modules: 7 of 7 from {tmp_path / 'mm.safetensors'}"]
    read: list[Path] = []
    monkeypatch.setattr(start.FollowYourEmojiPipeline, "from_pretrained", lambda place: read.append(place) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_parts(build_config({"init": "shipped"}))
    assert read == [SHIPPED_MODEL]


def test_a_run_adds_the_latents_that_its_start_lacks(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "model", in_channels=4, reference_hint=False)
    parts = load_parts(build_config({"init": str(folder), "latent_channels": 6}))
    assert parts["vae"].config["latent_channels"] == parts["unet"].config["out_channels"] == 6
    assert parts["unet"].config["in_channels"] == 20
    for channels in (4, None):
        same = load_parts(build_config({"init": str(folder), "latent_channels": channels}))
        assert same["unet"].config["in_channels"] == 14


def test_latents_are_never_taken_away() -> None:
    with pytest.raises(UserError, match=r"latent_channels must be >= 8, as .*tiny has so many, got 4"):
        load_parts(build_config({"init": "shipped", "latent_channels": 4}))


@pytest.mark.parametrize(("latents", "needed"), [(None, 26), (4, 14)])
def test_too_few_inputs_for_a_hint_are_refused(latents: int | None, needed: int) -> None:
    options = {"latent_channels": latents}
    message = f"bent_hint needs in_channels >= {needed}, got 9; or bent_hint = false"
    with pytest.raises(UserError, match=message):
        load_parts(build_config({"in_channels": 9, **options}))
    assert load_parts(build_config(options))["unet"].config["in_channels"] == needed

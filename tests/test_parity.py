"""Parity with the official code on fixtures that its own classes made: every size comes from the fixture's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.models.layouts import FILES, read_weights
from fye_pipeline.models.official import build_networks, load_networks, rename

GUIDER, APPEARANCE, UNET, PIPELINE = 1e-6, 2e-5, 1e-5, 5e-5  # max |difference|, CPU, float32
GUIDANCE = 3.5


class Fixture:
    """The fixture folder: its tensors, its configuration, and the networks loaded from its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.io = load_file(folder / "small_io.safetensors")
        self.config = json.loads((folder / "small_config.json").read_text())
        self.runs = json.loads((folder / "parity.json").read_text())
        self.networks: dict[str, Any] = load_networks(folder, self.config, prefix="small_")

    def token_maps(self) -> list[Tensor]:
        """The appearance net's exports in execution order, [2, T, C]: zero tokens, then the tokens."""
        names = [name for part in ("down", "mid", "up") for name in self._numbered(f"B.{part}")]
        return [self.io[name] for name in names]

    def _numbered(self, prefix: str) -> list[str]:
        names = [name for name in self.io if name == prefix or name.startswith(f"{prefix}.")]
        return sorted(names, key=lambda name: int(name.rsplit(".", 1)[1]) if name != prefix else 0)

    def prompts(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.io["B.tokens"]), self.io["B.tokens"]])

    def pipeline(self) -> FollowYourEmojiPipeline:
        """The whole pipeline; its image encoder is never asked, as the fixture gives the image tokens."""
        vae = AutoencoderKL(**self.config["vae"])
        vae.load_state_dict(load_file(self.folder / "small_vae.safetensors"))
        vision = CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=32
        )
        pipe = FollowYourEmojiPipeline(
            vae=vae.eval(),
            image_encoder=CLIPVisionModelWithProjection(vision).eval(),
            feature_extractor=CLIPImageProcessorPil(),
            scheduler=DDIMScheduler(**self.config["scheduler"]),
            **self.networks,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


@pytest.fixture(scope="module")
def fixture(parity_dir: Path) -> Fixture:
    return Fixture(parity_dir)


def difference(ours: Tensor, official: Tensor, record_property: Any, name: str) -> float:
    """Largest absolute difference; recorded in the test report under `name`, and printed."""
    assert ours.shape == official.shape
    largest = (ours - official).abs().max().item()
    record_property(name, largest)
    print(f"{name}: max |difference| {largest:.2e}")
    return largest


@torch.no_grad()
def test_landmark_encoder(fixture: Fixture, record_property: Any) -> None:
    ours = fixture.networks["landmark_encoder"](fixture.io["A.in"])
    assert difference(ours, fixture.io["A.out"], record_property, "landmark encoder") <= GUIDER


@torch.no_grad()
@pytest.mark.parametrize("rows", ["both", "conditional"])
def test_appearance_net(fixture: Fixture, record_property: Any, rows: str) -> None:
    prompts = fixture.prompts() if rows == "both" else fixture.io["B.tokens"]
    latents = fixture.io["B.latent"].expand(len(prompts), -1, -1, -1)
    ours = fixture.networks["appearance_net"](latents, prompts)
    official = fixture.token_maps()
    assert len(ours) == len(official)
    for index, (own, other) in enumerate(zip(ours, official, strict=True)):
        assert difference(own, other[-len(prompts) :], record_property, f"appearance {rows} {index}") <= APPEARANCE


@torch.no_grad()
@pytest.mark.parametrize("case", ["C", "D", "E"])
def test_unet(fixture: Fixture, record_property: Any, case: str) -> None:
    """C: guidance's batch, the unconditional row without the reference. D: conditional row alone. E: no reference."""
    io = fixture.io
    prompts = fixture.prompts() if case == "C" else io["B.tokens"]
    ours = fixture.networks["unet"](
        io["C.sample"].expand(len(prompts), -1, -1, -1, -1),
        io["C.timestep"],
        prompts,
        reference_tokens=None if case == "E" else [tokens[1:] for tokens in fixture.token_maps()],
        landmark_features=io["A.out"],
    ).sample
    assert difference(ours, io[f"{case}.out"], record_property, f"unet {case}") <= UNET


@pytest.mark.parametrize(("case", "run"), [("F", "clip"), ("G", "uniform"), ("H", "tiles")])
def test_pipeline(fixture: Fixture, record_property: Any, case: str, run: str) -> None:
    io, how = fixture.io, fixture.runs[run]
    options: dict[str, Any]
    if run == "uniform":
        options = {"long": "uniform", "window": how["window"]}
    elif run == "tiles":
        options = {"long": "tiles", "window": how["length"], "overlap": how["overlap"]}
    else:
        options = {"window": how["frames"]}
    pipe = fixture.pipeline()
    common = {
        "image": io["F.ref_image_u8"].numpy(),
        "landmarks": io["F.lmk_images_u8"][: how["frames"]].numpy(),
        "num_inference_steps": how["steps"],
        "guidance_scale": GUIDANCE,
        "latents": io[f"{case}.init_latents"],
        "image_tokens": io["B.tokens"],
    }
    latents = pipe(**common, **options, output_type="latent").frames
    assert difference(latents, io[f"{case}.final_latents"], record_property, f"{run} latents") <= PIPELINE
    video = torch.cat(list(pipe.decode_frames(latents))).transpose(0, 1)[None]
    assert difference(video, io[f"{case}.video"], record_property, f"{run} video") <= PIPELINE


def test_reference_latent(fixture: Fixture, record_property: Any) -> None:
    ours = fixture.pipeline().encode_reference(Image.fromarray(fixture.io["F.ref_image_u8"].numpy())).detach()
    assert difference(ours, fixture.io["F.ref_latents"], record_property, "reference latent") <= PIPELINE


def test_scheduler(fixture: Fixture) -> None:
    scheduler = DDIMScheduler(**fixture.config["scheduler"])
    scheduler.set_timesteps(len(fixture.io["S.timesteps30"]))
    assert torch.equal(scheduler.timesteps, fixture.io["S.timesteps30"])
    # a product of a thousand factors: makes of CPU differ by 4e-7 in the order in which they multiply
    torch.testing.assert_close(scheduler.alphas_cumprod, fixture.io["S.alphas_cumprod"], rtol=1e-5, atol=0)


def test_both_file_formats_hold_the_same_weights(fixture: Fixture) -> None:
    """The .pth file is read without running code, and is as good as its conversion."""
    pickled = fixture.folder / "small_lmk_guider.pth"
    if not pickled.exists():
        pytest.skip(f"{pickled} is absent")
    state = rename(read_weights(pickled))
    own = fixture.networks["landmark_encoder"].state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)


@pytest.mark.parametrize("part", FILES)
def test_full_size_keys(parity_dir: Path, part: str) -> None:
    """Names and shapes of the published networks, without a byte of weights."""
    listed = parity_dir / f"full_keys_{FILES[part]}.json"
    if not listed.exists():
        pytest.skip(f"{listed} is absent")
    with torch.device("meta"):
        network = build_networks()[part]
        official = {key: torch.empty(shape) for key, shape in json.loads(listed.read_text()).items()}
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert own == {key: tuple(value.shape) for key, value in rename(official).items()}

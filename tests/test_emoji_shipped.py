"""The tiny EmojiDiff model that ships: small, whole, loaded by plain diffusers, and right about its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from emoji_parts import Finder, head, load_adapters
from fye_command import Fye
from PIL import Image

from fye_pipeline import EmojiPipeline
from fye_pipeline.emoji.base import WORDS
from fye_pipeline.emoji.evaluate import ROWS, row_files
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.emoji.people import BACKGROUNDS, Meta, caption, render_people, sample_look
from fye_pipeline.emoji.pipeline import SHIPPED
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.storage.files import digest_of_file
from fye_pipeline.world import World

PORTRAIT, ASKED = head(11), head(12)


@pytest.fixture(scope="module")
def pipe() -> EmojiPipeline:
    return EmojiPipeline.from_pretrained(find_faces=Finder(PORTRAIT, ASKED))


def test_it_is_small_with_what_the_table_needs() -> None:
    table = Path(__file__).parents[1] / "benchmarks" / "assets" / "emoji"
    files = [path for folder in (SHIPPED, table) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6


def test_every_row_of_the_table_has_its_weights() -> None:
    table = Path(__file__).parents[1] / "benchmarks" / "assets" / "emoji"
    assert set(row_files(SHIPPED, table)) == set(ROWS)


def test_it_tells_no_path_of_the_machine_that_made_it() -> None:
    for path in SHIPPED.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_it_names_its_own_base() -> None:
    weights = SHIPPED / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    assert EmojiSettings.read(SHIPPED).base == digest_of_file(weights)[:16]


def test_it_knows_the_words_of_its_captions(pipe: EmojiPipeline) -> None:
    wanted = ["a", "an", "the", "of", "with", "portrait", "photo", "painting", "ink", "man", "woman", "glasses"]
    rng = np.random.default_rng(0)
    told = " ".join(caption(sample_look(rng), bool(n % 2), rng) for n in range(200))
    for word in {*wanted, *BACKGROUNDS, *told.replace(",", " ").split()}:
        assert pipe._known_words(word) == word
    assert set(wanted) <= set(WORDS)


def test_plain_diffusers_loads_it(pipe: EmojiPipeline) -> None:
    stock = load_adapters(StableDiffusionPipeline.from_pretrained(SHIPPED / "base", dtype=torch.float32), SHIPPED)
    call: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    embeds = pipe.prepare_embeds(identity=PORTRAIT[0], expression=ASKED[0])
    noise = torch.Generator().manual_seed(3)
    theirs = stock("a photo of a man", ip_adapter_image_embeds=embeds, generator=noise, **call).images
    ours = pipe("a photo of a man", identity=PORTRAIT[0], expression=ASKED[0], seed=3, **call).images
    assert np.abs(theirs - np.asarray(ours)).max() <= 1e-6


def test_its_networks_know_people_and_expressions_that_they_never_saw(pipe: EmojiPipeline, tmp_path: Path) -> None:
    """Over ten held-out people: one's own portrait is nearer than others', and closed eyes are seen."""
    people = render_people(World(CanonicalFace.load(), size=128), tmp_path, Meta(0, "held", 450_000, 10))
    pictures, landmarks = np.array(people.pictures), np.array(people.landmarks)
    portraits, others = (
        torch.cat([pipe.model.identity_of(crop_of(pipe, pictures[p, k], landmarks[p, k])) for p in range(10)])
        for k in (0, 1)
    )
    cosines = others @ portraits.T
    own = float(cosines.diag().mean())
    assert own > float((cosines.sum() - cosines.diag().sum()) / 90) + 0.15
    flat = torch.from_numpy(pictures.reshape(-1, 128, 128, 3)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        points, shapes = pipe.model.landmark_net(flat)
    assert np.abs(points.numpy() - landmarks.reshape(-1, 478, 3)[..., :2]).mean() * 128 < 1.0
    blinks = people.scores.reshape(-1, 52)[:, 9]
    assert np.corrcoef(shapes[:, 9].numpy(), blinks)[0, 1] > 0.7


def crop_of(pipe: EmojiPipeline, picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    from fye_pipeline.emoji.expression_crop import face_crop

    return face_crop(picture, landmarks, pipe.model.identity_net.size)


def test_the_command_uses_it(fye: Fye, portraits_dir: Path, face_landmarker_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "made.png"
    code, _, err = fye(
        *("emoji", "generate", "--prompt", "an ink painting of a man", "--identity", portraits_dir / "s6.jpg"),
        *("--expression", portraits_dir / "s7.jpg", "--output", output, "--steps", "2"),
        *("--face-landmarker", face_landmarker_path),
    )
    assert code == 0, err
    assert Image.open(output).size == (128, 128)

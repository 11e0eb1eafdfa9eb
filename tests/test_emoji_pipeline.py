"""`EmojiPipeline`: what goes in and out, what is refused in a sentence, and the cache."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from emoji_parts import Finder, head, load_adapters, save_model, small_model
from PIL import Image

from fye_pipeline import EmojiPipeline
from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.emoji.sampling import sample_batch
from fye_pipeline.errors import UserError

PORTRAIT, WINK, SMILE = head(0), head(1), head(2)
FIND = Finder(PORTRAIT, WINK, SMILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(small_model(), tmp_path_factory.mktemp("emoji"))


@pytest.fixture
def pipe(folder: Path) -> EmojiPipeline:
    return EmojiPipeline.from_pretrained(folder, find_faces=FIND)


def made(pipe: EmojiPipeline, **more: Any) -> np.ndarray:
    call: dict[str, Any] = {"identity": PORTRAIT[0], "expression": WINK[0], "num_inference_steps": 3, "seed": 5}
    prompt = more.pop("prompt", "a photo of a man")
    return np.asarray(pipe(prompt, **{**call, "output_type": "np", **more}).images)


def test_a_picture_of_the_models_size(pipe: EmojiPipeline) -> None:
    result = pipe("a photo of a man", identity=PORTRAIT[0], expression=WINK[0], num_inference_steps=1)
    assert [image.size for image in result.images] == [(128, 128)]


def test_each_input_changes_the_picture(pipe: EmojiPipeline) -> None:
    plain = made(pipe)
    assert np.array_equal(plain, made(pipe))
    for change in (
        {"identity": SMILE[0]},
        {"expression": SMILE[0]},
        {"prompt": "a cartoon of a woman"},
        {"seed": 6},
        {"expression_scale": 0.5},
        {"identity_scale": 0.5},
    ):
        assert np.abs(made(pipe, **change) - plain).max() > 1e-3, change


def test_scale_zero_is_without_the_branch(pipe: EmojiPipeline) -> None:
    plain = made(pipe, expression_scale=0.0)
    assert np.array_equal(plain, made(pipe, expression_scale=0.0, expression=SMILE[0]))
    adapter.set_scales(pipe.pipe.unet, [1.0, 1.0])
    assert not np.array_equal(plain, made(pipe))


def test_several_expressions_share_person_and_noise(pipe: EmojiPipeline) -> None:
    sheet = made(pipe, expression=[WINK[0], SMILE[0]])
    assert sheet.shape[0] == 2
    alone = made(pipe, expression=SMILE[0])
    assert np.array_equal(sheet[1], alone[0])
    assert not np.array_equal(sheet[0], alone[0])
    assert made(pipe, expression=[WINK[0], SMILE[0]], num_images_per_prompt=2).shape[0] == 4
    with pytest.raises(ValueError, match="prompt must be one, or one for each of 2 expressions"):
        pipe(["a", "b", "c"], identity=PORTRAIT[0], expression=[WINK[0], SMILE[0]])


def test_words_that_are_not_known_are_told_and_left_out(pipe: EmojiPipeline, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fye")
    known = made(pipe, prompt="a photo of a man")
    assert not caplog.messages
    assert np.array_equal(made(pipe, prompt="a cyberpunk photo of a man, trending"), known)
    assert caplog.messages == ["words that this small model does not know are left out: cyberpunk, trending."]
    made(pipe, prompt="a cyberpunk man", expression=[WINK[0], SMILE[0]], num_inference_steps=1)
    assert len(caplog.messages) == 2, "it is said for each expression"


def test_prepared_embeds_serve_an_untouched_pipeline(pipe: EmojiPipeline, folder: Path) -> None:
    stock = load_adapters(StableDiffusionPipeline.from_pretrained(folder / "base"), folder)
    embeds = pipe.prepare_embeds(identity=PORTRAIT[0], expression=WINK[0])
    assert [tuple(each.shape) for each in embeds] == [(2, 1, 32), (2, 1, 65, 128)]
    result: Any = stock(
        "a photo of a man",
        ip_adapter_image_embeds=embeds,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    )
    assert np.abs(result.images - made(pipe)).max() <= 1e-6


def test_pictures_come_as_files_pil_or_arrays(pipe: EmojiPipeline, tmp_path: Path) -> None:
    Image.fromarray(PORTRAIT[0]).save(tmp_path / "portrait.png")
    wanted = pipe.encode_identity(PORTRAIT[0])
    for given in (tmp_path / "portrait.png", str(tmp_path / "portrait.png"), Image.fromarray(PORTRAIT[0])):
        assert torch.equal(pipe.encode_identity(given), wanted)
    with pytest.raises(ValueError, match=r"must be a file, a PIL picture or uint8 \[H, W, 3\]"):
        pipe.encode_identity(PORTRAIT[0] / 255)
    with pytest.raises(UserError, match=r"gone\.png"):
        pipe.encode_identity(tmp_path / "gone.png")


def test_no_face_and_two_faces_are_refused(pipe: EmojiPipeline, folder: Path) -> None:
    with pytest.raises(UserError, match="the expression picture shows no face"):
        made(pipe, expression=np.zeros((128, 128, 3), np.uint8))
    both = EmojiPipeline.from_pretrained(folder, find_faces=lambda picture: [PORTRAIT[1], WINK[1]])
    with pytest.raises(UserError, match="the identity picture shows 2 faces; cut out the one that is meant"):
        made(both)


def test_a_small_picture_is_searched_enlarged(folder: Path) -> None:
    sizes = []

    def find(picture: np.ndarray) -> list[Any]:
        sizes.append(picture.shape[:2])
        return [PORTRAIT[1]] if picture.shape[0] >= 512 else []

    EmojiPipeline.from_pretrained(folder, find_faces=find).encode_identity(PORTRAIT[0])
    assert sizes == [(128, 128), (512, 512)]


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("emoji.json", "emoji.json is missing"),
        ("base/model_index.json", "model_index.json is missing"),
        ("identity.safetensors", "identity.safetensors is missing"),
        ("expression.safetensors", "expression.safetensors is missing"),
        ("identity_net.safetensors", "identity_net.safetensors is missing"),
        ("expression_encoder/config.json", "expression_encoder is missing"),
    ],
)
def test_a_part_that_is_missing_is_named(folder: Path, tmp_path: Path, part: str, sentence: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / part).unlink()
    with pytest.raises(UserError, match=sentence):
        EmojiPipeline.from_pretrained(tmp_path / "model")


def test_settings_that_cannot_be_read_are_told(folder: Path, tmp_path: Path) -> None:
    for text in ("{", '{"scale": 3}'):
        (tmp_path / "emoji.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"emoji.json is not readable .*; fetch or export the model again"):
            EmojiSettings.read(tmp_path)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    settings = EmojiSettings(layers=("mid_block.attentions.0",), expression_scale=0.8, licence="research only")
    settings.write(tmp_path)
    assert EmojiSettings.read(tmp_path) == settings


def test_the_licence_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folder, tmp_path / "model")
    settings = json.loads((folder / "emoji.json").read_text(encoding="utf-8")) | {"licence": "research only"}
    (tmp_path / "model" / "emoji.json").write_text(json.dumps(settings), encoding="utf-8")
    caplog.set_level(logging.INFO, "fye")
    EmojiPipeline.from_pretrained(tmp_path / "model")
    assert "research only" in caplog.text


def test_the_expression_acts_in_the_layers_that_the_folder_names(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    EmojiSettings(crop=64, layers=("mid_block.attentions.0",)).write(tmp_path / "model")
    pipe = EmojiPipeline.from_pretrained(tmp_path / "model", find_faces=FIND)
    made(pipe, num_inference_steps=1)
    for name, attention in adapter.cross_attentions(pipe.pipe.unet).items():
        assert attention.processor.scale == [1.0, float(name.startswith("mid_block"))]


def test_a_batch_gives_each_row_its_own_person_and_expression(pipe: EmojiPipeline) -> None:
    model = pipe.model
    identities = torch.cat([pipe.encode_identity(each[0]) for each in (PORTRAIT, SMILE)])
    states = torch.cat([pipe.encode_expression(each[0]) for each in (WINK, PORTRAIT)])
    model.scale(1.0, 1.0)

    def run(rows: slice, guidance: float) -> np.ndarray:
        prompts = ["a photo of a man", "a cartoon of a woman"][rows]
        return sample_batch(model, prompts, identities[rows], states[rows], [5, 6][rows], steps=3, guidance=guidance)

    for guidance in (1.0, 2.0):
        both = run(slice(0, 2), guidance)
        for row in range(2):
            alone = run(slice(row, row + 1), guidance)[0]
            assert np.abs(both[row].astype(int) - alone).max() <= 1  # another batch size sums in another order
    theirs = made(pipe, num_inference_steps=3)[0]
    assert np.abs(both[0] / 255 - theirs).max() < 0.01, "the loop is not the pipeline's"


# The cache


def full_calls(pipe: EmojiPipeline) -> int:
    assert pipe.session is not None
    return pipe.session.report().to_dict()["full_calls"]


def test_the_cache_predicts_and_comes_off_exactly(pipe: EmojiPipeline) -> None:
    plain = made(pipe, num_inference_steps=12)
    pipe.enable_cache(N=3)
    cached = made(pipe, num_inference_steps=12)
    assert full_calls(pipe) == 4
    assert not np.array_equal(cached, plain)
    pipe.disable_cache()
    assert pipe.session is None
    assert np.array_equal(made(pipe, num_inference_steps=12), plain)


def test_a_scale_changed_in_mid_run_forces_a_full_step(pipe: EmojiPipeline) -> None:
    pipe.enable_cache(N=6)

    def fade(inner: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            pipe.model.scale(1.0, 0.0)
        return tensors

    made(pipe, num_inference_steps=18)
    before = full_calls(pipe)
    assert before == 3
    made(pipe, num_inference_steps=18, callback_on_step_end=fade)
    assert full_calls(pipe) > before
    assert "an adapter or its scale changed" in str(pipe.session.report() if pipe.session else "")

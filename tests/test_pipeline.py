"""FollowYourEmojiPipeline: folders, outputs, schedulers, callbacks, windows, and what is computed only once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from PIL import Image
from training_parts import small_parts

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.errors import UserError
from fye_pipeline.media.image import letterbox
from fye_pipeline.models.official import load_strictly, widen_conv_in
from fye_pipeline.pipeline import PARTS

FRAMES, SIDE, STEPS = 5, 32, 2


def build(**changes: Any) -> FollowYourEmojiPipeline:
    """A pipeline of a small model whose landmark encoder and motion modules do something."""
    parts = small_parts(**({"in_channels": 4, "reference_hint": False} | changes))
    torch.manual_seed(5)
    torch.nn.init.normal_(parts["landmark_encoder"].conv_out.weight, std=1.0)
    for name, parameter in parts["unet"].named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pipe = FollowYourEmojiPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe() -> FollowYourEmojiPipeline:
    return build()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def portrait() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))


def pictures(frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)


def run(pipe: FollowYourEmojiPipeline, **options: Any) -> Any:
    """Frames of a short run, by default as latents."""
    given = {
        "image": portrait(),
        "landmarks": pictures(),
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipe(**(given | options)).frames


def test_a_folder_holds_everything(pipe: FollowYourEmojiPipeline, saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "FollowYourEmojiPipeline"
    assert index["unet"] == ["fye_pipeline", "DenoisingUNet"]
    assert index["appearance_net"] == ["fye_pipeline", "AppearanceNet"]
    assert index["landmark_encoder"] == ["fye_pipeline", "LandmarkEncoder"]
    loaded = FollowYourEmojiPipeline.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    # loaded weights are mapped from the file, and the alignment of memory moves the last bits of a product
    torch.testing.assert_close(run(loaded), run(pipe), atol=1e-5, rtol=1e-5)


def test_half_precision_folders_load_in_full_unless_told(folder: Path) -> None:
    FollowYourEmojiPipeline.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    full = FollowYourEmojiPipeline.from_pretrained(folder)
    half = FollowYourEmojiPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    models = [part for part in PARTS if part not in ("feature_extractor", "scheduler")]
    assert {full.components[part].dtype for part in models} == {torch.float32}
    assert {half.components[part].dtype for part in models} == {torch.bfloat16}
    half.set_progress_bar_config(disable=True)
    frames = run(half, output_type="pt")
    assert frames.dtype == torch.float32
    assert frames.isfinite().all()


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_one_sentence(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"lacks the part {part}; "):
        FollowYourEmojiPipeline.from_pretrained(folder)


def test_all_missing_parts_are_named_at_once(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    del index["scheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as caught:
        FollowYourEmojiPipeline.from_pretrained(folder)
    for words in ("the part vae", "*.safetensors", "in unet", "scheduler in model_index.json"):
        assert words in str(caught.value)


def test_a_part_may_be_passed_instead(folder: Path, pipe: FollowYourEmojiPipeline) -> None:
    shutil.rmtree(folder / "vae")
    assert FollowYourEmojiPipeline.from_pretrained(folder, vae=pipe.vae).vae is pipe.vae


def test_what_is_no_model_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model_index\.json"):
        FollowYourEmojiPipeline.from_pretrained(tmp_path / "nowhere")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        FollowYourEmojiPipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        FollowYourEmojiPipeline.from_pretrained(folder)


def test_outputs_agree(pipe: FollowYourEmojiPipeline) -> None:
    latents = run(pipe)
    tensor, array, pil = (run(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert latents.shape == (1, 4, FRAMES, SIDE // 8, SIDE // 8)
    assert tensor.shape == (1, FRAMES, 3, SIDE, SIDE)
    assert array.shape == (1, FRAMES, SIDE, SIDE, 3)
    assert (len(pil), len(pil[0]), pil[0][0].size) == (1, FRAMES, (SIDE, SIDE))
    assert np.array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert np.abs(np.asarray(pil[0][2]) / 255 - array[0, 2]).max() < 0.51 / 255 + 1e-6
    assert 0 <= array.min() < array.max() <= 1
    decoded = torch.cat(list(pipe.decode_frames(latents, chunk=2)))
    torch.testing.assert_close(decoded, tensor[0], atol=1e-5, rtol=0)
    assert torch.equal(
        pipe(portrait(), pictures(), num_inference_steps=1, latents=latents, return_dict=False, output_type="latent")[
            0
        ],
        run(pipe, num_inference_steps=1, latents=latents),
    )


def test_the_seed_decides(pipe: FollowYourEmojiPipeline) -> None:
    assert torch.equal(run(pipe), run(pipe))
    assert not torch.equal(run(pipe), run(pipe, generator=torch.Generator().manual_seed(1)))


def test_every_input_matters(pipe: FollowYourEmojiPipeline) -> None:
    plain = run(pipe)
    for change in (
        {"image": np.zeros((80, 80, 3), np.uint8)},
        {"landmarks": pictures()[::-1]},
        {"guidance_scale": 1.0},
        {"image_tokens": torch.randn(1, 5, 16)},
    ):
        assert (run(pipe, **change) - plain).abs().max() > 1e-3, list(change)


@pytest.mark.parametrize(
    "options", [{}, {"long": "uniform", "window": 2}, {"long": "tiles", "window": 3, "overlap": 1}]
)
def test_what_does_not_change_is_computed_once(pipe: FollowYourEmojiPipeline, options: dict[str, Any]) -> None:
    rows: dict[str, list[int]] = {name: [] for name in ("image_encoder", "appearance_net", "landmark_encoder", "unet")}
    for name, calls in rows.items():
        pipe.components[name].register_forward_pre_hook(
            lambda module, args, kwargs, calls=calls: calls.append(len(args[0])), with_kwargs=True
        )
    run(pipe, **options)
    windows = {None: 1, "uniform": 3, "tiles": 2}[options.get("long")]
    assert rows == {
        "image_encoder": [1],
        "appearance_net": [1],  # the conditional row alone
        "landmark_encoder": [1],
        "unet": [2] * STEPS * windows,
    }


def test_without_guidance_one_row_goes_through_the_unet(pipe: FollowYourEmojiPipeline) -> None:
    rows = []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    run(pipe, guidance_scale=1.0)
    assert rows == [1] * STEPS


@pytest.mark.parametrize("long", ["uniform", "tiles"])
def test_a_window_as_long_as_the_video_is_one_clip(pipe: FollowYourEmojiPipeline, long: str) -> None:
    assert torch.equal(run(pipe, long=long, window=FRAMES), run(pipe))
    assert not torch.equal(run(pipe, long=long, window=FRAMES - 1, overlap=2), run(pipe))


# diffusers 0.42 turns tensors into arrays in a way that numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDPMScheduler])
@pytest.mark.parametrize("long", ["uniform", "tiles"])
def test_other_schedulers_run(pipe: FollowYourEmojiPipeline, kind: type[SchedulerMixin], long: str) -> None:
    pipe.scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")  # pyright: ignore[reportCallIssue]
    assert run(pipe, long=long, window=3, overlap=1).isfinite().all()


def test_progressive_unet_with_nothing_given_is_the_plain_one(pipe: FollowYourEmojiPipeline) -> None:
    nine = build(in_channels=9)
    for part in ("vae", "image_encoder", "appearance_net", "landmark_encoder"):
        setattr(nine, part, pipe.components[part])
    state = pipe.unet.state_dict()
    load_strictly(nine.unet, state | {"conv_in.weight": widen_conv_in(state["conv_in.weight"], 9)}, "unet")
    torch.testing.assert_close(run(nine), run(pipe), atol=1e-4, rtol=0)


def test_callback_sees_and_changes_every_step(pipe: FollowYourEmojiPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def after(pipe: FollowYourEmojiPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    assert not run(pipe, callback_on_step_end=after).any()
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()))


def test_interrupt_leaves_the_rest_out(pipe: FollowYourEmojiPipeline) -> None:
    calls = Counter()
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.update(["unet"]))

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return {}

    assert run(pipe, callback_on_step_end=after, output_type="np").shape == (1, FRAMES, SIDE, SIDE, 3)
    assert pipe.interrupt
    assert calls["unet"] == 1
    run(pipe)
    assert calls["unet"] == 1 + STEPS  # a new run starts afresh


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"landmarks": pictures().astype(np.float32)}, r"landmarks must be uint8 .* got float32"),
        ({"landmarks": pictures()[0]}, "landmarks must be uint8"),
        ({"landmarks": pictures()[:0]}, "landmarks must be uint8"),
        ({"landmarks": pictures()[:, :28]}, "sides that 8 divides, got 32 x 28"),
        ({"image": np.zeros((8, 8), np.uint8)}, "image must be a PIL picture"),
        ({"image": "portrait.png"}, "got str"),
        ({"region": np.zeros((FRAMES - 1, 8, 8))}, r"region must be \[5, height, width\]"),
        ({"latents": torch.zeros(1, 4, 2, 8, 8)}, r"latents must be \[1, 4, 5, 4, 4\]"),
        ({"output_type": "gif"}, "output_type must be one of"),
        ({"long": "halves"}, r"long must be one of \('uniform', 'tiles', 'progressive'\), got 'halves'"),
        ({"long": "progressive"}, "progressive .* 9 input channels, .* this one has 4: use uniform or tiles"),
        ({"window": 33}, "1 to 32 frames, got 33"),
    ],
)
def test_bad_inputs_are_refused(pipe: FollowYourEmojiPipeline, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(pipe, **options)


def test_letterbox_keeps_the_aspect_and_pads_with_black() -> None:
    white = Image.new("RGB", (100, 50), "white")
    boxed = np.asarray(letterbox(white, 64, 64))
    assert boxed.shape == (64, 64, 3)
    assert boxed[16:48].min() == 255
    assert not boxed[:16].any()
    assert not boxed[48:].any()
    square = portrait().resize((64, 64))
    assert np.array_equal(np.asarray(letterbox(square, 64, 64)), np.asarray(square))
    assert np.asarray(letterbox(Image.new("L", (1, 5000), 255), 64, 64)).max() == 255


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, fye_pipeline; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        import fye_pipeline

        _ = fye_pipeline.Nothing


def test_the_noise_scale_is_saved_with_the_model_and_multiplies_drawn_noise_only(folder: Path) -> None:
    plain = FollowYourEmojiPipeline.from_pretrained(folder)
    assert plain.noise_scale == 1
    scaled = FollowYourEmojiPipeline(**plain.components, noise_scale=0.25)
    scaled.save_pretrained(folder)
    loaded = FollowYourEmojiPipeline.from_pretrained(folder)
    assert loaded.noise_scale == 0.25
    loaded.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, FRAMES, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(loaded), run(loaded, latents=0.25 * noise))
    assert not torch.equal(run(loaded), run(loaded, latents=noise))


def test_a_noise_scale_out_of_range_is_refused(pipe: FollowYourEmojiPipeline) -> None:
    with pytest.raises(UserError, match=r"noise_scale must be from 0 to 1, got 1\.5"):
        FollowYourEmojiPipeline(**pipe.components, noise_scale=1.5)

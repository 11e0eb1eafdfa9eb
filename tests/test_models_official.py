"""Loading the published weights: key names, strictness, safety; on random weights of small sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from official_files import NAMES, official_names
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.errors import UserError
from fye_pipeline.models.layouts import find_weights, is_published_folder, looks_like, read_weights
from fye_pipeline.models.official import SCHEDULER, build_networks, load_networks, load_strictly, rename, widen_conv_in
from fye_pipeline.models.tiny import build_tiny

CONFIG: dict[str, Any] = {
    "base": {
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
        "norm_num_groups": 4,
    },
    "motion": {"motion_module_kwargs": {"num_attention_heads": 2, "temporal_position_encoding_max_len": 8}},
    "guider": {"conditioning_embedding_channels": 8, "block_out_channels": [4, 8]},
    "image_dim": {"appearance_net": 6, "unet": 6},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files with official names, the first as .pth."""
    torch.manual_seed(0)
    for part, network in build_networks(CONFIG).items():
        state = official_names(network.state_dict())
        if part == "landmark_encoder":
            torch.save(state, tmp_path / f"{NAMES[part]}.pth")
        else:
            save_file(state, tmp_path / f"{NAMES[part]}.safetensors")
    return tmp_path


def change(folder: Path, name: str, edit: Any) -> None:
    state = read_weights(folder / f"{name}.safetensors")
    edit(state)
    save_file(state, folder / f"{name}.safetensors")


def test_networks_load_whole(folder: Path) -> None:
    torch.manual_seed(0)
    for part, network in build_networks(CONFIG).items():
        loaded = load_networks(folder, {**CONFIG, "image_dim": {}})[part]
        assert not loaded.training
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), f"{part}.{key}"


def test_dtype_and_frozen_parameters_survive_loading(folder: Path) -> None:
    networks = load_networks(folder, CONFIG, dtype=torch.bfloat16)
    assert {network.dtype for network in networks.values()} == {torch.bfloat16}
    frozen = [name for name, parameter in networks["appearance_net"].named_parameters() if not parameter.requires_grad]
    assert frozen == ["up_blocks.1.attentions.1.proj_out.weight", "up_blocks.1.attentions.1.proj_out.bias"]


def test_progressive_unet_gets_zero_columns(folder: Path) -> None:
    four = load_networks(folder, CONFIG)["unet"].state_dict()["conv_in.weight"]
    nine = load_networks(folder, CONFIG, in_channels=9)["unet"]
    assert nine.config["in_channels"] == 9
    weight = nine.state_dict()["conv_in.weight"]
    assert torch.equal(weight[:, :4], four)
    assert weight.shape[1] == 9
    assert not weight[:, 4:].any()
    assert widen_conv_in(four, 4) is four


def test_missing_unexpected_and_misshapen_keys_are_all_listed(folder: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        del state["conv_in.bias"]
        del state["conv_out.bias"]
        state["conv_extra.weight"] = torch.zeros(1)
        state["clip_fc.bias"] = torch.zeros(3)

    change(folder, "unet", edit)
    with pytest.raises(UserError) as caught:
        load_networks(folder, CONFIG)
    message = str(caught.value)
    assert "unet.safetensors does not fit DenoisingUNet" in message
    assert "2 missing keys: conv_in.bias, conv_out.bias" in message
    assert "1 unexpected keys: conv_extra.weight" in message
    assert "clip_fc.bias (expected [8], got [3])" in message


def community(folder: Path, *, split: bool, prefix: str = "") -> Path:
    """The networks of `folder` as the community's fp16 files; split: motion modules and clip_fc in their own files."""
    target = folder / "community"
    target.mkdir()
    for part, name in NAMES.items():
        path = find_weights(folder, name)
        state = {key: value.half() for key, value in read_weights(path).items()}
        if split and part == "unet":
            motion = {key: state.pop(key) for key in list(state) if ".motion_modules." in key}
            save_file(motion, target / "fye_motion_module-fp16.safetensors")
        if split and part != "landmark_encoder":
            linear = {key.removeprefix("clip_fc."): state.pop(key) for key in list(state) if key.startswith("clip_fc.")}
            save_file(linear, target / "FYE_clip_fc.safetensors")
        half = "" if part == "landmark_encoder" else "-fp16"
        save_file({prefix + key: value for key, value in state.items()}, target / f"FYE_{name}{half}.safetensors")
    return target


@pytest.mark.parametrize(("split", "prefix"), [(False, ""), (True, ""), (True, "module.unet.")])
def test_row_37_the_communitys_files_load_strictly_beside_the_official_ones(
    folder: Path, split: bool, prefix: str
) -> None:
    files = community(folder, split=split, prefix=prefix)
    assert is_published_folder(files)
    official, loaded = load_networks(folder, CONFIG), load_networks(files, CONFIG, dtype=torch.float16)
    for part, network in official.items():
        other = loaded[part].state_dict()
        for key, value in network.state_dict().items():
            if split and part == "appearance_net" and key.startswith("clip_fc."):
                continue  # the one linear layer of that layout is the UNet's
            assert torch.equal(other[key], value.half()), f"{part}.{key}"
    if split:
        linear = official["unet"].state_dict()["clip_fc.weight"].half()
        assert torch.equal(loaded["appearance_net"].state_dict()["clip_fc.weight"], linear)


def test_row_37_a_wrong_file_is_counted_and_called_by_its_name(folder: Path) -> None:
    def sentence(files: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_networks(files, CONFIG)
        return str(caught.value)

    files = community(folder, split=True)
    (files / "fye_motion_module-fp16.safetensors").unlink()
    (files / "FYE_clip_fc.safetensors").unlink()
    text = sentence(files)
    assert "FYE_referencenet-fp16.safetensors does not fit AppearanceNet" in text
    assert "2 missing keys: clip_fc.bias, clip_fc.weight" in text
    save_file({"weight": torch.zeros(8, 6), "bias": torch.zeros(8)}, files / "FYE_clip_fc.safetensors")
    text = sentence(files)
    assert "it looks like the denoising UNet of Follow-Your-Emoji without its motion modules" in text
    count = sum(".motion_modules." in key for key in build_networks(CONFIG)["unet"].state_dict())
    assert f"{count} missing keys" in text
    assert f"and {count - 12} more" in text
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (files / "FYE_unet-fp16.safetensors").write_text(pointer)
    assert "FYE_unet-fp16.safetensors is a Git-LFS pointer file" in sentence(files)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["down_blocks.0.a", "mid_block.b", "up_blocks.1.c", "conv_out.weight"], "a plain Stable Diffusion UNet"),
        (["down_blocks.0.motion_modules.0.a", "up_blocks.0.motion_modules.1.b"], "an AnimateDiff motion module alone"),
        (["down_blocks.0.motion_modules.0.a", "up_blocks.0.resnets.1.b"], "a UNet of AnimateDiff"),
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "original layout"),
        (["down_blocks.0.x", "up_blocks.0.y", "clip_fc.weight"], "the ReferenceNet"),
        (["conv_in.weight", "blocks.0.weight", "conv_out.weight"], "a guider"),
        (["vision_model.embeddings.x"], "a CLIP model"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA"),
        (["weight"], None),
        ([], None),
    ],
)
def test_row_37_what_a_file_looks_like(keys: list[str], kind: str | None) -> None:
    found = looks_like(keys)
    assert found == kind or (found is not None and kind is not None and kind in found)


def test_unequal_positional_tables_are_refused() -> None:
    key = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.{}.pos_encoder.pe"
    table = torch.randn(1, 8, 4)
    renamed = rename({key.format(0): table, key.format(1): table.clone()})
    assert list(renamed) == ["mid_block.motion_modules.0.transformer_blocks.0.pos_embed.pe"]
    with pytest.raises(UserError, match="must be equal"):
        rename({key.format(0): table, key.format(1): table + 1})


def test_keys_outside_the_motion_modules_keep_their_names() -> None:
    key = "down_blocks.0.attentions.0.transformer_blocks.0.norm1.weight"
    assert list(rename({key: torch.zeros(1)})) == [key]


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither unet.safetensors nor unet.pth"):
        find_weights(tmp_path, "unet")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Malicious()}, tmp_path / "unet.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_weights(tmp_path / "unet.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}}, [torch.zeros(1)]])
def test_a_file_that_is_no_flat_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "unet.pth")
    with pytest.raises(UserError, match="flat dictionary"):
        read_weights(tmp_path / "unet.pth")


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_weights(path)


def test_a_layout_that_the_blocks_do_not_have_is_refused() -> None:
    config = json.loads(json.dumps(CONFIG))
    config["motion"]["motion_module_kwargs"]["attention_block_types"] = ["Temporal_Self", "Spatial_Cross"]
    with pytest.raises(UserError, match="attention_block_types"):
        build_networks(config)


def test_a_pipeline_comes_from_the_official_folder(folder: Path) -> None:
    parts = build_tiny()
    vision = CLIPVisionConfig(
        hidden_size=6, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32
    )
    encoder = CLIPVisionModelWithProjection(vision)
    with pytest.raises(UserError, match=r"no AutoencoderKL found at .*vae or .*sd-vae-ft-mse"):
        FollowYourEmojiPipeline.from_official(folder, config=CONFIG, image_encoder=encoder)
    parts["vae"].save_pretrained(folder / "sd-vae-ft-mse")
    with pytest.raises(UserError, match=r"no CLIPVisionModelWithProjection found at .*image_encoder"):
        FollowYourEmojiPipeline.from_official(folder, config=CONFIG)
    encoder.save_pretrained(folder / "image_encoder")
    parts["feature_extractor"].save_pretrained(folder / "feature_extractor")
    pipe = FollowYourEmojiPipeline.from_official(folder, config=CONFIG, in_channels=9)
    assert pipe.unet.config["in_channels"] == 9
    assert pipe.feature_extractor.to_dict()["crop_size"]["height"] == 64
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"
    assert pipe.scheduler.config["rescale_betas_zero_snr"]
    assert torch.equal(pipe.vae.state_dict()["quant_conv.weight"], parts["vae"].state_dict()["quant_conv.weight"])


def test_the_sampler_is_the_published_one() -> None:
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(30)
    assert scheduler.timesteps[:6].tolist() == [999, 966, 932, 899, 866, 832]
    assert scheduler.timesteps[-3:].tolist() == [99, 66, 32]
    assert scheduler.alphas_cumprod[-1] == 0  # zero terminal SNR


def test_strict_loading_takes_the_tensors_themselves() -> None:
    with torch.device("meta"):
        network = build_networks(CONFIG)["landmark_encoder"]
    state = {key: torch.randn(value.shape) for key, value in network.state_dict().items()}
    load_strictly(network, state, "lmk_guider")
    assert all(value.data_ptr() == state[key].data_ptr() for key, value in network.state_dict().items())

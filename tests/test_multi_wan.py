"""Several people on Wan's transformer: small random weights, nothing that has to be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor
from wan_parts import DIMS, drawn, pipeline, trained, transformer

from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.wan import WanExpression, latent_masks, token_windows

FRAMES, HEIGHT, WIDTH = 9, 8, 16  # of the video and of its latents; 3 latent frames


def features(people: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return {name: drawn(1, people, FRAMES, DIMS[name], seed=seed) for name in FACTORS}


def halves(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Two people side by side; the last row and the last two columns are nobody's."""
    masks = torch.zeros(1, 2, FRAMES, height, width)
    masks[:, 0, :, : height - 2, : width // 2] = 1
    masks[:, 1, :, : height - 2, width // 2 : width - 2] = 1
    return masks


@torch.no_grad()
def call(host: Any) -> Tensor:
    inputs = {
        "hidden_states": drawn(1, 36, 3, HEIGHT, WIDTH, seed=1),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": drawn(1, 512, 16, seed=2),
        "encoder_hidden_states_image": drawn(1, 5, 16, seed=3),
    }
    return host(**inputs, return_dict=False)[0]


def test_each_latent_frame_sees_the_tokens_of_its_own_frames() -> None:
    tokens = torch.arange(9 * 2).view(1, 1, 9, 2, 1).float() + 1
    windows, mask = token_windows(tokens)
    assert windows.shape == (1, 1, 3, 8, 1)
    assert mask is not None
    seen = [windows[0, 0, latent, mask[latent], 0].tolist() for latent in range(3)]
    assert seen == [[1, 2], list(range(3, 11)), list(range(11, 19))]


def test_the_releases_windows_have_a_stray_token_and_zeros_that_are_seen() -> None:
    tokens = torch.arange(9 * 24).view(1, 1, 9, 24, 1).float() + 1
    windows, mask = token_windows(tokens, "release")
    assert mask is None
    assert windows.shape == (1, 1, 3, 97, 1)
    assert windows[0, 0, 0, :24, 0].tolist() == list(range(1, 25))
    assert (windows[0, 0, 0, 24:] == 0).sum() == 73
    assert windows[0, 0, 1, :, 0].tolist() == list(range(24, 121))
    assert windows[0, 0, 2, :, 0].tolist() == list(range(120, 217))


def test_masks_follow_the_same_frames() -> None:
    masks = torch.zeros(1, 1, 9, 1, 1)
    masks[:, :, [0, 1, 2]] = 1
    assert latent_masks(masks).flatten().tolist() == [1, 0.5, 0]
    for wrong in (lambda: latent_masks(masks[:, :, :8]), lambda: token_windows(torch.zeros(1, 1, 8, 2, 1))):
        with pytest.raises(ValueError, match="4 k \\+ 1 frames, got 8"):
            wrong()


def test_without_tokens_and_after_removal_the_transformer_is_what_it_was() -> None:
    host = transformer()
    before, keys = call(host), list(host.state_dict())
    made = trained(host)
    assert torch.equal(call(host), before)
    with made.given(features(), halves()):
        assert (call(host) - before).abs().max() > 1e-3
    assert torch.equal(call(host), before)
    made.remove()
    made.remove()
    assert torch.equal(call(host), before)
    assert list(host.state_dict()) == keys


def test_at_the_attention_a_driver_reaches_its_own_person_alone() -> None:
    host = transformer()
    made = trained(host)
    seen: list[Tensor] = []
    host.blocks[0].attn2.register_forward_hook(lambda module, given, result: seen.append(result))
    changed = {name: value.clone() for name, value in features().items()}
    changed["lip"][:, 1] += 1
    for each in (features(), changed):
        with made.given(each, halves()):
            call(host)
    first, second = (each.view(3, HEIGHT // 2, WIDTH // 2, -1) for each in seen)
    assert torch.equal(first[:, :, : WIDTH // 4], second[:, :, : WIDTH // 4])
    assert torch.equal(first[:, :, -1], second[:, :, -1])
    assert torch.equal(first[:, -1], second[:, -1])
    assert not torch.equal(first[:, 0, WIDTH // 4], second[:, 0, WIDTH // 4])


def test_people_with_their_drivers_may_come_in_any_order() -> None:
    host = transformer()
    made = trained(host)
    with made.given(features(), halves()):
        first = call(host)
    with made.given({name: value.flip(1) for name, value in features().items()}, halves().flip(1)):
        torch.testing.assert_close(call(host), first, rtol=0, atol=1e-5)


def test_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    host = transformer()
    made = trained(host)
    with made.given(features(), halves()):
        wanted = call(host)
    made.save(tmp_path)
    other = transformer()
    read = WanExpression.load(tmp_path, other)
    for own, theirs in ((made.adapter, read.adapter), (made.encoder, read.encoder)):
        weights = theirs.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in own.state_dict().items())
    with read.given(features(), halves()):
        torch.testing.assert_close(call(other), wanted, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="does not fit"):
        WanExpression.load(tmp_path, transformer(layers=3))


def release_of(made: WanExpression) -> dict[str, dict[str, Tensor]]:
    """The weights under the names of the published file."""
    parts: dict[str, dict[str, Tensor]] = {"proj_model": {}, "mouth_proj_model": {}, "emo_proj_model": {}}
    state = {name: value.detach() for name, value in made.encoder.state_dict().items()}
    linear = {"head": "headpose_proj", "eye": "eye_proj", "emotion": "emo_proj", "lip": "mouth_proj"}
    for factor, theirs in linear.items():
        parts["proj_model"][f"{theirs}.weight"] = state[f"project.{factor}.weight"]
    for kind in ("weight", "bias"):
        parts["proj_model"][f"norm.{kind}"] = state[f"norm.{kind}"]
    names = {"ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out"}
    names |= {"ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3"}
    for factor, part in (("lip", "mouth_proj_model"), ("emotion", "emo_proj_model")):
        prefix = f"resample.{factor}."
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for name, value in inner.items():
            if not name.startswith("layers."):
                parts[part][name] = value
                continue
            _, number, rest = name.split(".", 2)
            layer, _, kind = rest.rpartition(".")
            if layer == "attn.to_k":
                joined = torch.cat([value, inner[f"layers.{number}.attn.to_v.weight"]])
                parts[part][f"layers.{number}.0.to_kv.weight"] = joined
            elif layer != "attn.to_v":
                parts[part][f"layers.{number}.{names[layer]}.{kind}"] = value
    parts["ip_adapter"] = {}
    for number, processor in enumerate(made.adapter.processors.values()):
        for each in ("k", "v"):
            key = f"blocks.{number}.cross_attn.processor.ip_adapter_single_stream_{each}_proj.weight"
            parts["ip_adapter"][key] = processor.get_parameter(f"to_{each}.weight").detach()
    return parts


def test_the_published_file_is_read_strictly(tmp_path: Path) -> None:
    host = transformer()
    made = trained(host)
    with made.given(features(), halves()):
        wanted = call(host)
    parts = release_of(made)
    torch.save(parts, tmp_path / "release.pt")
    other = transformer()
    with WanExpression.from_release(tmp_path / "release.pt", other, head_dim=4).given(features(), halves()):
        torch.testing.assert_close(call(other), wanted, rtol=0, atol=1e-6)
    for part, name in [("proj_model", "eye_proj.weight"), ("emo_proj_model", "layers.1.0.norm1.bias")]:
        fewer = {key: {k: v for k, v in values.items() if (key, k) != (part, name)} for key, values in parts.items()}
        more = {key: dict(values) for key, values in parts.items()}
        more[part]["surplus.weight"] = torch.zeros(1)
        for number, wrong in enumerate((fewer, more)):
            torch.save(wrong, tmp_path / f"{number}.pt")
            with pytest.raises(UserError, match="expression adapter"):
                WanExpression.from_release(tmp_path / f"{number}.pt", transformer(), head_dim=4)
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="is no expression adapter"):
        WanExpression.from_release(tmp_path / "bad.pt", transformer())


def test_what_does_not_fit_leaves_the_transformer_as_it_was(tmp_path: Path) -> None:
    torch.save(release_of(trained(transformer())), tmp_path / "release.pt")
    host = transformer(layers=3)
    before = call(host)
    with pytest.raises(UserError, match="does not fit this model"):
        WanExpression.from_release(tmp_path / "release.pt", host, head_dim=4)
    assert torch.equal(call(host), before)
    assert not any("processor" in name for name in host.state_dict())


def video(pipe: Any, scale: float) -> Tensor:
    prompt = torch.zeros(1, 512, 16)
    return pipe(
        image=Image.new("RGB", (WIDTH * 8, HEIGHT * 8), (90, 120, 60)),
        prompt_embeds=prompt,
        negative_prompt_embeds=prompt,
        height=HEIGHT * 8,
        width=WIDTH * 8,
        num_frames=FRAMES,
        num_inference_steps=2,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def test_with_equal_prompts_the_pipelines_guidance_is_that_of_the_expression() -> None:
    """Against a loop by hand: with people, without, and 4.5 times the difference."""
    host = transformer()
    pipe, made = pipeline(host), trained(host)
    calls: list[dict[str, Any]] = []
    handle = host.register_forward_pre_hook(lambda module, given, named: calls.append(named), with_kwargs=True)
    with made.given(features(), halves()):
        moved = video(pipe, 4.5)
    handle.remove()
    assert len(calls) == 4, "two steps of two calls"
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(2)
    latents, condition = calls[0]["hidden_states"][:, :16], calls[0]["hidden_states"][:, 16:]
    with torch.no_grad():
        for step, moment in enumerate(scheduler.timesteps):
            named = calls[2 * step] | {"hidden_states": torch.cat([latents, condition], dim=1), "return_dict": False}
            with made.given(features(), halves()):
                (cond,) = host(**named)
            (uncond,) = host(**named)
            assert (cond - uncond).abs().max() > 1e-4
            (latents,) = scheduler.step(uncond + 4.5 * (cond - uncond), moment, latents, return_dict=False)
    torch.testing.assert_close(moved, latents, rtol=0, atol=1e-6)


def test_people_with_their_drivers_may_come_in_any_order_in_a_whole_video() -> None:
    host = transformer()
    pipe, made = pipeline(host), trained(host)
    with made.given(features(), halves()):
        first = video(pipe, 4.5)
    with made.given({name: value.flip(1) for name, value in features().items()}, halves().flip(1)):
        torch.testing.assert_close(video(pipe, 4.5), first, rtol=0, atol=1e-5)


def test_it_runs_in_bfloat16() -> None:
    """The features may come in other numbers."""
    host = transformer().to(torch.bfloat16)
    pipe, made = pipeline(host), trained(host)
    torch.nn.Module.to(made.encoder, torch.bfloat16)
    with made.given(features(), halves()):
        moved = video(pipe, 4.5)
    assert moved.isfinite().all()
    assert not torch.equal(moved, video(pipe, 4.5))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_it_runs_while_parts_of_the_transformer_wait_elsewhere(kind: str) -> None:
    """Groups of layers come to the device as they are needed, the branches' weights with them."""
    host = transformer()
    pipe, made = pipeline(host), trained(host)
    with made.given(features(), halves()):
        wanted = video(pipe, 4.5)
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    host.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
    with made.given(features(), halves()):
        torch.testing.assert_close(video(pipe, 4.5), wanted, rtol=0, atol=1e-6)

"""Cuts: what a predicted step costs on the real models, what is dead at each depth, and UNets of the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel, UNet2DConditionModel, UNetMotionModel
from peft import LoraConfig
from ticache_models import FAMILIES, Recorder, ddim, denoise, make_inputs, make_unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ticache
from ticache import cut_plan as cuts

# The real configurations, as published, at the sizes they are made for.
MODELS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "SD 1.5": (
        UNet2DConditionModel,
        {"cross_attention_dim": 768},
        {"sample": (2, 4, 64, 64), "encoder_hidden_states": (2, 77, 768)},
    ),
    "AnimateDiff": (
        UNetMotionModel,
        {"cross_attention_dim": 768, "use_motion_mid_block": True},
        {"sample": (2, 4, 16, 32, 32), "encoder_hidden_states": (32, 77, 768)},
    ),
    "SDXL": (
        UNet2DConditionModel,
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {"sample": (2, 4, 128, 128), "encoder_hidden_states": (2, 77, 2048)},
    ),
}
# model, cut -> share of a full step's operations
SHARES = {
    ("SD 1.5", "output"): 0.0001,
    ("SD 1.5", "outer"): 0.079,
    ("SD 1.5", "branches"): 0.744,
    ("AnimateDiff", "output"): 0.0001,
    ("AnimateDiff", "outer"): 0.064,
    ("SDXL", "outer"): 0.015,
}


@pytest.mark.parametrize("model", MODELS)
def test_a_predicted_step_of_a_real_model_costs_what_is_said(model: str) -> None:
    kind, config, shapes = MODELS[model]
    with torch.device("meta"):
        unet = kind(**config).eval()
        inputs: dict[str, Any] = {name: torch.empty(shape) for name, shape in shapes.items()}
        if model == "SDXL":
            inputs["added_cond_kwargs"] = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
    for (name, cut), share in SHARES.items():
        if name != model:
            continue
        costs = []
        with ticache.apply(unet, N=2, schedule="uniform", order=0, cut=cut) as session, torch.no_grad():
            for timestep in (900, 800):
                with FlopCounterMode(display=False) as counter:
                    unet(timestep=timestep, **inputs)
                costs.append(counter.get_total_flops())
            report = session.report().to_dict()
        assert costs[1] / costs[0] == pytest.approx(share, abs=0.02)
        assert costs[1] / costs[0] == pytest.approx(share, rel=0.05, abs=5e-4)
        # The report's count, made from shapes, agrees with the operators that ran.
        assert report["flops_run"] == pytest.approx(sum(costs), rel=1e-3)
        assert report["flops_full"] == pytest.approx(2 * costs[0], rel=1e-3)


def small_attention_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def with_lora(unet: UNet2DConditionModel) -> None:
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, target_modules=layers))


@pytest.mark.parametrize("change", [with_lora, UNet2DConditionModel.fuse_qkv_projections])
def test_the_report_counts_what_lora_and_fused_projections_run(change: Any) -> None:
    with torch.device("meta"):
        unet: Any = small_attention_unet().eval()
    with torch.no_grad():
        change(unet)
    unet.to("meta")
    inputs = {"sample": torch.empty(2, 4, 32, 32, device="meta")}
    inputs |= {"encoder_hidden_states": torch.empty(2, 7, 32, device="meta")}
    with ticache.apply(unet, N=2, schedule="uniform", order=0) as session, torch.no_grad():
        costs = []
        for timestep in (900, 800):
            with FlopCounterMode(display=False) as counter:
                unet(timestep=timestep, **inputs)
            costs.append(counter.get_total_flops())
        report = session.report().to_dict()
    assert report["flops_full"] == pytest.approx(2 * costs[0], rel=1e-3)
    assert report["flops_run"] == pytest.approx(sum(costs), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_depth_runs_more_and_the_whole_path_is_exact(family: str) -> None:
    """Fed the features of the very same call, every depth puts out what a full call does, whatever is skipped."""
    unet: Any = make_unet(family)
    sample, conditions = make_inputs(family, batch=1)
    layers = sum(len(block.resnets) for block in unet.up_blocks)
    saved = []
    for depth in range(layers):
        with ticache.apply(unet, N=2, schedule="uniform", forecaster="reuse", depth=depth) as session, torch.no_grad():
            full = unet(sample, torch.tensor(900.0), **conditions).sample
            # The same timestep would be another stream; this one is the next step, and all but the same to the UNet.
            predicted = unet(sample, torch.tensor(900 - 1e-4), **conditions).sample
            report = session.report().to_dict()
        assert report["predicted_calls"] == 1
        assert torch.allclose(full, predicted, atol=1e-3, rtol=1e-3), depth
        saved.append(report["flops_saved"])
    assert saved == sorted(saved, reverse=True)
    assert len(set(saved)) == layers
    assert saved[-1] > 0


def test_dead_modules_are_deduced() -> None:
    unet = make_unet()
    plan = cuts.plan(unet, "outer")
    roles = {unit.name: unit.role for unit in plan.modules}
    blocks = {name for name in roles if name.count(".") < 2}
    assert blocks == {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"}
    assert {name for name, role in roles.items() if role == "point"} == {
        "up_blocks.1.attentions.0",
        "up_blocks.1.resnets.0",
    }
    deeper = {unit.name for unit in cuts.plan(unet, "outer", depth=1).modules}
    assert "down_blocks.0" not in deeper
    assert "down_blocks.0.downsamplers.0" in deeper


def test_every_attention_of_a_skipped_layer_is_skipped() -> None:
    """AudioLDM2 has several attentions a layer, one for each condition."""
    kind: Any = AudioLDM2UNet2DConditionModel
    unet = kind(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=((None, 8), (None, 8)),
    ).eval()
    inputs = {"sample": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 8)}
    ran: set[str] = set()
    for name, module in unet.up_blocks[-1].named_modules():
        if name.startswith("attentions") and name.endswith("to_q"):
            module.register_forward_pre_hook(lambda *_, name=name: ran.add(name[: len("attentions.0")]))
    with ticache.apply(unet, N=2, schedule="uniform", order=0) as session, torch.no_grad():
        unet(timestep=900, **inputs)
        assert ran == {f"attentions.{index}" for index in range(4)}
        ran.clear()
        unet(timestep=800, **inputs)
        assert session.report().to_dict()["predicted_calls"] == 1
    assert ran == {"attentions.2", "attentions.3"}


class Layer(nn.Module):
    """A residual layer on [B, C, F, H, W], frame by frame."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        B, _, F = x.shape[:3]
        y = self.conv1(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (B, F)).transpose(1, 2)
        return torch.tanh(y + temb)


class Block(nn.Module):
    def __init__(self, widths: list[tuple[int, int]]):
        super().__init__()
        self.resnets = nn.ModuleList(Layer(a, b) for a, b in widths)


class TalkingUNet(nn.Module):
    """A UNet of the user's own, with diffusers' layout and 5-D features, and no diffusers class in it."""

    def __init__(self, head_reads_the_middle: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv3d(4, 8, (1, 3, 3), padding=(0, 1, 1))
        self.down_blocks = nn.ModuleList([Block([(8, 8)]), Block([(8, 8)])])
        self.mid_block = Layer(8, 8)
        self.up_blocks = nn.ModuleList([Block([(16, 8)]), Block([(16, 8), (16, 8)])])
        self.conv_out = nn.Conv3d(8, 4, 1)
        self.head_reads_the_middle = head_reads_the_middle
        self.eval()

    def forward(self, sample: Tensor, timestep: Any, audio: Tensor | None = None) -> Tensor:
        temb = torch.as_tensor(timestep, dtype=sample.dtype) / 1000
        temb = temb + (0 if audio is None else audio.mean())
        hidden = self.conv_in(sample)
        skips = [hidden]
        for block in self.down_blocks:
            for layer in block.resnets:  # pyright: ignore[reportGeneralTypeIssues]
                hidden = layer(hidden, temb)
                skips.append(hidden)
        middle = hidden = self.mid_block(hidden, temb)
        for block in self.up_blocks:
            for layer in block.resnets:  # pyright: ignore[reportGeneralTypeIssues]
                hidden = layer(torch.cat([hidden, skips.pop()], dim=1), temb)
        return self.conv_out(hidden + middle if self.head_reads_the_middle else hidden)


def talk(unet: nn.Module, steps: int = 9) -> Tensor:
    sample = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            sample = sample - 0.1 * unet(sample, 900 - 100 * step)
    return sample


@pytest.mark.parametrize("cut", ["outer", "output"])
def test_a_unet_of_the_users_own_is_cached(cut: str) -> None:
    unet = TalkingUNet().eval()
    plain = talk(unet)
    site = Recorder(unet.up_blocks[-1].resnets[0])  # pyright: ignore[reportArgumentType,reportIndexIssue]
    with ticache.apply(unet, N=3, order=2, cut=cut, num_steps=9, region=torch.ones(3, 4, 4)) as session:
        cached = talk(unet)
        report = session.report().to_dict()
        assert torch.equal(talk(unet), cached)
    assert report["predicted_calls"] == 6
    assert len(site.outputs) > 0
    assert 0 < float((cached - plain).norm() / plain.norm()) < 0.1
    assert torch.equal(talk(unet), plain)


def test_a_unet_that_reads_what_is_taken_for_dead_is_found_out() -> None:
    unet = TalkingUNet(head_reads_the_middle=True).eval()
    plain = talk(unet)
    with ticache.apply(unet, N=3, order=2, num_steps=9) as session:
        with pytest.warns(UserWarning, match="it reads features taken for dead; not cached"):
            assert torch.equal(talk(unet), plain)
        assert "not cached" in str(session.report())
        assert torch.equal(talk(unet), plain)


def test_what_is_kept_can_be_half_precision_or_on_the_host() -> None:
    unet = make_unet()
    scheduler = ddim()
    sample, conditions = make_inputs(batch=1)
    results, peaks = {}, {}
    for name, settings in {"plain": {}, "half": {"dtype": torch.float16}, "host": {"offload": "cpu"}}.items():
        with ticache.apply(unet, N=3, order=2, scheduler=scheduler, **settings) as session:
            results[name] = denoise(unet, scheduler, sample, conditions, steps=10)
            peaks[name] = session.report().to_dict()["peak_bytes"]
    assert peaks["half"] * 2 == peaks["plain"] == peaks["host"] == 3 * 16 * 8 * 8 * 4
    assert torch.equal(results["host"], results["plain"])
    assert 0 < float((results["half"] - results["plain"]).abs().max()) < 0.05


def test_keep_holds_what_was_kept() -> None:
    unet = make_unet()
    scheduler = ddim()
    with ticache.apply(unet, N=3, order=2, keep=True, scheduler=scheduler) as session:
        denoise(unet, scheduler, *make_inputs(batch=1), steps=10)
        assert session.report().to_dict()["held_bytes"] > 0
        ((sites),) = session.kept().values()
        assert [len(tensors) for tensors in sites.values()] == [3]
        session.reset()
        assert session.report().to_dict()["held_bytes"] == 0


def test_the_report_is_text_dict_and_json_and_counts_without_operators() -> None:
    import json

    from torch.utils._python_dispatch import TorchDispatchMode

    class NoOperators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(f"the report ran {func}")

    unet = make_unet()
    scheduler = ddim()
    with ticache.apply(unet, N=3, order=2, scheduler=scheduler) as session:
        assert "none yet" in str(session.report())
        denoise(unet, scheduler, *make_inputs(), steps=10)
        with NoOperators():
            report = session.report()
    values = report.to_dict()
    assert json.loads(report.to_json()) == values
    assert values["flops_saved"] == 2 * values["macs_saved"] > 0
    assert values["seconds_full"] > 0
    assert values["seconds_predicted"] > 0
    for part in ("calls     10: 4 full, 6 predicted", "fewer", "per predicted call", "held at most"):
        assert part in str(report)

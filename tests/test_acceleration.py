"""The acceleration benchmark: the rivals' maths on small tensors, the rows, the claims, and a run of a few rows."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks import sd_like
from benchmarks.acceleration import command as acceleration
from benchmarks.acceleration.measure import FIGURES, RowRunner, claims, count_flops
from benchmarks.acceleration.rows import MAIN, Base, Facts, Row, cached, fitted, plain, rows_of
from benchmarks.baselines import Running, packages, schedules, tensor_bytes
from benchmarks.baselines.packages import NotApplicable, deepcache, deepest_branch
from benchmarks.baselines.sito import gather_tokens, select_tokens, sito
from benchmarks.baselines.threshold import ThresholdReuse, tune_threshold
from benchmarks.models import BenchmarkModel
from fye_pipeline.models.tiny import build_tiny
from ticache.calibration import Calibration


def test_sito_leaves_out_the_tokens_most_like_a_base() -> None:
    # 2 x 4 tokens, two patches. In each two directions: three tokens alike and one apart.
    alike, apart = [1.0, 0.0], [0.0, 1.0]
    tokens = torch.tensor([[alike, [0.9, 0.1], alike, [0.5, 0.5], [0.8, 0.3], apart, alike, apart]])
    kept, source = select_tokens(tokens, 2, 4, ratio=0.25)
    assert kept.shape == (1, 6)
    assert {5, 7} <= set(kept[0].tolist()), "tokens that are like no base stay"
    restored = gather_tokens(gather_tokens(tokens, kept), source)
    out = sorted(set(range(8)) - set(kept[0].tolist()))
    torch.testing.assert_close(restored[0, kept[0]], tokens[0, kept[0]], rtol=0, atol=0)
    cosine = torch.nn.functional.cosine_similarity(restored[0, out], tokens[0, out])
    assert (cosine > 0.9).all(), "what is left out takes the result of a token like it"


def test_sito_bases_are_one_in_each_patch_and_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 16, 8, generator=generator)
    kept, source = select_tokens(tokens, 4, 4, ratio=0.75)
    patch_of = torch.arange(16).reshape(4, 4)
    patches = [patch_of[y : y + 2, x : x + 2].flatten().tolist() for y in (0, 2) for x in (0, 2)]
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    score = (unit @ unit.transpose(1, 2)).sum(-1)
    for sample in range(2):
        bases = sorted(max(patch, key=lambda token: float(score[sample, token])) for patch in patches)
        assert kept[sample].tolist() == bases
        nearest = (unit[sample] @ unit[sample, bases].T).argmax(-1)
        assert source[sample].tolist() == [bases.index(t) if t in bases else int(nearest[t]) for t in range(16)]


@pytest.mark.parametrize(("length", "ratio", "message"), [(15, 0.5, "patches"), (16, 0.9, "ratio")])
def test_sito_refuses_what_cannot_be(length: int, ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_tokens(torch.zeros(1, length, 2), 4, 4, ratio)


def _run_rule(rule: ThresholdReuse, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    return [rule(x, lambda y=y: y) for x, y in zip(inputs, outputs, strict=True)]


def _line(steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """An input that moves evenly; the output is the input plus one. Both are as long as they are wide."""
    inputs = [torch.full((1, 2, 2, 2), 1.0 + 0.1 * step) for step in range(steps)]
    return inputs, [x + 1 for x in inputs]


def test_threshold_reuse_counts_and_reproduces_a_constant_residual() -> None:
    inputs, outputs = _line(20)
    full, none = ThresholdReuse(0.0, 20), ThresholdReuse(1e9, 20)
    _run_rule(full, inputs, outputs)
    assert full.calls == 20
    made = _run_rule(none, inputs, outputs)
    assert none.calls == 3 + 1  # what lies before 15 % and after 95 % of the run
    for ours, theirs in zip(made, outputs, strict=True):
        torch.testing.assert_close(ours, theirs)
    _run_rule(none, inputs, outputs)
    assert none.calls == 4, "a second run begins anew"


def test_threshold_reuse_adds_up_relative_changes() -> None:
    inputs, outputs = _line(20)
    rule = ThresholdReuse(0.1, 20)
    taken = []
    for x, y in zip(inputs, outputs, strict=True):
        before = rule.calls
        rule(x, lambda y=y: y)
        taken.append(rule.calls > before)
    # From the last full step s the output 2 + 0.1 s changes by 0.1 k: (0.1 + 0.2) / 2.2 > 0.1 at k = 2 and so on.
    assert taken[:6] == [True, True, True, False, True, False]


def test_threshold_is_tuned_to_the_calls_that_are_wanted() -> None:
    generator = torch.Generator().manual_seed(1)
    walk = torch.randn(30, 1, 4, 4, 4, generator=generator).cumsum(0)
    inputs, outputs = list(walk), list(walk.roll(1, 2) * 0.7)
    for calls in (10, 14, 20):
        rule = ThresholdReuse(tune_threshold(inputs, outputs, calls), 30)
        _run_rule(rule, inputs, outputs)
        assert rule.calls in (calls, calls - 1)


def test_spectrum_windows_grow() -> None:
    steps = schedules.spectrum_steps(30)
    assert steps == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25]
    assert len(schedules.spectrum_steps(30, warmup=4)) == 10
    assert len(schedules.spectrum_steps(30, warmup=2, window=4.0, growth=2.0)) == 6


def test_taylorseer_steps_are_those_of_diffusers() -> None:
    assert schedules.taylorseer_steps(12, interval=3) == [0, 1, 2, 4, 7, 10]
    assert len(schedules.taylorseer_steps(30, interval=4)) == 10
    assert len(schedules.taylorseer_steps(30, interval=9)) == 6


def test_shared_memory_counts_once() -> None:
    tensor = torch.zeros(4)
    assert tensor_bytes({"a": (tensor, tensor[:2]), "b": [torch.zeros(2)], "c": None}) == 24


FACTS = Facts(share=0.2, thresholds={10: 0.1, 6: 0.2}, branch=6, regions=[None], recorded=lambda _: Calibration())


@pytest.fixture(scope="module")
def all_rows() -> list[Row]:
    return [row for model in ("portrait", "sd-like") for row in rows_of(model, FACTS)]


def test_rows_have_names_of_their_own(all_rows: list[Row]) -> None:
    keys = [row.key for row in all_rows]
    assert len(keys) == len(set(keys))
    for row in all_rows:
        recipe = row.name.startswith("ticache ")
        assert recipe or "ticache" not in row.name
        assert row.nfe == row.base.steps or row.method is plain
    assert Base("ddim", 30, 7.5).name == "ddim-30-g7.5"
    assert MAIN.name == "ddim-30"


def test_the_quick_table_is_short_and_has_every_rival(all_rows: list[Row]) -> None:
    quick = [row for row in all_rows if row.quick]
    assert 120 <= len(quick) <= 180
    names = " ".join(row.name for row in quick)
    for rival in (
        "DDIM",
        "DPM",
        "UniPC",
        "DeepCache",
        "tomesd",
        "SiTo",
        "T-GATE",
        "Spectrum",
        "TaylorSeer",
        "threshold",
    ):
        assert rival in names
    for base in ("ddim-30-g7.5", "ddim-30-g3", "ddim-30", "dpm-solver++-20-g7.5", "dpm-solver++-20-g3"):
        people = {row.name for row in quick if row.base.name == base and row.model == "sd-like"}
        assert {
            "uncached",
            "ticache N=3",
            "ticache late N=5",
            "ticache paper N=3",
            "ticache auto N=3",
            "DeepCache N=3 branch 0",
        } <= people
        assert sum("equal FLOPs" in name for name in people) == 6


def test_equal_flops_buy_the_steps_that_they_cost(all_rows: list[Row]) -> None:
    found = {row.name: row.nfe for row in all_rows if "equal FLOPs" in row.name and row.base == MAIN}
    assert found["DDIM 14 (equal FLOPs, N=3)"] == 14  # 10 + 20 x 0.2
    assert found["UniPC 11 (equal FLOPs, N=5)"] == 11  # 6 + 24 x 0.2 = 10.8, rounded up


def _fake(name: str, psnr: float, nfe: int = 30) -> dict[str, Any]:
    return {"model": "m", "base": "ddim-30", "name": name, "psnr": psnr, "nfe": nfe, "error": None}


def test_claims_are_judged_from_the_rows() -> None:
    rows = [
        *(_fake("ticache N=3", 60.0), _fake("ticache N=5", 39.0), _fake("DeepCache N=3 branch 0", 45.0)),
        *(_fake("DDIM 10", 30.0, 10), _fake("UniPC 10", 55.0, 10), _fake("DDIM 14 (equal FLOPs, N=3)", 50.0, 14)),
    ]
    judged = {claim["claim"]: claim["met"] for claim in claims(rows)}
    assert [met for text, met in judged.items() if "DeepCache" in text] == [True]
    assert [met for text, met in judged.items() if "10 steps" in text] == [False]
    assert [met for text, met in judged.items() if "equal FLOPs" in text] == [True]
    assert [met for text, met in judged.items() if text.startswith("6 of 30")] == [False]
    assert claims([row for row in rows if row["name"] != "ticache N=3"])[0]["met"] is False


class Small(BenchmarkModel):
    """An SD-like pipeline with random weights, on 8 x 8 latents."""

    name = "sd-like"

    def __init__(self) -> None:
        vae = build_tiny()["vae"]
        self.plain: Any = sd_like.build_pipeline(sd_like.build_unet(), vae)
        self.masks = self.regions = [np.ones((2, 64, 64), np.float32)] * 2
        landmarks = np.random.default_rng(0).random((2, 478, 3))
        self._tokens = sd_like.prompt_tokens(landmarks)
        self.renew()

    @property
    def _scheduler_config(self) -> Any:
        return self.plain.scheduler.config

    def run(self, clip: int, steps: int, pipe: Any = None, *, guidance: float = 1.0) -> Tensor:
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(clip))
        return (pipe or self.pipe)(
            prompt_embeds=self._tokens,
            negative_prompt_embeds=torch.zeros_like(self._tokens),
            guidance_scale=guidance,
            num_inference_steps=steps,
            latents=noise,
            output_type="latent",
        ).images

    def decode(self, latents: Tensor) -> Any:
        with torch.no_grad():
            pictures = self.plain.vae.decode(latents, return_dict=False)[0]
        return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    def truth_figures(self, clip: int, video: Any) -> dict[str, float | None]:
        return dict.fromkeys(("l1_truth", "l1_truth_region", "ssim_truth", "landmark_error", "frames_without_face"))

    def conditions(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def bench() -> RowRunner:
    return RowRunner(Small(), repeats=1)


def _row(name: str, method: Any = plain, nfe: int = 6) -> Row:
    return Row("sd-like", Base("ddim", 6), name, "ddim", nfe, method)


def _method(name: str) -> Any:
    found = {row.name: row.method for row in rows_of("sd-like", FACTS) if row.base == MAIN}
    return found[name]


def test_the_uncached_row_equals_itself(bench: RowRunner) -> None:
    row = bench.measure(_row("uncached"))
    assert row["error"] is None
    assert set(FIGURES) <= set(row)
    assert row["psnr"] == 100.0
    assert row["calls"] == 6
    assert row["flops_ratio"] == 1.0
    assert row["bytes_held"] == 0
    json.dumps(row)


class Own(UNet2DConditionModel):
    """A class that is not diffusers': whether a cut fits it is tried out once, by one more predicted call."""


def test_a_predicted_step_costs_what_every_further_one_does(bench: RowRunner) -> None:
    """Neither what a clip's first run makes for all, as the portrait model's conditions, nor the one probe counts."""

    class Prepares(Small):
        ready = False

        def __init__(self) -> None:
            super().__init__()
            self.plain.unet.__class__ = Own
            self.renew()

        def run(self, clip: int, steps: int, pipe: Any = None, *, guidance: float = 1.0) -> Tensor:
            if not self.ready:
                _ = torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
                self.ready = True
            return super().run(clip, steps, pipe, guidance=guidance)

    share = RowRunner(Prepares(), repeats=1).share_of_a_predicted_step()
    assert 0.05 < share < 0.5
    assert share == bench.share_of_a_predicted_step()


def test_the_fitted_schedule_is_recorded_once_on_what_is_not_measured(bench: RowRunner) -> None:
    base, clips = Base("ddim", 6), list[int]()
    subject: Any = bench.subject
    original = subject.run

    def run(clip: int, *arguments: Any, **options: Any) -> Tensor:
        clips.append(clip)
        return original(clip, *arguments, **options)

    subject.run = run
    try:
        for N, calls in ((3, 2), (2, 3)):
            row = bench.measure(_row(f"auto N={N}", partial(fitted, recorded=partial(bench.calibration, base), N=N)))
            assert (row["error"], row["calls"]) == (None, calls)
    finally:
        del subject.run
    assert clips.count(bench.clips) == 1


def test_pictures_are_predicted_each_in_its_own_region(bench: RowRunner) -> None:
    regions = [np.ones((2, 1, 64, 64), np.float32)] * 2
    for guidance in (1.0, 3.0):
        method = partial(cached, N=3, preset="paper", regions=regions)
        row = bench.measure(Row("sd-like", Base("ddim", 6, guidance), "region", "ddim", 6, method))
        assert row["error"] is None


def test_what_takes_no_videos_says_so() -> None:
    video: Any = SimpleNamespace(unet=torch.nn.Identity())
    with pytest.raises(NotApplicable, match="n/a: it takes the frames of a video"), packages.tomesd(video, ratio=0.5):
        pass


def test_guidance_is_part_of_the_base(bench: RowRunner) -> None:
    guided = Base("ddim", 6, 7.5)
    row = bench.measure(Row("sd-like", guided, "uncached", "ddim", 6, plain))
    assert (row["base"], row["guidance"], row["psnr"]) == ("ddim-6-g7.5", 7.5, 100.0)
    videos = [bench.uncached(base).videos[0] for base in (guided, Base("ddim", 6))]
    assert np.abs(videos[0] - videos[1]).max() > 0.01
    assert bench.uncached(guided).flops == pytest.approx(2 * bench.uncached(Base("ddim", 6)).flops, rel=0.01)


def test_a_recipe_and_deepcache_count_their_full_calls(bench: RowRunner) -> None:
    ours = bench.measure(_row("ticache N=3", _method("ticache N=3")))
    assert (ours["error"], ours["calls"]) == (None, 2)
    assert 1.5 < ours["flops_ratio"] < 3
    assert 0 < ours["bytes_held"] < 1e6
    assert 10 < ours["psnr"] < 100
    theirs = bench.measure(_row("DeepCache N=3 branch 0", _method("DeepCache N=3 branch 0")))
    assert (theirs["error"], theirs["calls"]) == (None, 2)
    assert theirs["flops_ratio"] == pytest.approx(
        ours["flops_ratio"], rel=0.02
    )  # without motion modules both cost alike
    assert theirs["bytes_held"] > ours["bytes_held"]


def test_pruning_costs_less_and_changes_the_picture(bench: RowRunner) -> None:
    row = bench.measure(_row("SiTo 0.5", _method("SiTo 0.5")))
    assert row["error"] is None
    assert row["flops_ratio"] > 1
    assert row["psnr"] < 100


def test_fewer_steps_and_what_does_not_run(bench: RowRunner) -> None:
    fewer = bench.measure(_row("DDIM 2", nfe=2))
    assert (fewer["calls"], fewer["nfe"], fewer["flops_ratio"]) == (2, 2, 3.0)
    assert bench.measure(_row("T-GATE", _method("T-GATE")))["error"] == "n/a: needs text"

    def broken(_pipe: Any, _clip: int) -> Any:
        raise RuntimeError("sizes must match\nand more")

    row = bench.measure(_row("broken", broken))
    assert row["error"] == "RuntimeError: sizes must match"
    assert row["psnr"] is None


def test_rivals_leave_the_unet_as_it_was() -> None:
    small = Small()
    expected = small.run(0, 2)
    for context in (deepcache(small.pipe, interval=2, branch=0), sito(small.pipe, ratio=0.5)):
        with context as running:
            assert isinstance(running, Running)
            small.run(0, 2)
        assert torch.equal(small.run(0, 2), expected)
    assert deepest_branch(small.pipe.unet) == 7


def test_flops_are_counted_with_the_attention() -> None:
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.zeros(1, 6, 8)
    with torch.no_grad():
        _, flops = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x))
    assert flops == 2 * 2 * 6 * 6 * 8
    assert copy.deepcopy(attention) is not attention


def test_the_journal_goes_on_under_the_same_conditions_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = acceleration.Journal(path, {"seed": 0}, resume=True)
    first.add({"model": "sd-like", "base": "ddim-6", "name": "uncached"})
    again = acceleration.Journal(path, {"seed": 0}, resume=True)
    assert again.has(_row("uncached"))
    assert not again.has(_row("other"))
    assert acceleration.Journal(path, {"seed": 1}, resume=True).rows == []


def test_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert acceleration.arguments(["--quick"]).clips == 2
    with pytest.raises(SystemExit):
        acceleration.arguments(["--frames", "0"])
    assert "--frames must be >= 1" in capsys.readouterr().err


def test_prompts_tell_points_apart_and_where_they_are() -> None:
    landmarks = np.full((1, 478, 3), 0.5)
    tokens = sd_like.prompt_tokens(landmarks)
    assert tokens.shape == (1, 32, 64)
    assert torch.linalg.matrix_rank(tokens[0]) == 32
    landmarks[0, sd_like.POINTS[3], 0] = 0.6
    moved = sd_like.prompt_tokens(landmarks)
    assert (moved != tokens).any(-1)[0].nonzero().flatten().tolist() == [3]

"""A region's weights at every site layout, by hand; and what a region does to predictions."""

from __future__ import annotations

import pytest
import torch
from ticache_models import Recorder, ddim, denoise, make_inputs, make_unet

import ticache
from ticache.region import check_fits, check_region, site_weights


def mask_2x3() -> torch.Tensor:
    """[1, 2, 4, 6], two frames: a dot in the corner of the first, the right half of the second."""
    mask = torch.zeros(2, 4, 6)
    mask[0, 0, 0] = 0.5
    mask[1, :, 3:] = 1
    return check_region(mask)


def test_weights_at_every_layout_by_hand() -> None:
    first = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])  # 4x6 pooled to 2x3: a dot is not lost
    second = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    frames = torch.stack([first, second])
    twice = torch.cat([frames, frames])  # both halves of guidance
    mask = mask_2x3()
    assert torch.equal(site_weights(mask, (4, 8, 2, 3), 2, 2), twice[:, None])
    assert torch.equal(site_weights(mask, (2, 8, 2, 2, 3), 2, 2)[:, 0], torch.stack([frames, frames]))
    assert torch.equal(site_weights(mask, (4, 6, 8), 2, 2), twice.reshape(4, 6, 1))
    temporal = site_weights(mask, (12, 2, 8), 2, 2)  # [B*h*w, F, 1]
    assert torch.equal(temporal[:6, 0, 0], first.flatten())
    assert torch.equal(temporal[6:, 1, 0], second.flatten())


def test_spatial_and_temporal_tokens_are_told_apart_where_shapes_are_equal() -> None:
    """16 frames of 4 x 4 tokens, as AnimateDiff has them in the middle."""
    mask = torch.rand(16, 4, 4, generator=torch.Generator().manual_seed(0))
    mask[0, 0, 0] = 1
    tokens = mask.reshape(16, 16, 1)  # [F, h*w, 1]
    assert torch.equal(site_weights(check_region(mask), (16, 16, 8), 1, 16), tokens)
    assert torch.equal(site_weights(check_region(mask), (16, 16, 8), 1, 16, temporal=True), tokens.transpose(0, 1))


def test_a_motion_module_is_predicted_in_the_regions_frames_alone() -> None:
    """With 4 frames of 2 x 2 tokens its tokens have the shape of spatial ones."""
    unet = make_unet("motion")
    names = [name for name, _ in unet.named_modules() if name.startswith("up_blocks.0") and name.endswith("attn1")]
    motion_attention = next(name for name in names if "motion_modules" in name)
    spatial = torch.zeros(4, 2, 2)
    spatial[3] = 1  # the last frame alone
    scheduler = ddim()
    scheduler.set_timesteps(6)
    sample, conditions = make_inputs("motion", batch=1, frames=4, size=4)
    outputs = {}
    settings = {"preset": "paper", "N": 3, "order": 1, "cut": "branches", "boundary": 6}
    for name, region in {"last frame": spatial, "nowhere": spatial * 0}.items():
        recorder = Recorder(unet.get_submodule(motion_attention))
        with ticache.apply(unet, region=region, scheduler=scheduler, **settings), torch.no_grad():
            for t in scheduler.timesteps:
                unet(sample * (1 + t / 1000), t, **conditions)
        recorder.remove()
        outputs[name] = recorder.outputs
    predicted, reused = outputs["last frame"][4], outputs["nowhere"][4]
    assert predicted.shape[:2] == (4, 4)  # [h*w, F, C]
    assert torch.equal(predicted[:, :3], reused[:, :3])
    assert not torch.equal(predicted[:, 3], reused[:, 3])


def test_a_coarse_mask_is_spread_over_a_finer_site() -> None:
    weights = site_weights(check_region(torch.tensor([[0.0, 1.0]])), (1, 4, 2, 4), 1, 1)
    assert torch.equal(weights[0, 0], torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (torch.zeros(3), r"region must be \(H, W\)"),
        (torch.zeros(0, 3), "must not be empty"),
        (torch.full((2, 2), 1.5), r"values in \[0, 1\]"),
        (torch.full((2, 2), -0.5), r"values in \[0, 1\]"),
        (torch.full((2, 2), torch.nan), r"values in \[0, 1\]"),
    ],
)
def test_a_wrong_mask_is_refused(region: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_region(region)


def test_frames_and_batch_must_fit() -> None:
    with pytest.raises(ValueError, match="1 or 5 frames like the video, got 2"):
        check_fits(mask_2x3(), 1, 5)
    with pytest.raises(ValueError, match="divides the call's batch of 3, got 2"):
        check_fits(torch.zeros(2, 1, 4, 4), 3, 1)
    with pytest.raises(ValueError, match="cannot be laid"):
        site_weights(mask_2x3(), (7, 5), 1, 2)


@pytest.fixture(scope="module")
def motion():
    return make_unet("motion")


def run(unet, region, **settings) -> torch.Tensor:
    scheduler = ddim()
    sample, conditions = make_inputs("motion")
    options = {"N": 3, "order": 2, **settings}
    with ticache.apply(unet, preset="paper", region=region, scheduler=scheduler, **options):
        return denoise(unet, scheduler, sample, conditions, steps=12)


@pytest.mark.parametrize("cut", ["output", "outer", "branches"])
def test_empty_and_whole_regions_are_exact(motion, cut: str) -> None:
    """Before G an all-zero region is reuse bit for bit, an all-one region is none bit for bit."""
    everywhere = {"cut": cut, "boundary": 12}
    assert torch.equal(run(motion, torch.zeros(4, 4), **everywhere), run(motion, None, cut=cut, order=0))
    assert torch.equal(run(motion, torch.ones(3, 5, 5), **everywhere), run(motion, None, cut=cut))
    assert not torch.equal(run(motion, None, cut=cut), run(motion, None, cut=cut, order=0))


def test_a_region_splits_the_feature_until_the_boundary(motion) -> None:
    """Inside it is predicted, outside reused; from G on all is predicted."""
    mask = torch.zeros(1, 3, 8, 8)
    mask[:, 1, :, :4] = 1
    features = {}
    for name, region, settings in [("split", mask, {}), ("all", None, {}), ("none", None, {"order": 0})]:
        recorder = Recorder(motion.up_blocks[-1])
        scheduler = ddim()
        sample, conditions = make_inputs("motion")
        options = {"order": 2} | settings
        with ticache.apply(
            motion, preset="paper", N=3, cut="output", boundary=5, region=region, scheduler=scheduler, **options
        ):
            scheduler.set_timesteps(12)
            with torch.no_grad():
                for t in scheduler.timesteps:  # the same input for all, so that features can be compared
                    motion(sample * (1 + t / 1000), t, **conditions)
        recorder.remove()
        features[name] = recorder.outputs
    inside = site_weights(check_region(mask[0]), features["all"][4].shape, 2, 3).expand_as(features["all"][4]) > 0
    assert torch.equal(features["split"][4][inside], features["all"][4][inside])
    assert torch.equal(features["split"][4][~inside], features["none"][4][~inside])
    assert not torch.equal(features["split"][4], features["all"][4])
    for step in (5, 7, 8, 10):
        assert torch.equal(features["split"][step], features["all"][step])


def test_a_callable_gives_each_step_its_mask(motion) -> None:
    asked = []

    def region(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.ones(2, 2)

    assert torch.equal(run(motion, region, boundary=6), run(motion, None))
    assert asked == [1, 2, 4, 5]


def test_with_boundary_zero_a_region_changes_nothing_and_says_so(motion) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs("motion")
    with ticache.apply(motion, N=3, scheduler=scheduler) as session:
        plain = denoise(motion, scheduler, sample, conditions, steps=6)
        session.region = torch.zeros(4, 4)
        assert torch.equal(denoise(motion, scheduler, sample, conditions, steps=6), plain)
        assert "serves the report only" in repr(session)
        assert "serves the report only" in str(session.report())


def test_frames_that_do_not_match_are_refused_at_the_call(motion) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs("motion")
    with ticache.apply(motion, N=3, scheduler=scheduler) as session:
        session.region = torch.zeros(5, 4, 4)
        with pytest.raises(ValueError, match="region must have 1 or 3 frames like the video, got 5"):
            denoise(motion, scheduler, sample, conditions, steps=6)
        session.region = None
        denoise(motion, scheduler, sample, conditions, steps=6)


def test_the_reference_report_tells_inside_from_outside(motion) -> None:
    scheduler = ddim()
    sample, conditions = make_inputs("motion")
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    recorder = Recorder(motion.up_blocks[-1])
    settings = {"N": 3, "order": 2, "cut": "output", "boundary": 12, "keep": True}
    with ticache.apply(motion, region=mask, scheduler=scheduler, **settings) as session:
        denoise(motion, scheduler, sample, conditions, steps=12)
        recorder.remove()
        before = session.report().to_dict()
        report = session.report(reference=True)
        after = session.report().to_dict()
    assert after["full_calls"] == before["full_calls"]
    entries = report.to_dict()["reference"]
    full = before["streams"][0]["full"]
    assert len(entries) == 3
    for entry in entries:
        assert entry["step"] not in full
        assert min(entry["inside"], entry["outside"]) <= entry["error"] <= max(entry["inside"], entry["outside"])
        assert 0 < entry["error"] < 1
    assert "inside" in str(report)

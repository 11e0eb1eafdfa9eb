"""Cross-attention of several people: nobody's tokens reach anybody else's places, proven to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional
from training_parts import small_parts

import ticache
from fye_pipeline.errors import UserError
from fye_pipeline.models.official import SCHEDULER
from fye_pipeline.multi_portrait.adapter import ExpressionAdapter, ExpressionInputs, grid_of
from fye_pipeline.multi_portrait.attention import Isolation, people_attention
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.expression_encoder import ExpressionEncoder
from fye_pipeline.multi_portrait.ownership import face_masks, token_shares

ROWS, HEADS, WIDE, TOKENS = 2, 2, 8, 5
HEIGHT, BREADTH = 7, 11  # odd


def stripes(people: int, height: int = HEIGHT, width: int = BREADTH) -> Tensor:
    """Touching masks [1, P, 1, H, W], with some columns at the right that are nobody's."""
    masks = torch.zeros(1, people, 1, height, width)
    for person, columns in enumerate(torch.arange(width - 2).tensor_split(people)):
        masks[:, person, :, :, columns] = 1
    return masks


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parts(people: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    shares = token_shares(stripes(people)[:, :, 0], (HEIGHT, BREADTH)).flatten(-2).repeat(ROWS, 1, 1)
    return {
        "query": drawn(ROWS, HEADS, HEIGHT * BREADTH, WIDE, seed=0, dtype=dtype),
        "keys": drawn(ROWS, people, HEADS, TOKENS, WIDE, seed=1, dtype=dtype),
        "values": drawn(ROWS, people, HEADS, TOKENS, WIDE, seed=2, dtype=dtype),
        "shares": shares,
    }


def with_another(given: dict[str, Any], person: int) -> dict[str, Any]:
    """The same with other tokens of one person."""
    changed = {name: value.clone() for name, value in given.items()}
    for name in ("keys", "values"):
        changed[name][:, person] = drawn(*changed[name][:, person].shape, seed=9).to(changed[name].dtype) * 3
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("people", [2, 3, 4, 5])
def test_another_driver_changes_nothing_outside_its_person(people: int, dtype: torch.dtype) -> None:
    given = parts(people, dtype)
    first = people_attention(**given)
    for person in range(people):
        second = people_attention(**with_another(given, person))
        own = given["shares"][0, person].bool()
        assert torch.equal(first[:, :, ~own], second[:, :, ~own])
        assert not torch.equal(first[:, :, own], second[:, :, own])


def test_what_is_nobodys_receives_exactly_zero() -> None:
    given = parts(3)
    nobody = given["shares"][0].sum(dim=0) == 0
    assert nobody.any()
    assert (people_attention(**given)[:, :, nobody] == 0).all()


def test_for_hard_labels_it_is_the_mask_of_minus_infinity() -> None:
    given = {name: value.double() for name, value in parts(3).items()}
    made = people_attention(**given)
    owned = given["shares"][0].sum(dim=0) > 0
    keys, values = (given[name].transpose(1, 2).flatten(2, 3) for name in ("keys", "values"))
    allowed = given["shares"].transpose(1, 2).repeat_interleave(TOKENS, dim=2)[:, None] > 0
    whole = functional.scaled_dot_product_attention(given["query"], keys, values, attn_mask=allowed)
    torch.testing.assert_close(made[:, :, owned], whole[:, :, owned], rtol=0, atol=1e-12)


def test_a_frame_in_which_a_face_has_left_is_zero_and_its_gradients_are_finite() -> None:
    given = parts(2)
    given["shares"] = torch.zeros_like(given["shares"])
    for name in ("query", "keys", "values"):
        given[name].requires_grad_()
    made = people_attention(**given)
    assert (made == 0).all()
    made.sum().backward()
    assert all(given[name].grad.isfinite().all() for name in ("query", "keys", "values"))


@pytest.mark.parametrize("isolation", ["exclusive", "equation"])
def test_people_may_come_in_any_order(isolation: Isolation) -> None:
    given, order = parts(4), [2, 0, 3, 1]
    moved = given | {name: given[name][:, order] for name in ("keys", "values", "shares")}
    first = people_attention(**given, isolation=isolation)
    torch.testing.assert_close(people_attention(**moved, isolation=isolation), first, rtol=0, atol=1e-6)


def reached(people: int, isolation: Isolation) -> list[list[bool]]:
    """[driver][place of a person, then of nobody]: whether the driver changes it."""
    given = parts(people)
    first = people_attention(**given, isolation=isolation)
    shares = given["shares"][0]
    places = [shares[person].bool() for person in range(people)] + [shares.sum(dim=0) == 0]
    rows = []
    for driver in range(people):
        apart = (people_attention(**with_another(given, driver), isolation=isolation) - first).abs()
        rows.append([bool(apart[:, :, place].max() > 1e-6) for place in places])
    return rows


def test_the_equations_zero_logits_are_no_exclusion_and_the_release_mixes_three_people_up() -> None:
    yes, no = True, False
    assert reached(3, "exclusive") == [[yes, no, no, no], [no, yes, no, no], [no, no, yes, no]]
    assert reached(3, "equation") == [[yes] * 4] * 3
    # face 0 has drivers 0 and 1, face 1 has 0 and 2 and never its own, face 2 has 1 and 2
    assert reached(3, "release") == [[yes, yes, no, yes], [yes, no, yes, yes], [no, yes, yes, yes]]
    assert reached(2, "release") == [[yes, no, yes], [no, yes, yes]]


def test_padding_receives_no_attention() -> None:
    given = parts(2)
    mask = torch.tensor([True, True, True, False, False])
    short = {name: value[:, :, :, :3] if name in ("keys", "values") else value for name, value in given.items()}
    for isolation in ("exclusive", "equation", "release"):
        masked = people_attention(**given, isolation=isolation, key_mask=mask)
        torch.testing.assert_close(masked, people_attention(**short, isolation=isolation), rtol=0, atol=1e-6)


def test_another_isolation_is_refused() -> None:
    with pytest.raises(ValueError, match="isolation must be one of exclusive, equation, release, got 'soft'"):
        people_attention(**parts(2), isolation="soft")  # pyright: ignore[reportArgumentType]


def test_no_token_is_claimed_twice_and_a_graze_is_no_claim() -> None:
    masks = torch.zeros(2, 16, 16)
    masks[0, :, :9] = 1
    masks[1, :, 8:] = 1
    masks[1, 0, 0] = 1
    shares = token_shares(masks[None], (4, 4))
    assert shares.shape == (1, 2, 4, 4)
    assert set(shares.unique().tolist()) <= {0.0, 1.0}
    assert shares.sum(dim=1).max() == 1
    assert shares[0, 0, 0, 0] == 1
    faint = torch.zeros(1, 1, 16, 16)
    faint[..., 0, 0] = 1  # a sixteenth of a token
    assert token_shares(faint, (4, 4)).sum() == 0
    faint[..., 0, 1] = 1
    assert token_shares(faint, (4, 4)).sum() == 1


def test_a_face_mask_is_its_hull_and_fifteen_per_cent_more() -> None:
    across, down = np.meshgrid(np.linspace(0.4, 0.6, 5), np.linspace(0.3, 0.7, 5))
    face = np.column_stack([across.ravel(), down.ravel()])
    masks = face_masks([face, np.full((25, 2), np.nan)], 100, 100)
    assert masks[0, 50, 50]
    assert masks[0, 25, 50]  # 15 % of 40 pixels above the hull's edge at 30
    assert not masks[0, 20, 50]
    assert not masks[1].any()


@pytest.mark.parametrize(
    ("size", "places", "wanted"), [((8, 8), 16, (4, 4)), ((7, 11), 24, (4, 6)), ((3, 5), 15, (3, 5))]
)
def test_the_grid_of_a_level_is_known_from_its_places(size: tuple[int, int], places: int, wanted: tuple) -> None:
    assert grid_of(places, *size) == wanted
    with pytest.raises(ValueError, match="no level"):
        grid_of(places + 1, *size)


SMALL: dict[str, Any] = {
    "emotion_dim": 8,
    "lip_dim": 12,
    "width": 16,
    "queries": (4, 2),
    "resampler_dim": 8,
    "resampler_depth": 1,
    "resampler_heads": 2,
    "resampler_head_dim": 4,
}


def encoder_of(**changes: Any) -> ExpressionEncoder:
    return ExpressionEncoder(**{**SMALL, **changes}).eval()


def features(*leading: int, seed: int = 0) -> dict[str, Tensor]:
    return {name: drawn(*leading, dim, seed=seed) for name, dim in zip(FACTORS, (6, 6, 8, 12), strict=True)}


def test_the_encoder_gives_every_person_and_frame_tokens_of_their_own() -> None:
    encoder = encoder_of()
    given = features(1, 2, 3)
    tokens = encoder(given)
    assert encoder.tokens == 10
    assert tokens.shape == (1, 2, 3, 10, 16)
    changed = {name: value.clone() for name, value in given.items()}
    changed["lip"][0, 1, 2] += 1
    apart = (encoder(changed) != tokens).any(dim=-1)
    assert apart[0, 1, 2].any()
    apart[0, 1, 2] = False
    assert not apart.any()


def test_augmentation_can_be_left_out_or_cover_everything() -> None:
    given = features(2)
    assert encoder_of(augment=(), queries=())(given).shape == (2, 4, 16)
    every = encoder_of(augment=FACTORS, queries=(2, 2, 2, 4))
    assert every(given).shape == (2, 14, 16)
    with pytest.raises(ValueError, match="augment must be some of"):
        encoder_of(augment=("ears",), queries=(1,))
    with pytest.raises(ValueError, match="queries must be one number"):
        encoder_of(queries=(1,))


def test_the_published_encoder_has_its_24_tokens_and_164_million_values() -> None:
    with torch.device("meta"):
        encoder = ExpressionEncoder()
    assert encoder.tokens == 24
    count = sum(value.numel() for value in encoder.parameters())
    assert count == pytest.approx(82.0e6 + 81.3e6 + 1.1e6, rel=0.01)


def unet_call(unet: Any, frames: int = 2, batch: int = 1) -> Tensor:
    with torch.no_grad():
        return unet(drawn(batch, 9, frames, 8, 8, seed=3), 500, drawn(batch, 1, 16, seed=4)).sample


@pytest.mark.parametrize("deep", [False, True])
def test_a_host_with_new_branches_is_what_it_was_and_after_removal_too(deep: bool) -> None:
    unet = small_parts()["unet"]
    before = unet_call(unet)
    keys = list(unet.state_dict())
    adapter = ExpressionAdapter(unet, 16, deep=deep)
    assert not any("motion_modules" in name for name in adapter.processors)
    assert torch.equal(unet_call(unet), before)  # without tokens
    tokens, masks = drawn(1, 2, 2, 10, 16, seed=5), stripes(2, 8, 8).expand(1, 2, 2, 8, 8)
    with adapter.inputs.given(tokens, masks):
        assert torch.equal(unet_call(unet), before)  # with tokens, and values that are zero
    assert any("to_v" in name for name in unet.state_dict())
    adapter.remove()
    adapter.remove()
    assert list(unet.state_dict()) == keys
    assert torch.equal(unet_call(unet), before)


def trained(unet: Any, seed: int = 0, *, deep: bool = False) -> ExpressionAdapter:
    """Branches that do something."""
    adapter = ExpressionAdapter(unet, 16, deep=deep)
    for number, processor in enumerate(adapter.processors.values()):
        generator = torch.Generator().manual_seed(seed + number)
        torch.nn.init.normal_(processor.to_v.weight, std=0.5, generator=generator)
        if deep:
            last: Any = processor.feed_forward[-1]
            torch.nn.init.normal_(last.weight, std=0.5, generator=generator)
            torch.nn.init.normal_(last.bias, generator=generator)
    return adapter


@pytest.mark.parametrize("deep", [False, True])
def test_tokens_move_the_host_and_a_scale_of_zero_does_not(deep: bool) -> None:
    unet = small_parts()["unet"]
    adapter = trained(unet, deep=deep)
    before = unet_call(unet, batch=2)
    tokens, masks = drawn(2, 2, 2, 10, 16, seed=5), stripes(2, 8, 8).expand(2, 2, 2, 8, 8)
    with adapter.inputs.given(tokens, masks, scale=[0.0, 1.0]):
        after = unet_call(unet, batch=2)
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-3
    with adapter.inputs.given(tokens, torch.zeros_like(masks)):
        assert torch.equal(unet_call(unet, batch=2), before)


@pytest.mark.parametrize("deep", [False, True])
def test_each_frame_is_moved_by_its_own_tokens(deep: bool) -> None:
    """At the attention: beyond it, motion modules pass from frame to frame."""
    unet = small_parts()["unet"]
    adapter = trained(unet, deep=deep)
    seen: list[Tensor] = []
    attention = unet.get_submodule(next(iter(adapter.processors)))
    handle = attention.register_forward_hook(lambda module, given, result: seen.append(result))
    tokens, masks = drawn(1, 2, 2, 10, 16, seed=5), stripes(2, 8, 8).expand(1, 2, 2, 8, 8)
    other = tokens.clone()
    other[:, 0, 1] += 1  # person 0, frame 1
    for each in (tokens, other):
        with adapter.inputs.given(each, masks):
            unet_call(unet)
    handle.remove()
    first, second = seen
    own = token_shares(masks[:, :, 1], (8, 8))[0, 0].flatten().bool()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1, ~own], second[1, ~own])
    assert not torch.equal(first[1, own], second[1, own])


def test_the_inputs_are_gone_after_an_error() -> None:
    inputs = ExpressionInputs()
    with pytest.raises(RuntimeError), inputs.given(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 2, 3, 8, 8)):
        raise RuntimeError
    assert inputs.tokens is None
    assert inputs.masks is None
    with (
        pytest.raises(ValueError, match="must agree in B, P and F"),
        inputs.given(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 3, 3, 8, 8)),
    ):
        pass


@pytest.mark.parametrize("deep", [False, True])
def test_an_adapter_comes_back_from_its_folder_and_fits_strictly(tmp_path: Path, deep: bool) -> None:
    unet = small_parts()["unet"]
    adapter = trained(unet, deep=deep)
    tokens, masks = drawn(1, 2, 2, 10, 16, seed=5), stripes(2, 8, 8).expand(1, 2, 2, 8, 8)
    with adapter.inputs.given(tokens, masks):
        wanted = unet_call(unet)
    adapter.save(tmp_path)
    fresh = small_parts()["unet"]
    assert ExpressionAdapter.is_deep(tmp_path) is deep
    other = ExpressionAdapter(fresh, 16, deep=deep)
    other.load(tmp_path)
    with other.inputs.given(tokens, masks):
        torch.testing.assert_close(unet_call(fresh), wanted, rtol=0, atol=1e-6)
    weights = adapter.state_dict()
    name = next(iter(weights))
    for wrong in ({k: v for k, v in weights.items() if k != name}, weights | {"more": weights[name]}):
        with pytest.raises(UserError, match="does not fit this model"):
            other.load_state_dict(wrong)
    with pytest.raises(UserError, match="does not fit"):
        ExpressionAdapter(small_parts()["unet"], 8, deep=deep).load(tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        ExpressionAdapter(small_parts()["unet"], 16, deep=not deep).load(tmp_path)


def test_a_cache_forecasts_a_host_with_branches_too() -> None:
    """An unknown processor is taken for one that keeps something, and its block runs at every step."""
    unet = small_parts()["unet"]
    adapter = trained(unet)
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(6)
    tokens, masks = drawn(1, 2, 2, 10, 16, seed=5), stripes(2, 8, 8).expand(1, 2, 2, 8, 8)
    sample, prompt = drawn(1, 9, 2, 8, 8, seed=3), drawn(1, 1, 16, seed=4)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad(), adapter.inputs.given(tokens, masks):
        for moment in scheduler.timesteps:
            unet(sample, moment, prompt)
    assert session.report().to_dict()["predicted_calls"] == 4

"""Detail over the model's frames, and the bent portrait on its way into the UNet."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_pipeline import FRAMES, SIDE, build, pictures, portrait

from fye_pipeline.animate import detail
from fye_pipeline.animate.config import DEMO_DRIVING, DEMO_PORTRAIT_LANDMARKS, AnimationSettings
from fye_pipeline.animate.detail import BentPortraits, brightest_of, compose, detail_kept, in_its_light, soft_face
from fye_pipeline.animate.portrait import LARGEST, Crop, Portrait
from fye_pipeline.animate.run import takes_hint
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import LEFT_EYE, RIGHT_EYE
from fye_pipeline.sampling.clip_store import ClipStore
from fye_pipeline.sampling.progressive import Video, clip_inputs, plan_video

WIDE = 64


def frames(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sharp square [64, 64, 3], the model's frame and the reconstruction [16, 16, 3]."""
    rng = np.random.default_rng(seed)
    sharp = rng.integers(0, 256, (WIDE, WIDE, 3), dtype=np.uint8)
    made, known = rng.random((2, 16, 16, 3)).astype(np.float32)
    return sharp, made, known


@pytest.mark.parametrize("belief", [0.0, 1.0])
def test_where_nothing_moved_the_portrait_stays_to_the_bit(belief: float) -> None:
    sharp, made, known = frames(0)
    one, none = np.ones((WIDE, WIDE), np.float32), np.zeros((WIDE, WIDE), np.float32)
    shown = compose(sharp, one, none, one, made, known, belief=belief)
    np.testing.assert_array_equal(shown, sharp.astype(np.float32) / 255)


def test_of_a_portrait_that_the_model_knows_changes_count_everywhere() -> None:
    """Far from the face and from what moved: slight ones are left out, some are added, large ones replace."""
    one, none = np.ones((WIDE, WIDE), np.float32), np.zeros((WIDE, WIDE), np.float32)
    moved = none.copy()
    moved[:8] = 1
    sharp, known = np.full((WIDE, WIDE, 3), 51, np.uint8), np.full((16, 16, 3), 0.3, np.float32)

    def shown(change: float, belief: float) -> float:
        made = known + np.float32(change)
        return float(compose(sharp, one, moved, none, made, known, belief=belief)[16:].mean())

    for change in (0.015, 0.025, 0.2):
        assert shown(change, 0.0) == pytest.approx(0.2)
    assert shown(0.015, 1.0) == pytest.approx(0.2)
    assert shown(0.025, 1.0) == pytest.approx(0.205, abs=1e-4)
    assert shown(0.2, 1.0) == pytest.approx(0.5, abs=1e-4)
    assert 0.2 < shown(0.2, 0.5) < 0.5


def test_a_model_is_believed_about_what_its_autoencoder_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    face = LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS).landmarks[0]
    sharp = frames(6)[0]
    exact = np.asarray(sharp / 255, np.float32)
    for copy, belief in ((exact, 1.0), (np.full_like(exact, 0.5), 0.0)):
        monkeypatch.setattr(detail, "reconstruct", lambda pipe, picture, copy=copy: copy)
        assert BentPortraits(sharp, face, face[None], WIDE).known_to(None) == belief
    assert detail_kept(sharp, exact) == pytest.approx(1)
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 1) / 255, np.float32)
    assert 0 < detail_kept(sharp, blurred) < 0.6


def test_a_model_that_changes_nothing_leaves_the_bent_portrait() -> None:
    sharp, made, _ = frames(1)
    one = np.ones((WIDE, WIDE), np.float32)
    np.testing.assert_allclose(compose(sharp, one, one, one, made, made), sharp / 255, atol=1e-6)


def test_slight_changes_are_the_models_error() -> None:
    sharp, _, known = frames(3)
    one = np.ones((WIDE, WIDE), np.float32)
    shown = compose(sharp, one, one, one, known + np.float32(0.03), known)
    np.testing.assert_allclose(shown, sharp / 255, atol=1e-6)
    assert np.abs(compose(sharp, one, one, one, known + np.float32(0.3), known) - sharp / 255).mean() > 0.05


def test_teeth_are_no_colder_than_the_light() -> None:
    made = np.full((8, 8, 3), (0.6, 0.6, 0.8), np.float32)
    mouth = np.zeros((8, 8), np.float32)
    mouth[3:5, 3:5] = 1
    lit = in_its_light(made, np.array([0.8, 0.6, 0.5], np.float32), mouth)
    np.testing.assert_allclose(lit[4, 4], (0.6, 0.45, 0.375), atol=1e-6)
    np.testing.assert_array_equal(lit[0], made[0])
    np.testing.assert_allclose(in_its_light(made, np.array([0.6, 0.7, 0.9], np.float32), mouth), made, atol=1e-6)


@pytest.mark.parametrize("skin", [(70, 45, 35), (225, 180, 160)])
def test_teeth_may_be_as_bright_as_the_whites_of_the_eyes_on_any_skin(skin: tuple[int, int, int]) -> None:
    face = LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS).landmarks[0]
    portrait = np.full((256, 256, 3), skin, np.uint8)
    for lower, upper in (LEFT_EYE, RIGHT_EYE):
        outline = face[[*lower, *upper[::-1][1:-1]], :2] * 256
        narrow = outline.mean(0) + (outline - outline.mean(0)) * 0.5
        cv2.fillPoly(portrait, [np.asarray(narrow.round(), np.int32)], (200, 190, 185))
    assert brightest_of(portrait, face).min() > 0.72


def test_what_the_portrait_cannot_show_is_the_models_own() -> None:
    sharp, made, known = frames(2)
    one, none = np.ones((WIDE, WIDE), np.float32), np.zeros((WIDE, WIDE), np.float32)
    shown = compose(sharp, none, one, one, made, known)
    assert np.abs(shown.reshape(16, 4, 16, 4, 3).mean((1, 3)) - made).mean() < 0.1 < np.abs(made - known).mean()
    assert 0 <= shown.min() <= shown.max() <= 1


@pytest.mark.parametrize(
    ("framing", "size", "side"),
    [("paste", None, 300), ("paste", 128, 300), ("crop", None, 300), ("crop", 128, 128), ("whole", None, 400)],
)
def test_the_square_is_as_large_as_the_picture_shows_it(framing: str, size: int | None, side: int) -> None:
    settings = AnimationSettings(framing=framing, size=size, reference_landmarks=None)
    picture = np.zeros((400, 350, 3), np.uint8)
    crop = None if framing == "whole" else Crop(10, 20, 300, 350, 400)
    seen = Portrait(picture, np.zeros((512, 512, 3), np.uint8), crop, None)
    assert seen.at_full_size(settings, 128).shape == (side, side, 3)
    huge = Portrait(np.zeros((3000, 2500, 3), np.uint8), seen.square, None, None)
    assert huge.at_full_size(AnimationSettings(framing="whole"), 128).shape == (LARGEST, LARGEST, 3)


def test_detail_is_refused_in_a_sentence_where_there_is_no_bent_portrait() -> None:
    face = LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS)
    known = Portrait(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), None, face)
    plain, hinted = build(), build(in_channels=14, bent_hint=True)
    assert takes_hint(AnimationSettings(), known, hinted)
    assert not takes_hint(AnimationSettings(detail="none"), known, plain)
    with pytest.raises(UserError, match="takes none: use --detail none"):
        takes_hint(AnimationSettings(detail="full"), known, plain)
    unknown = Portrait(known.picture, known.square, None, None)
    with pytest.raises(UserError, match="--unaligned"):
        takes_hint(AnimationSettings(detail="full"), unknown, hinted)


def bent_pictures(trust: int = 255) -> np.ndarray:
    bent = np.random.default_rng(4).integers(0, 256, (FRAMES, SIDE, SIDE, 4), dtype=np.uint8)
    bent[..., 3] = trust
    return bent


def run(pipe: Any, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    options |= {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
    return pipe(portrait(), pictures(FRAMES), **options).frames


@pytest.mark.parametrize("long", ["uniform", "tiles", "progressive"])
def test_the_bent_portrait_reaches_the_unet(long: str) -> None:
    pipe = build(in_channels=14, bent_hint=True)
    without, shown, untrusted = (
        run(pipe, long=long, window=4, overlap=1, bent=bent) for bent in (None, bent_pictures(), bent_pictures(0))
    )
    assert not torch.allclose(without, shown, atol=1e-3)
    assert not torch.allclose(shown, untrusted, atol=1e-3)


def test_a_model_without_the_hint_ignores_it() -> None:
    pipe = build()
    assert torch.equal(run(pipe), run(pipe, bent=bent_pictures()))


def test_bent_portraits_of_another_size_are_refused() -> None:
    pipe = build(in_channels=14, bent_hint=True)
    with pytest.raises(UserError, match=r"bent must be uint8 \[5, 32, 32, 4\], got uint8 \[5, 32, 32, 3\]"):
        run(pipe, bent=bent_pictures()[..., :3])


def test_a_resumed_run_notices_other_bent_portraits() -> None:
    """Finished clips belong to what they were made from."""
    pipe = build(in_channels=14, bent_hint=True)
    digests = []
    for bent in (None, bent_pictures(), bent_pictures(0)):
        video = Video(
            portrait=portrait().resize((SIDE, SIDE)),
            image_tokens=None,
            landmarks=pictures(FRAMES),
            region=None,
            bent=bent,
            plan=plan_video(pipe, FRAMES, None),
            seed=0,
            num_inference_steps=1,
            guidance_scale=1.0,
        )
        digests.append(next(clip_inputs(pipe, video, ClipStore(video.plan))).digest)
    assert len(set(digests)) == 3


def test_a_driver_that_is_the_portrait_gives_the_portrait() -> None:
    """At least 40 dB within the face, whatever the model paints: nothing moved."""
    face = LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS).landmarks[0]
    sharp, made, known = frames(3)
    bent = BentPortraits(sharp, face, face[None], 16)
    bend = bent.bend(0, WIDE)
    shown = compose(bend.apply(sharp), bend.trust, bend.moved, soft_face(face, WIDE), made, known)
    assert -10 * np.log10(((shown - sharp / 255.0) ** 2).mean() + 1e-12) > 40


def test_bent_portraits_follow_the_landmarks() -> None:
    face = LandmarkSequence.load(DEMO_PORTRAIT_LANDMARKS).landmarks[0]
    driving = LandmarkSequence.load(DEMO_DRIVING).landmarks[::12]
    bent = BentPortraits(frames(4)[0], face, driving, 16)
    stack = bent.stack(0, 3)
    assert stack.shape == (3, 16, 16, 4)
    assert stack.dtype == np.uint8
    assert not np.array_equal(stack[0], stack[2])
    np.testing.assert_array_equal(stack[1], bent[1])

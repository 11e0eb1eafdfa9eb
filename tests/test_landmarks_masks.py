"""Expression and facial masks, and their reduction to a latent grid."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fye_pipeline.animate.config import DEMO_DRIVING
from fye_pipeline.animate.renderer import RenderContext
from fye_pipeline.evaluation.rendered import ClipEvaluator, Plan
from fye_pipeline.landmarks.drawing import expression_mask, facial_mask, reduce_mask
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.landmarks.topology import EXPRESSION_POINTS, FACE_OUTLINE

OFF = -5.0


def single(point: int, position: tuple[float, float]) -> np.ndarray:
    landmarks = np.full((478, 3), OFF)
    landmarks[point, :2] = position
    return landmarks


def test_a_landmark_becomes_a_disc_of_the_given_radius() -> None:
    mask = expression_mask(single(468, (0.5, 0.25)), 40, 80, radius=0.05)
    y, x = np.mgrid[:40, :80]
    np.testing.assert_array_equal(mask, ((x - 40) ** 2 + (y - 10) ** 2 <= 4**2).astype(np.float32))
    assert mask.dtype == np.float32


def test_the_border_cuts_a_disc_and_never_wraps_it() -> None:
    corner = expression_mask(single(468, (0.0, 0.0)), 32, 32, radius=0.1)
    assert corner[0, 3] == corner[3, 0] == 1
    assert not corner[8:].any()
    assert not corner[:, 8:].any()
    assert not expression_mask(single(468, (1e9, -1e9)), 32, 32).any()


def test_only_the_drawn_points_count() -> None:
    drawn = [point for point in range(478) if expression_mask(single(point, (0.5, 0.5)), 16, 16).any()]
    assert drawn == list(EXPRESSION_POINTS)
    assert not set(drawn) & {61, 291, 152}  # outer lips and chin


def test_every_lead_shape_is_kept_and_frames_do_not_mix() -> None:
    landmarks = np.stack([single(468, (0.25, 0.5)), single(468, (0.75, 0.5))])
    for mask_of in (expression_mask, facial_mask):
        batch = mask_of(landmarks.reshape(1, 2, 478, 3), 24, 32)
        assert batch.shape == (1, 2, 24, 32)
        for number in range(2):
            np.testing.assert_array_equal(batch[0, number], mask_of(landmarks[number], 24, 32))
    assert expression_mask(landmarks[:0], 24, 32).shape == (0, 24, 32)


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(ValueError, match="radius must be >= 0, got -1"):
        expression_mask(np.zeros((478, 2)), 8, 8, radius=-1)


def test_the_facial_mask_fills_the_outline() -> None:
    angles = np.linspace(0, 2 * np.pi, len(FACE_OUTLINE), endpoint=False)
    landmarks = np.full((478, 2), OFF)
    landmarks[list(FACE_OUTLINE)] = np.stack([0.5 + 0.3 * np.cos(angles), 0.5 + 0.3 * np.sin(angles)], axis=-1)
    mask = facial_mask(landmarks, 100, 100)
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() == pytest.approx(np.pi * 0.3**2, rel=0.05)
    assert mask[50, 50] == 1
    assert mask[50, 85] == 0


def test_the_facial_mask_is_pixel_identical_to_the_released_code(parity_dir: Path) -> None:
    path = parity_dir / "landmark_ref.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    fixture = np.load(path)
    wanted = fixture["mask.s9"]
    np.testing.assert_array_equal(facial_mask(fixture["s9.c512.lmks"], *wanted.shape), wanted)


def test_reduction_is_the_area_average() -> None:
    mask = torch.zeros(2, 3, 8, 8)
    mask[1, 2, :4, :2] = 1
    reduced = reduce_mask(mask, 2, 2)
    assert reduced.shape == (2, 3, 2, 2)
    assert reduced[1, 2].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert reduced.sum() == 0.5
    torch.testing.assert_close(reduce_mask(mask[0], 3, 5).shape, torch.Size([3, 3, 5]))
    assert torch.equal(reduce_mask(mask, 8, 8), mask)


def test_evaluation_and_animation_give_the_cache_the_same_region() -> None:
    sequence, size, given = LandmarkSequence.load(DEMO_DRIVING)[:2], 64, []

    class Model:
        """Stands for a pipeline that is told where the cache's region is."""

        unet = SimpleNamespace(config={"bent_hint": False})

        def enable_cache(self) -> Any:
            return nullcontext()

        def __call__(self, *arguments: Any, region: np.ndarray, **options: Any) -> Any:
            given.append(region)
            return SimpleNamespace(frames=[None])

    bench = ClipEvaluator(load=None, plan=Plan(), identity=None, face_landmarker=None)  # pyright: ignore[reportArgumentType]
    case: Any = SimpleNamespace(portrait=np.zeros((size, size, 3), np.uint8), portrait_face=sequence)
    bench._generate(Model(), case, sequence.landmarks, 0, cached=True)  # pyright: ignore[reportArgumentType]
    parts: Any = {"pipe": None, "settings": None, "square": None, "dtype": None, "on_progress": None}
    animated = RenderContext(landmarks=sequence.landmarks, size=size, **parts)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(given[0], animated.region(0, 2))
    both = [mask(sequence.landmarks, size, size) for mask in (expression_mask, facial_mask)]
    assert all((given[0] >= mask).all() and (given[0] != mask).any() for mask in both)

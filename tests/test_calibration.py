"""What is kept of a recorded run: inner products of features, small, apart by guidance, the same from JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ticache.best_steps import best_choice
from ticache.calibration import MAX_STEPS, Calibration, Kind, Recorder, Recording

KIND = Kind(scheduler='{"class": "DDIMScheduler"}', num_steps=9, guided=True, features="outer 0 False")


def features(num_steps: int = 9, rows: int = 4, size: int = 64) -> Tensor:
    """Smooth features [T, rows, 8, size / 8] of a run."""
    noise = torch.randn(num_steps, rows, size, generator=torch.Generator().manual_seed(0))
    return noise.cumsum(0).cumsum(0).unflatten(2, (8, -1)) + 5


def recorded(values: Tensor, kind: Kind = KIND, numbers: int = 4096) -> Recording:
    recorder = Recorder(kind, values.shape[1], numbers)
    for step in values:
        recorder.begin_step()
        recorder.take("site", step)
    found = recorder.finish(tuple(range(900, 900 - 100 * len(values), -100)))
    assert found is not None
    return found


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_one_recording_gives_what_reaches_the_sampler_at_every_guidance_scale(guidance: float) -> None:
    values = features()
    unconditional, conditional = values.double().chunk(2, dim=1)
    mixed = unconditional + guidance * (conditional - unconditional)
    wanted = (mixed - mixed.mean(0)).flatten(2)
    # Every number may be drawn more than once: compare a recording of one that has them all, many times.
    found = recorded(values, numbers=200_000).gram(guidance)
    gram = torch.einsum("trn,srn->ts", wanted, wanted).numpy()
    np.testing.assert_allclose(found / np.trace(found), gram / np.trace(gram), atol=1e-5)


def test_a_part_of_the_numbers_tells_nearly_what_all_do() -> None:
    values = features(size=32768)
    every = recorded(values, numbers=4_000_000).gram(3.0)
    some = recorded(values, numbers=4096).gram(3.0)
    assert np.abs(some - every).max() < 0.05 * np.abs(every).max()


def test_a_recording_is_small_and_the_same_from_json() -> None:
    whole = dataclasses.replace(KIND, num_steps=MAX_STEPS)
    assert recorded(features(MAX_STEPS), whole).matrices.nbytes <= 2**20
    calibration = Calibration({"class": "UNet"})
    calibration.add(recorded(features()))
    again = Calibration.from_json(calibration.to_json())
    assert again == calibration
    options = {"guidance": 7.5, "coordinates": range(9)}
    assert again.recordings[KIND].choose(4, **options) == calibration.recordings[KIND].choose(4, **options)
    assert "9 steps guided" in repr(again)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": null, "recordings": [{}]}', '{"recordings": 3, "model": 1}']
)
def test_other_text_is_no_calibration(text: str) -> None:
    with pytest.raises(ValueError, match="a calibration is what session"):
        Calibration.from_json(text)


def test_a_matrix_of_another_size_is_no_calibration() -> None:
    calibration = Calibration()
    calibration.add(recorded(features()))
    values = calibration.to_dict()
    values["recordings"][0]["kind"]["num_steps"] = 8
    with pytest.raises(ValueError, match="a calibration is what"):
        Calibration.from_json(json.dumps(values))


def test_recordings_of_one_kind_are_averaged() -> None:
    one, two = recorded(features()), recorded(features() * torch.linspace(1, 3, 9)[:, None, None, None])
    calibration = Calibration()
    for each in (one, two, two):
        calibration.add(each)
    found = calibration.recordings[KIND]
    assert found.runs == 3
    np.testing.assert_allclose(found.matrices, (one.matrices + 2 * two.matrices) / 3, atol=1e-5)


@pytest.mark.parametrize("broken", ["a step is missing", "other features", "not finite"])
def test_what_is_no_whole_run_is_no_recording(broken: str) -> None:
    recorder = Recorder(KIND, 4)
    values = features()
    if broken == "not finite":
        values[3, 0, 0, 0] = torch.nan
        values[3] = torch.nan
    for step, value in enumerate(values[: 8 if broken == "a step is missing" else 9]):
        recorder.begin_step()
        recorder.take("other" if broken == "other features" and step == 5 else "site", value)
    assert recorder.finish() is None


def test_the_nearest_number_of_steps_of_the_same_scheduler_serves() -> None:
    calibration = Calibration()
    for num_steps in (9, 20):
        calibration.add(recorded(features(num_steps), dataclasses.replace(KIND, num_steps=num_steps)))

    def nearest(**changes: object) -> int | None:
        found = calibration.find(dataclasses.replace(KIND, **changes))  # pyright: ignore[reportArgumentType]
        return None if found is None else found.kind.num_steps

    assert nearest() == 9
    assert nearest(num_steps=18) == 20
    assert nearest(num_steps=11, guided=False) == 9
    assert nearest(scheduler="null") is None
    assert nearest(features="output 0 False") is None
    unguided = Calibration()
    unguided.add(recorded(features(), dataclasses.replace(KIND, guided=False)))
    assert unguided.find(KIND) is None  # it cannot tell what guidance makes of the features


def test_another_number_of_steps_is_chosen_on_the_features_between() -> None:
    recording = recorded(features(13), dataclasses.replace(KIND, num_steps=13))
    choice = recording.choose(9, guidance=3.0, coordinates=range(25))
    assert choice.steps[0] == 0
    assert len(choice.steps) == 9
    assert choice.steps[-1] < 25
    # The same features at half the steps: every second one of what was recorded.
    half = recording.choose(3, guidance=3.0, coordinates=range(7))
    gram = recording.gram(3.0)[::2, ::2]
    assert half == best_choice(gram, 3, np.arange(7.0))
    # By timesteps, where they are known: the end of the run is another part of it than the beginning.
    end = recording.choose(3, guidance=3.0, coordinates=range(7), timesteps=range(300, -400, -100))
    assert end == best_choice(recording.gram(3.0)[6:, 6:], 3, np.arange(7.0))


def test_weights_are_fitted_with_strong_guidance_only() -> None:
    recording = recorded(features())
    at = list(map(float, range(9)))
    strong = recording.choose(3, guidance=7.5, coordinates=at)
    assert set(strong.weights) == set(range(9)) - set(strong.steps)
    for guidance in (None, 1.0, 3.0):
        assert not recording.choose(3, guidance=guidance, coordinates=at).weights

"""What is kept of an evaluation serves the very files and settings that it was made from."""

from __future__ import annotations

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from fye_command import Fye, make_video

from fye_pipeline import presets
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.evaluation import pair_evaluator
from fye_pipeline.evaluation.metric_networks import Weights
from fye_pipeline.evaluation.pair_evaluator import PairEvaluator
from fye_pipeline.evaluation.pairs import Pair
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.model_file import VARIABLE
from fye_pipeline.storage.files import digest_of_folder
from fye_pipeline.world import World


class Mean(torch.nn.Module):
    """Stands for a network of features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips of two heads, and one of the first that is shorter."""
    folder, world = tmp_path_factory.mktemp("drivers"), World(CanonicalFace.load(), size=128)
    clips = [list(world.clip("held", person, frames=4).frames) for person in (0, 1)]
    frames = {"own": clips[0], "other": clips[1], "short": clips[0][:2]}
    return {name: make_video(folder / f"{name}.mp4", made, fps=Fraction(12)) for name, made in frames.items()}


class Evaluation:
    """`fye evaluate` on one driver whose first frame is the portrait; what a model makes is a copy of `made`."""

    def __init__(self, fye: Fye, folder: Path, drivers: dict[str, Path], flags: tuple[Any, ...]) -> None:
        self._fye, self.folder, self._flags = fye, folder, flags
        self.made, self.driver = drivers["own"], folder / "driver.mp4"
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "weights.bin").write_bytes(b"A")
        shutil.copy(drivers["own"], self.driver)
        (folder / "rows.jsonl").write_text(json.dumps({"driving": "driver.mp4"}))

    def animate(self, settings: AnimationSettings, target: Path, **_: Any) -> None:
        shutil.copy(self.made, target)

    def __call__(self, *flags: Any) -> dict[str, Any]:
        target = self.folder / "figures.json"
        files = (self.folder / "rows.jsonl", "--json", target, "--model", self.model)
        code, _, err = self._fye("evaluate", *files, *self._flags, *flags)
        assert code == 0, err
        return json.loads(target.read_text())

    def refused(self, *flags: Any) -> str:
        files = (self.folder / "rows.jsonl", "--json", self.folder / "figures.json", "--model", self.model)
        return self._fye.refused("evaluate", *files, *self._flags, *flags)


@pytest.fixture
def evaluation(
    fye: Fye, tmp_path: Path, drivers: dict[str, Path], face_landmarker_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Evaluation:
    made = Evaluation(fye, tmp_path, drivers, ("--face-landmarker", face_landmarker_path))
    monkeypatch.setattr(pair_evaluator, "animate", made.animate)
    return made


def test_more_frames_than_before_are_measured_with_their_own_landmarks(evaluation: Evaluation) -> None:
    assert evaluation("--frames", 2)["rows"]["driver"]["frames"] == 2
    assert evaluation("--frames", 4, "--overwrite")["rows"]["driver"]["frames"] == 4


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_replaced_driver_is_measured_with_its_own_landmarks(
    evaluation: Evaluation, drivers: dict[str, Path], flag: str
) -> None:
    before = evaluation()["rows"]["driver"]
    assert before["method"]["lmd"] < 1
    shutil.copy(drivers["other"], evaluation.driver)
    evaluation.made = drivers["other"]
    after = evaluation(flag)["rows"]["driver"]
    assert after["still"]["l1"] != before["still"]["l1"]
    assert after["method"]["lmd"] < 1, "another head's landmarks are tens of pixels away"


def test_a_replaced_finished_video_is_measured_anew(evaluation: Evaluation, drivers: dict[str, Path]) -> None:
    finished = evaluation.folder / "finished"
    finished.mkdir()
    shutil.copy(drivers["own"], finished / "driver.mp4")
    assert evaluation("--outputs", finished)["rows"]["driver"]["method"]["l1"] == 0
    shutil.copy(drivers["other"], finished / "driver.mp4")
    assert evaluation("--outputs", finished, "--resume")["rows"]["driver"]["method"]["l1"] > 0.01


def test_features_of_another_model_are_not_used(evaluation: Evaluation) -> None:
    network = evaluation.folder / "mean.pt"
    torch.jit.script(Mean()).save(str(network))
    assert evaluation("--fid", network)["self"]["this model"]["fid"] == pytest.approx(0, abs=1e-4)
    (evaluation.model / "weights.bin").write_bytes(b"B")
    assert evaluation("--overwrite")["self"]["this model"]["fid"] is None


def test_a_run_is_not_resumed_with_other_weights_of_the_same_size_and_time(evaluation: Evaluation) -> None:
    evaluation()
    weights = evaluation.model / "weights.bin"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    weights.unlink()
    weights.write_bytes(b"B")
    os.utime(weights, ns=times)
    assert "other settings" in evaluation.refused("--resume")


def test_a_run_is_not_resumed_with_another_network_of_the_same_name(evaluation: Evaluation) -> None:
    network = evaluation.folder / "mean.pt"
    torch.jit.script(Mean()).save(str(network))
    evaluation("--fid", network)
    torch.jit.script(torch.nn.Sequential(Mean(), torch.nn.ReLU())).save(str(network))
    assert "other settings" in evaluation.refused("--fid", network, "--resume")


def evaluator_of(folder: Path, **options: Any) -> PairEvaluator:
    """One pair and a model that is a folder with one file."""
    driver, model = folder / "driver.mp4", folder / "model"
    driver.write_bytes(b"driver")
    (model / "unet").mkdir(parents=True, exist_ok=True)
    (model / "unet" / "weights.bin").write_bytes(b"A")
    settings = AnimationSettings(reference=driver, driving=driver, model=model, **options)
    return PairEvaluator((Pair("a", driver),), settings, folder, Weights())


def test_a_preset_is_known_by_its_schedule(tmp_path: Path) -> None:
    made = evaluator_of(tmp_path, cache={"preset": "fast"})
    presets.write(tmp_path / "model", {"fast": {"steps": [0, 5, 9]}}, {})
    before = made.made_with()
    presets.write(tmp_path / "model", {"fast": {"steps": [0, 3, 9]}}, {})
    assert made.made_with() != before
    assert json.loads(json.dumps(before)) == before
    other = evaluator_of(tmp_path, cache={"N": 3})
    before = other.made_with()
    presets.write(tmp_path / "model", {"fast": {"steps": [0, 4, 9]}}, {})
    assert other.made_with() == before, "what is tuned matters to those who use it"


def test_landmarks_belong_to_the_detector_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, kept = evaluator_of(tmp_path), set()
    for content in (b"one", b"another"):
        (tmp_path / "face.task").write_bytes(content)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "face.task"))
        kept.add(made.landmarks_of(made.pairs[0].driving))
    assert len(kept) == 2


def test_a_folder_is_known_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "weights.bin"
    file.write_bytes(b"A" * 100)
    digests = [digest_of_folder(tmp_path)]
    os.utime(file, ns=(0, 0))
    assert digest_of_folder(tmp_path) == digests[0]
    file.unlink()
    file.write_bytes(b"B" * 100)
    os.utime(file, ns=(0, 0))
    digests.append(digest_of_folder(tmp_path))
    file.rename(tmp_path / "weights.bin")
    digests.append(digest_of_folder(tmp_path))
    assert len(set(digests)) == 3

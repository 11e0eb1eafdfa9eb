"""`fye tune`, the presets it keeps beside a model, and those that ship."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ticache
from fye_pipeline import FollowYourEmojiPipeline, presets
from fye_pipeline.errors import UserError
from fye_pipeline.models.files import SHIPPED_MODEL
from ticache.provenance import Provenance

if TYPE_CHECKING:
    from fye_command import Fye

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tuning.json"
SMALL = ["--frames", 1, "--clips", 1, "--check-clips", 1, "--steps", 3, "--trials", 1]


def tuned(steps: tuple[int, ...] = (0, 4, 9), num_steps: int = 10) -> ticache.CacheConfig:
    figures = {"tuned": {"calibration": 50.0, "check": 49.0}, "late": {"calibration": 48.0, "check": 47.0}}
    found = Provenance(
        model={"class": "X", "config": "1", "weights": "2"},
        scheduler=None,
        num_steps=num_steps,
        size=[1],
        metric="psnr",
        region=False,
        goal={"full_steps": 3},
        figures=figures,
        trials=1,
        seed=0,
    )
    return ticache.CacheConfig(steps=steps, cut="output", provenance=found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as presets look at it."""
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "weights.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def plain(config: ticache.CacheConfig) -> dict[str, Any]:
    return json.loads(config.to_json())


def test_a_preset_of_the_model_goes_before_the_generic_one(folder: Path) -> None:
    presets.write(folder, {"fast": plain(tuned())}, {})
    text, rest = presets.resolve({"preset": "fast", "order": 1}, folder)
    assert text is not None
    assert ticache.CacheConfig.from_json(text) == tuned()
    assert rest == {"order": 1}


@pytest.mark.parametrize("options", [{"N": 3}, {"preset": "paper"}, {"preset": "fast", "N": 4}])
def test_what_asks_for_another_schedule_is_left_alone(
    folder: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    presets.write(folder, {"fast": plain(tuned())}, {})
    assert presets.resolve(options, folder) == (None, options)
    assert not caplog.records


def test_without_an_own_preset_the_generic_one_is_used_and_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fye"):
        for _ in range(2):
            assert presets.resolve({"preset": "balanced"}, folder) == (None, {"preset": "balanced"})
        presets.write(folder, {"fast": plain(tuned())}, {})
        (folder / "unet" / "weights.safetensors").write_bytes(b"other weights")
        assert presets.resolve({"preset": "fast"}, folder)[0] is None
    assert [record.message for record in caplog.records] == [
        "preset balanced is the generic one of ticache: the model model has none of its own",
        "preset fast is the generic one of ticache: that of the model model was tuned on other weights",
    ]


def test_presets_of_other_weights_go_when_new_ones_come(folder: Path) -> None:
    presets.write(folder, {"fast": plain(tuned())}, {})
    presets.write(folder, {"faithful": plain(tuned((0, 1, 9)))}, {})
    content = presets.read(folder)
    assert content is not None
    assert set(content["presets"]) == {"fast", "faithful"}
    (folder / "unet" / "weights.safetensors").write_bytes(b"other weights")
    presets.write(folder, {"balanced": plain(tuned())}, {})
    content = presets.read(folder)
    assert content is not None
    assert set(content["presets"]) == {"balanced"}
    (folder / presets.FILE).write_text("{}")
    with pytest.raises(UserError, match=r"is no file of presets: delete it"):
        presets.read(folder)


def test_fye_tune_finds_keeps_and_uses_a_preset(
    fye: Fye, random_model: Path, tmp_path: Path, face_landmarker_path: Path
) -> None:
    model = shutil.copytree(random_model, tmp_path / "model")
    output = tmp_path / "tuned.json"
    asked = ["tune", "--model", model, "--face-landmarker", face_landmarker_path, *SMALL]
    code, out, err = fye(*asked, "--full-steps", 2, "--face", "--as-preset", "fast", "--output", output, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found == json.loads(output.read_text())
    assert found["steps"][0] == 0
    assert len(found["steps"]) == 2
    provenance = found["provenance"]
    assert (provenance["num_steps"], provenance["region"], provenance["goal"]) == (3, True, {"full_steps": 2})
    assert provenance["model"]["class"] == "DenoisingUNet"

    pipe = FollowYourEmojiPipeline.from_pretrained(model)
    assert list(pipe.enable_cache(preset="fast").config.steps or ()) == found["steps"]
    assert pipe.enable_cache(preset="fast", N=3).config.steps is None
    assert "has a preset fast" in fye.refused(*asked, "--full-steps", 2, "--as-preset", "fast")
    assert "exists; pass --overwrite" in fye.refused(*asked, "--full-steps", 2, "--output", output)


def test_fye_tune_calibrate_keeps_recordings_beside_the_presets(fye: Fye, random_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(random_model, tmp_path / "model")
    presets.write(model, {"fast": plain(tuned())}, {"steps": 10})
    code, _, err = fye("tune", "--model", model, "--calibrate", "--frames", 1, "--clips", 2, "--steps", 3)
    assert code == 0, err
    content = presets.read(model)
    assert content is not None
    assert set(content["presets"]) == {"fast"}
    assert content["conditions"] == {"steps": 10}
    recordings = content["calibration"]["recordings"]
    assert sorted((each["kind"]["guided"], each["runs"]) for each in recordings) == [(False, 2), (True, 2)]
    presets.write(model, {"faithful": plain(tuned())}, {})
    content = presets.read(model)
    assert content is not None
    assert content["calibration"]["recordings"] == recordings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--full-steps", 40], "--full-steps must be at most the 30 denoising steps, got 40"),
        (["--full-steps", 4, "--target-psnr", 45], "exclude each other"),
        (["--model", "absent"], "absent does not exist"),
        (["--cut", "outer,inner"], "--cut must be some of outer, output and branches, with commas, got 'outer,inner'"),
    ],
)
def test_bad_flags_are_one_sentence(fye: Fye, face_landmarker_path: Path, flags: list[Any], message: str) -> None:
    assert message in fye.refused("tune", "--face-landmarker", face_landmarker_path, *flags)


def test_the_presets_that_ship_are_for_the_model_that_ships_and_from_the_recorded_run() -> None:
    content = presets.read(SHIPPED_MODEL)
    assert content is not None
    assert set(content["presets"]) == set(presets.NAMES)
    assert content["files"] == presets.weight_files(SHIPPED_MODEL), "run python -m benchmarks.tuning --quick --ship"
    recorded = json.loads(RESULTS.read_text())
    rows = {row["name"]: row for row in recorded["rows"]}
    for name, values in content["presets"].items():
        assert rows[f"preset {name}"]["config"] == values
        config = ticache.CacheConfig.from_json(json.dumps(values))
        assert config.provenance is not None
        assert config.provenance.figures["tuned"]["check"] > 40
    assert content["conditions"]["model_hash"] == recorded["conditions"]["model_hash"]
    tuned = ticache.CacheConfig.from_json(json.dumps(content["presets"]["fast"])).provenance
    assert tuned is not None
    assert content["calibration"]["model"] == tuned.model, "run fye tune --calibrate"


def test_the_document_shows_the_recorded_run() -> None:
    benchmark = pytest.importorskip("benchmarks.tuning.command")
    drawing = pytest.importorskip("benchmarks.plots.style")
    recorded = json.loads(RESULTS.read_text())
    text = (ROOT / "docs" / "tune.md").read_text(encoding="utf-8")
    assert benchmark.figures_of(recorded["rows"], recorded["conditions"]) in text
    for theme in ("light", "dark"):
        picture = (ROOT / "docs" / "images" / f"tuning-{theme}.svg").read_text(encoding="utf-8")
        assert f"rows {drawing.digest(recorded['rows'])}" in picture

"""Several people in one picture, moved by features: whose driver reaches whom, and what the table's rows are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fye_command import Fye
from safetensors.torch import load_file

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.errors import UserError
from fye_pipeline.evaluation import people as table
from fye_pipeline.evaluation.run import Run
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.multi_portrait import metrics
from fye_pipeline.multi_portrait.group_model import (
    SHIPPED,
    ExpressionBranch,
    conditions_of,
    generate_group,
    posed_landmarks,
)
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor
from fye_pipeline.training import scene_adapter
from fye_pipeline.training.scene_adapter import AdapterConfig, train_adapter
from fye_pipeline.world import World

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")


@pytest.fixture(scope="module")
def case() -> table.Case:
    return table.make_case(World(CanonicalFace.load()), table.Plan(frames=2), 0, RenderedExtractor())


@pytest.fixture(scope="module")
def pipe() -> FollowYourEmojiPipeline:
    loaded = FollowYourEmojiPipeline.from_pretrained(SHIPPED_MODEL)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def make(
    pipe: Any, case: table.Case, exchanged: int | None, rule: Any = "exclusive", order: Any = (0, 1)
) -> np.ndarray:
    branch = ExpressionBranch.load(SHIPPED, pipe.unet)
    try:
        driven = case.driven(exchanged)
        faces = [driven[k] for k in order]
        return generate_group(pipe, case.portrait.frames[0], faces, branch, rule=rule, steps=3)
    finally:
        branch.remove()


def leaks(pipe: Any, case: table.Case, rule: Any) -> float:
    base, other, own = (make(pipe, case, exchanged, rule) for exchanged in (None, 1, 0))
    return metrics.pixel_leak(base, other, own, case.scene.masks[0])


def test_an_exchanged_driver_moves_their_own_face_and_hardly_the_other(pipe: Any, case: table.Case) -> None:
    own = leaks(pipe, case, "exclusive")
    assert own < 0.15
    assert leaks(pipe, case, "no_masks") > 2 * own


@pytest.mark.parametrize("people", [2, 3])
def test_each_face_follows_its_own_driver(pipe: Any, people: int) -> None:
    several = table.make_case(World(CanonicalFace.load()), table.Plan(people=people, frames=3), 3, RenderedExtractor())
    video = make(pipe, several, None, order=range(people))
    with FaceLandmarkDetector(max_faces=1) as detector:
        made, truth = (table.tracks_of(several, each, detector.detect) for each in (video, several.truth))
    for person in range(people):
        errors = [
            metrics.lmd(made[person].landmarks, each.landmarks, seen=made[person].found & each.found) for each in truth
        ]
        others = [error for number, error in enumerate(errors) if number != person]
        assert errors[person] <= min(others) / 2


def test_the_order_of_people_with_their_drivers_does_not_matter(pipe: Any, case: table.Case) -> None:
    first, second = make(pipe, case, None), make(pipe, case, None, order=(1, 0))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_the_branch_leaves_the_model_as_it_was(pipe: Any, case: table.Case) -> None:
    before = [module.processor for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    branch = ExpressionBranch.load(SHIPPED, pipe.unet)
    branch.remove()
    after = [module.processor for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_a_pose_alone_keeps_the_face_in_its_own_pose(case: table.Case) -> None:
    face = case.drivers[0].face
    again = posed_landmarks(face, face.transforms[:])[0]
    assert np.abs(again[:, :2] - face.landmarks[0][:, :2]).max() < 0.01


def test_conditions_show_everybody_and_trust_no_eyes_and_mouths(case: table.Case) -> None:
    made = conditions_of(case.portrait.frames[0], case.driven())
    whole = conditions_of(case.portrait.frames[0], case.driven(), pose_only=False)
    assert made.masks.shape == (2, 2, 128, 256)
    assert made.masks.any((1, 2, 3)).all()
    assert made.drawn[:, :, :128].any()
    assert made.drawn[:, :, 128:].any()
    assert (made.bent[..., 3] == 0).mean() > (whole.bent[..., 3] == 0).mean()


def test_a_branch_is_read_back_as_it_was_written(pipe: Any, tmp_path: Path) -> None:
    branch = ExpressionBranch(pipe.unet, augment=("lip",))
    torch.nn.init.normal_(next(iter(branch.adapter.processors.values())).to_v.weight)
    branch.save(tmp_path)
    branch.remove()
    read = ExpressionBranch.load(tmp_path, pipe.unet)
    read.remove()
    for name, value in branch.adapter.state_dict().items():
        torch.testing.assert_close(read.adapter.state_dict()[name], value.half().float())


def test_scenes_of_another_seed_or_of_one_person_are_made_anew(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int, bool]] = []

    def told(pipe: Any, world: World, extract: Any, index: int, *, single: bool) -> dict[str, torch.Tensor]:
        made.append((world.seed, index, single))
        return {"seed": torch.tensor(world.seed)}

    monkeypatch.setattr(scene_adapter, "prepare_scene", told)
    for seed, single in ((0, False), (0, False), (1, False), (1, True)):
        scene_adapter.prepare_scenes(pipe, tmp_path, AdapterConfig(scenes=2, seed=seed, single=single), print)
    assert made == [(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, False), (1, 0, True), (1, 1, True)]
    assert int(load_file(tmp_path / "00001.safetensors")["seed"]) == 1


def test_a_scene_of_single_faces_has_one_person(pipe: Any) -> None:
    prepare = partial(scene_adapter.prepare_scene, pipe, World(CanonicalFace.load()), RenderedExtractor())
    crowd = next(k for k in range(9) if prepare(k)["masks"][1].any())
    assert not prepare(crowd, single=True)["masks"][1].any()
    assert prepare(crowd, single=True)["masks"][0].any()


def test_training_lowers_the_loss_goes_on_and_leaves_a_branch(tmp_path: Path) -> None:
    told: list[str] = []
    run = partial(train_adapter, output=tmp_path / "run", report=told.append, data=tmp_path / "scenes")
    run(AdapterConfig(scenes=1, steps=4, batch=1, checkpoint_every=2, stop_after=2))
    folder = run(AdapterConfig(scenes=1, steps=4, batch=1, checkpoint_every=2), resume=True)
    assert "adapter: resumed at step 2" in told
    assert {path.name for path in folder.iterdir()} >= {"expression_adapter.safetensors", "encoder"}


def test_training_goes_on_from_a_branch(tmp_path: Path) -> None:
    made = train_adapter(AdapterConfig(scenes=1, steps=0, init=SHIPPED), tmp_path / "run", print)
    former = load_file(SHIPPED / "expression_adapter.safetensors")
    again = load_file(made / "expression_adapter.safetensors")
    assert former.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in former.items())


def test_the_table_has_every_row_with_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake(pipe: Any, picture: Any, faces: Any, branch: Any, **options: Any) -> np.ndarray:
        rng = np.random.default_rng(options["seed"])
        still = np.repeat(picture[None] / 255.0, len(faces[0].driver), 0)
        return np.clip(still + rng.normal(0, 0.01, still.shape) * faces[0].features["lip"].mean(), 0, 1)

    monkeypatch.setattr(table, "generate_group", fake)
    monkeypatch.setattr(table, "ablation_folder", lambda row: SHIPPED)
    result = table.evaluate_people(table.Plan(clips=1, frames=2, steps=1), Run(tmp_path / "t.json"))
    assert tuple(result["rows"]) == table.ROWS
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == result["rows"]
    for row in result["rows"].values():
        assert set(row) == {*table.FIGURES, "leak"}
        assert set(row["leak"]) == {"pixels", "landmarks"}
    assert result["conditions"]["people"] == 2
    assert table.describe(result).count("\n") == 1 + len(table.ROWS)


def test_a_table_that_was_broken_off_goes_on_and_an_old_one_is_not_mixed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[int] = []

    def fake(pipe: Any, picture: Any, faces: Any, branch: Any, **options: Any) -> np.ndarray:
        if len(made) == 4 and not stopped:
            raise KeyboardInterrupt
        made.append(options["seed"])
        return np.repeat(picture[None] / 255.0, len(faces[0].driver), 0)

    monkeypatch.setattr(table, "generate_group", fake)
    monkeypatch.setattr(table, "ablation_folder", lambda row: SHIPPED)
    plan, stopped = table.Plan(clips=1, frames=2, steps=1), False
    with pytest.raises(KeyboardInterrupt):
        table.evaluate_people(plan, Run(tmp_path / "t.json"))
    stopped = True
    with pytest.raises(UserError, match="--resume"):
        table.evaluate_people(plan, Run(tmp_path / "t.json"))
    with pytest.raises(UserError, match="other settings"):
        table.evaluate_people(table.Plan(clips=1, frames=2, steps=2), Run(tmp_path / "t.json", resume=True))
    result = table.evaluate_people(plan, Run(tmp_path / "t.json", resume=True))
    assert tuple(result["rows"]) == table.ROWS
    assert len(made) == 4 + 5 * 3, "the first row is not made again"
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_a_wrong_number_of_people_ends_in_a_sentence() -> None:
    with pytest.raises(UserError, match="2 or 3"):
        table.Plan(people=5)


def test_options_of_a_single_face_are_refused_with_several_people(fye: Fye) -> None:
    assert fye("evaluate", "rendered", "--people", 2, "--N", 3, "--cross")[0] == 2

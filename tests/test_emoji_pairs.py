"""Data iteration: which pairs stay, what a swap leaves alone, and that a killed run goes on to the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from emoji_parts import small_model

from fye_pipeline.emoji.face_nets import as_batch
from fye_pipeline.emoji.pairs import (
    IterateConfig,
    Iteration,
    Score,
    judge,
    load_swap,
    mesh_swap,
    read_pairs,
    recolour,
    strangers,
)
from fye_pipeline.emoji.people import Meta, People, render_people
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World


def score(number: int, exp: float, lms: float, identity: float = 0.0) -> Score:
    return Score(number, 0, 1, 1, 2, 3, exp, lms, identity)


FAR = np.linspace(-0.2, 0.2, 50)  # identity scores of strangers


def test_what_is_near_in_both_stays() -> None:
    """The paper prints its limits as what it excludes; smaller is better, so it is what stays."""
    rows = [score(0, 0.05, 0.18), score(1, 0.051, 0.1), score(2, 0.01, 0.181), score(3, 0.2, 0.2), score(4, 0.3, 5.0)]
    reasons = [verdict.reason for verdict in judge(rows, FAR, keep=None)]
    assert reasons == [None, "exp", "lms", "exp", "lms"]


def test_by_rank_a_share_stays_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    rows = [score(n, *values) for n, values in enumerate(rng.random((100, 2)) + 0.1)]
    kept = [v.score.number for v in judge(rows, FAR) if v.reason is None]
    larger = [replace(row, exp=row.exp * 7, lms=row.lms * 0.2) for row in rows]
    assert kept == [v.score.number for v in judge(larger, FAR) if v.reason is None]
    assert len(kept) == 83
    worst = max(max(rows[n].exp / 0.6, rows[n].lms / 0.6) for n in kept)
    dropped = [row for row in rows if row.number not in kept]
    assert min(max(row.exp / 0.6, row.lms / 0.6) for row in dropped) > 0.9 * worst


def test_a_picture_that_is_still_the_person_goes() -> None:
    rows = [score(0, 0.01, 0.01, identity=0.17), score(1, 0.01, 0.01, identity=0.15)]
    assert [v.reason for v in judge(rows, FAR, keep=None)] == ["lookalike", None]


def test_strangers_are_compared_with_the_next_in_line() -> None:
    vectors = torch.eye(3)
    vectors[2] = vectors[0]
    assert strangers(vectors).tolist() == [1.0, 0.0, 0.0]


def test_swaps_have_names_and_others_are_refused() -> None:
    assert load_swap("none") is None
    assert load_swap("recolour") is recolour
    assert load_swap("fye_pipeline.emoji.pairs:mesh_swap") is mesh_swap
    for wrong in ("paint", "no.module:function", "fye_pipeline.emoji.pairs:gone"):
        with pytest.raises(UserError, match="--swap must be none, recolour, mesh or module:function"):
            load_swap(wrong)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    world = World(CanonicalFace.load(), size=128)
    return render_people(world, tmp_path_factory.mktemp("people"), Meta(0, "train", 400_000, 6))


def mean_skin(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    cheeks = (landmarks[[50, 280, 4, 151], :2] * 128).round().astype(int)
    return np.mean([picture[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1)) for x, y in cheeks], axis=0)


def test_recolouring_takes_the_donors_colours(people: People) -> None:
    skins = np.array([mean_skin(people.pictures[p, 0], people.landmarks[p, 0]) for p in range(6)])
    distances = np.linalg.norm(skins[:, None] - skins, axis=-1)
    own, donor = map(int, np.unravel_index(distances.argmax(), distances.shape))
    pictures, landmarks = np.asarray(people.pictures[:, 0]), np.asarray(people.landmarks[:, 0])
    swapped = recolour(pictures[own], landmarks[own], pictures[donor], landmarks[donor])
    after = mean_skin(swapped, landmarks[own])
    assert np.linalg.norm(after - skins[donor]) < 0.5 * distances[own, donor]


def test_a_mesh_swap_paints_the_donor_inside_the_face_only(people: People) -> None:
    pictures, landmarks = np.asarray(people.pictures[:, 0]), np.asarray(people.landmarks[:, 0])
    swapped = mesh_swap(pictures[0], landmarks[0], pictures[1], landmarks[1])
    changed = np.abs(swapped.astype(int) - pictures[0]).max(-1)
    x, y = (landmarks[0, 1, :2] * 128).astype(int)  # the tip of the nose
    assert changed[y - 8 : y + 8, x - 8 : x + 8].mean() > 4
    assert changed[:8].max() == changed[:, :8].max() == 0


def test_recolouring_leaves_the_expression_alone(people: People) -> None:
    """Edges stay where they are: the picture's gradients, each over its mean, hardly change."""
    pictures, landmarks = np.asarray(people.pictures[:, 0]), np.asarray(people.landmarks[:, 0])
    swapped = recolour(pictures[0], landmarks[0], pictures[1], landmarks[1])
    edges = [np.abs(np.diff(p.astype(float).mean(-1), axis=0)) for p in (pictures[0], swapped, pictures[1])]
    same, other = (np.corrcoef(edges[0].ravel(), e.ravel())[0, 1] for e in edges[1:])
    assert same > 0.8
    assert same > other + 0.3


CONFIG = IterateConfig(count=10, steps=1, guidance=1.0, batch=4)


def test_killed_and_resumed_it_is_the_same(people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    Iteration(model, people, tmp_path / "whole", CONFIG).run()
    stopped = Iteration(model, people, tmp_path / "stopped", CONFIG)
    make, calls = stopped._make, []

    def interrupted(numbers: range) -> list[str]:
        calls.append(numbers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(numbers)

    monkeypatch.setattr(stopped, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    with (tmp_path / "stopped" / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"number": 4, "per')  # a line that a kill cut off
    assert not (tmp_path / "stopped" / "manifest.jsonl").exists()
    with pytest.raises(UserError, match="holds no finished pairs"):
        read_pairs(tmp_path / "stopped")
    resumed = Iteration(model, people, tmp_path / "stopped", CONFIG)
    done: list[int] = []
    resumed.run(lambda count, total: done.append(count))
    assert done == [8, 10], "a whole batch was made again"
    for name in ("manifest.jsonl", "scores.jsonl", "crops.npy", "crops_before_swap.npy"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_pairs_of_other_settings_are_not_mixed(people: People, tmp_path: Path) -> None:
    model = small_model()
    Iteration(model, people, tmp_path, CONFIG).run()
    with pytest.raises(UserError, match="made with other settings"):
        Iteration(model, people, tmp_path, replace(CONFIG, swap="none")).run()


def test_the_manifest_says_who_was_made_of_whom(people: People, tmp_path: Path) -> None:
    verdicts = Iteration(small_model(), people, tmp_path, CONFIG).run()
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["number"] for row in rows] == list(range(10))
    assert all(row["identity"] != row["person"] != row["donor"] for row in rows)
    assert {(row["person"], row["take"]) for row in rows} == {(n % 6, 1 + n // 6) for n in range(10)}
    kept = [row for row in rows if row["kept"]]
    assert len(kept) == sum(v.reason is None for v in verdicts) < 10
    pairs, everything = read_pairs(tmp_path), read_pairs(tmp_path, judged=False, swapped=False)
    assert pairs.rows.tolist() == [[row["person"], row["take"]] for row in kept]
    assert len(everything.rows) == 10
    crops, before = (np.load(tmp_path / name) for name in ("crops.npy", "crops_before_swap.npy"))
    assert np.array_equal(pairs.crops, crops[[row["number"] for row in kept]])
    assert np.array_equal(everything.crops, before)
    assert not np.array_equal(crops, before)


def test_people_are_rendered_once_and_again_alike(people: People, tmp_path: Path) -> None:
    world = World(CanonicalFace.load(), size=128)
    again = render_people(world, tmp_path, people.meta)
    assert np.array_equal(again.pictures, people.pictures)
    assert np.array_equal(again.swapped, people.swapped)
    assert again.prompts == people.prompts
    (tmp_path / "prompts.json").write_text('[["kept"]]', encoding="utf-8")
    assert render_people(world, tmp_path, people.meta).prompts == [["kept"]], "what is there was rendered again"
    assert len(render_people(world, tmp_path, replace(people.meta, people=2))) == 2


def test_twins_share_the_expression_and_not_the_person(people: People) -> None:
    """`swapped` shows another's face with the same landmarks of the expression."""
    for person in range(6):
        assert people.others[person].tolist() != [person] * 5
        assert person not in people.others[person]
    own, twin = as_batch(people.crops[:, 1]), as_batch(people.swapped[:, 0])
    assert (own - twin).abs().mean() > 0.02

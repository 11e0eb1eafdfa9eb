"""The table's arithmetic: who is asked for, what a colour is worth, and which layers are chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fye_pipeline.emoji.evaluate import (
    ROWS,
    Evaluation,
    Plan,
    Seen,
    ask,
    compare,
    describe,
    interval,
    row_files,
    style_distance,
    write,
)
from fye_pipeline.emoji.layers import Choice, GroupEnergy, choose_layers, ranked
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.emoji.pairs import compare_expressions
from fye_pipeline.emoji.people import BACKGROUNDS, Meta, People, caption, render_people, render_twins, sample_look
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    world = World(CanonicalFace.load(), size=128)
    return render_people(world, tmp_path_factory.mktemp("people"), Meta(0, "held", 400_000, 5))


def test_two_different_people_are_asked_for(people: People) -> None:
    asked, again, other = (ask(people, Plan(pairs=40, seed=seed)) for seed in (0, 0, 1))
    assert (asked.people != asked.others).all()
    assert (asked.takes >= 1).all()
    assert np.bincount(asked.people).tolist() == [8] * 5
    assert asked.prompts == again.prompts
    assert asked.seeds == again.seeds != other.seeds


def test_twins_are_the_asked_people_with_the_asked_expressions(people: People) -> None:
    world = World(CanonicalFace.load(), size=128)
    who, others, takes = np.array([0, 1]), np.array([2, 2]), np.array([3, 3])
    twins = render_twins(world, people, who, others, takes, seed=0)
    assert twins.shape == (2, 128, 128, 3)
    # The same motion puts both heads in the same place: their outlines agree, their colours do not.
    edges = [np.abs(np.diff(p.astype(float).mean(-1), axis=0))[30:100, 30:100].ravel() for p in twins]
    assert np.corrcoef(*edges)[0, 1] > 0.3
    assert np.abs(twins[0].astype(float) - twins[1]).mean() > 5


def test_expressions_are_compared_pair_by_pair(people: People) -> None:
    marks = torch.from_numpy(np.array(people.landmarks[0, 1:4, :, :2]))
    shapes = torch.from_numpy(np.array(people.scores[0, 1:4]))
    exp, lms = compare_expressions(marks, shapes, marks, shapes)
    assert exp.tolist() == lms.tolist() == [0, 0, 0]
    exp, lms = compare_expressions(marks, shapes, marks.roll(1, 0), shapes.roll(1, 0))
    assert exp[0] == pytest.approx(float((shapes[0] - shapes[2]).abs().mean()))
    assert (lms > 0).all()


def test_a_picture_follows_what_was_asked_of_it_and_not_of_another(people: People) -> None:
    """Judged as the asked expressions themselves: each is nearest to its own; as those of the next, to the other's."""
    shapes = torch.from_numpy(np.array(people.scores[0, 1:4]))
    marks = torch.from_numpy(np.array(people.landmarks[0, 1:4, :, :2]))
    vectors = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    wanted = Seen(marks, shapes, vectors)
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.wanted, evaluation.portraits, evaluation.strangers = wanted, vectors, vectors.roll(2, 0)
    evaluation.plain = pictures = np.array(people.pictures[0, 1:4])

    class Told:
        def __init__(self, shift: int) -> None:
            self.shift = shift

        def look(self, pictures: object) -> Seen:
            return Seen(marks, shapes.roll(self.shift, 0), vectors.roll(self.shift, 0))

    for shift, share in ((0, 1.0), (1, 0.0)):
        evaluation.judges = Told(shift)  # pyright: ignore[reportAttributeAccessIssue]
        figures = evaluation.measure(pictures)
        assert figures["follows_expression"].mean() == figures["follows_identity"].mean() == share


def test_style_is_colour_in_skin_and_background(people: People) -> None:
    picture, marks = np.array(people.pictures[0, 0]), np.asarray(people.landmarks[0, 0])
    assert style_distance(picture, picture, marks) == 0
    tinted = picture.copy()
    tinted[:20] = (10, 200, 10)
    small = style_distance(tinted, picture, marks)
    inverted = style_distance(255 - picture, picture, marks)
    assert 0 < small < inverted <= 1


def test_an_interval_holds_the_mean_and_narrows() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, 400)
    low, high = interval(values)
    assert low < values.mean() < high
    few = interval(values[:40])
    assert high - low < few[1] - few[0]


def test_rows_are_compared_pair_by_pair() -> None:
    figures = ("exp", "lms", "id", "leak", "style_leak")
    refined = {name: np.arange(20.0) for name in figures}
    base = {name: np.arange(20.0) + 1 for name in figures}
    told = compare({"refined": refined, "base": base})
    assert list(told) == ["refined - base"]
    assert told["refined - base"]["exp"] == [-1.0, -1.0, -1.0]


def test_a_row_is_the_models_own_or_the_tables_or_not_there(tmp_path: Path) -> None:
    EmojiSettings(stage="aligned").write(tmp_path)
    (tmp_path / "table").mkdir()
    for row in ("base", "refined", "refined_no_swap", "refined_no_filter"):
        (tmp_path / "table" / f"{row}.safetensors").touch()
    (tmp_path / "expression.safetensors").touch()
    files = row_files(tmp_path, tmp_path / "table")
    assert list(files) == [row for row in ROWS if row != "oracle"]
    assert files["aligned"] == files["no_expression"] == tmp_path / "expression.safetensors"
    assert files["base"] == tmp_path / "table" / "base.safetensors"
    EmojiSettings(stage="image_prompt").write(tmp_path)
    assert row_files(tmp_path, tmp_path / "table")["base"] == tmp_path / "expression.safetensors"


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    write({"rows": {"base": {"exp": float("nan"), "interval": (0.1, float("inf"))}}}, tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == {
        "rows": {"base": {"exp": None, "interval": [0.1, None]}}
    }


def test_the_table_names_every_row() -> None:
    row = dict.fromkeys(("exp", "lms", "id", "leak", "style_leak"), 0.25)
    text = describe({"rows": dict.fromkeys(ROWS, row), "floors": row})
    assert [line.split()[0] for line in text.splitlines()[1:]] == [*ROWS, "floor"]
    none = dict.fromkeys(row) | {"error": "oracle.safetensors is not in emoji"}
    text = describe({"rows": {"base": row, "oracle": none}, "floors": row})
    assert text.splitlines()[2].split(maxsplit=1) == ["oracle", "oracle.safetensors is not in emoji"]


def test_a_caption_says_what_the_picture_shows() -> None:
    rng = np.random.default_rng(0)
    texts = [caption(look, True, rng) for look in (sample_look(rng) for _ in range(200))]
    assert all("woman" in text for text in texts)
    assert any(text.startswith("an ink painting of a woman") for text in texts)
    assert {word for word in BACKGROUNDS if any(f"{word} background" in t for t in texts)} == set(BACKGROUNDS)
    assert not any("background" in t for t in texts if t.startswith("an ink"))  # ink has no colours


# Layers


def energies() -> list[GroupEnergy]:
    return [GroupEnergy("down", 1.0, 9.0, 1.0), GroupEnergy("mid", 2.0, 1.0, 1.0), GroupEnergy("up", 3.0, 4.0, 2.0)]


def test_layers_of_the_face_come_first_by_what_they_tell() -> None:
    assert ranked(energies()) == ["up", "mid", "down"]


def measure(exps: dict[int, float], leaks: dict[int, float], asked: list[Sequence[str] | None]):
    def figures(layers: Sequence[str] | None) -> dict[str, float]:
        asked.append(layers)
        count = 3 if layers is None else len(layers)
        return {"exp": exps[count], "style_leak": leaks[count]}

    return figures


def test_the_smallest_set_that_carries_the_expression_is_chosen() -> None:
    asked: list[Sequence[str] | None] = []
    choice = choose_layers(["up", "mid", "down"], measure({1: 0.2, 2: 0.104, 3: 0.1}, {1: 0.1, 2: 0.4, 3: 1.0}, asked))
    assert choice == Choice(("up", "mid"), choice.tried, "2 of 3 groups")
    assert asked == [None, ("up",), ("up", "mid")]


@pytest.mark.parametrize(
    ("exps", "leaks", "reason"),
    [
        ({1: 0.2, 2: 0.2, 3: 0.1}, {1: 0.1, 2: 0.1, 3: 1.0}, "no part of the groups"),
        ({1: 0.1, 2: 0.1, 3: 0.1}, {1: 0.9, 2: 0.9, 3: 1.0}, "the style leaks with them"),
    ],
)
def test_where_no_set_is_better_all_are_used(exps: dict[int, float], leaks: dict[int, float], reason: str) -> None:
    choice = choose_layers(["up", "mid", "down"], measure(exps, leaks, []))
    assert choice.layers is None
    assert reason in choice.reason

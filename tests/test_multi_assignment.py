"""Who is moved by what: the counts of faces and drivers, and the settings of several people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fye_pipeline.batch.manifest import read_manifest
from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.assignment import assign, parse_assignment
from fye_pipeline.multi_portrait.settings import GroupSettings, without_group


@pytest.mark.parametrize(("text", "wanted"), [("1,0", (1, 0)), ("1, -,0", (1, None, 0)), ("0", (0,)), ("2,2", (2, 2))])
def test_an_assignment_is_read(text: str, wanted: tuple[int | None, ...]) -> None:
    assert parse_assignment(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "1,,0", "-1,0", "1.5", "-,-", "²"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="assign"):
        parse_assignment(text)


def test_as_many_drivers_as_faces_go_left_to_right() -> None:
    assert assign(3, 3, None, "g.png") == (0, 1, 2)
    assert assign(3, 2, (1, None, 0), "g.png") == (1, None, 0)
    assert assign(2, 5, (4, 0), "g.png", spare=True) == (4, 0)


@pytest.mark.parametrize(
    ("faces", "drivers", "asked", "sentence"),
    [
        (3, 2, None, "shows 3 faces and there are 2 drivers: .*--assign 0,1,-"),
        (1, 2, None, "shows 1 face and there are 2 drivers"),
        (2, 3, (0, 2), "shows 2 faces and there are 3 drivers"),
        (3, 2, (0, 1), "shows 3 faces and --assign has 2 entries"),
        (2, 2, (0, 2), "--assign names driver 2 and there are 2"),
    ],
)
def test_counts_that_do_not_fit_are_told(faces: int, drivers: int, asked: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        assign(faces, drivers, asked, "g.png")


def test_the_settings_of_several_people_come_back_from_their_json() -> None:
    made = GroupSettings.from_dict({"reference": "g.png", "drivers": ["a.mp4", "b.mp4"], "assign": "1,0", "steps": 5})
    assert made.driving == Path("a.mp4")
    assert made.assignment == (1, 0)
    assert not made.splits
    assert GroupSettings.from_dict(made.to_dict()) == made


def test_one_driver_with_an_assignment_is_split() -> None:
    made = GroupSettings.from_dict({"reference": "g.png", "driving": "duet.mp4", "assign": "1,0"})
    assert made.splits
    assert made.drivers == (Path("duet.mp4"),)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"drivers": []}, "several drivers"),
        ({"drivers": None, "until": "longest"}, "several drivers"),
        ({"assign": "x"}, "assign must name"),
        ({"audio_from": 2}, "--audio-from names driver 2 and there are 2"),
        ({"audio_from": -1}, "audio_from must be >= 0"),
        ({"face": "2"}, "--face is for one face: with several drivers --assign says who is moved"),
        ({"framing": "crop"}, "--crop-only is for one face: with several drivers each face has a square"),
        ({"until": "never"}, "until cannot be 'never'"),
    ],
)
def test_settings_that_several_people_cannot_have_are_refused(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GroupSettings.from_dict({"reference": "g.png", "drivers": ["a.mp4", "b.mp4"]} | more)


def test_several_drivers_need_a_picture_of_several_people() -> None:
    with pytest.raises(UserError, match="need --reference"):
        GroupSettings.from_dict({"drivers": ["a.mp4", "b.mp4"]})


def test_a_driver_that_is_named_alone_is_of_one_face_whatever_was_before() -> None:
    base = {"drivers": ["a", "b"], "assign": "1,0", "steps": 3}
    assert without_group(base) == {"steps": 3}


def test_the_drivers_of_a_manifest_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("drivers,output\na.mp4; b.mp4,c.mp4\n")
    (row,) = read_manifest(tmp_path / "m.csv")
    assert row.values["drivers"] == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]

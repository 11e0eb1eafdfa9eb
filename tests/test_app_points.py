"""Five points clicked on the page: their order, what is shown, the file that is made, and what will not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.app.controls import CONTROLS, Files, command_line, settings_of
from fye_pipeline.app.points import Clicks, begin, click, new_file_in, take_back
from fye_pipeline.landmarks.points import NAMES, fit_points, read_points

FIVE = ((0.38, 0.33), (0.58, 0.29), (0.53, 0.39), (0.49, 0.46), (0.59, 0.44))


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A picture in which no detector finds a face, larger than the page shows it."""
    Image.new("RGB", (1800, 2400), (90, 80, 70)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def placed(clicks: Clicks, shares: tuple[tuple[float, float], ...], folder: Path) -> Clicks:
    """Click there, in pixels of the picture shown."""
    assert clicks.picture is not None
    height, width = clicks.picture.shape[:2]
    for x, y in shares:
        clicks = click(clicks, (x * width, y * height), new_file_in(folder))
    return clicks


def test_five_clicks_are_a_file_that_the_animator_reads(cat: Path, tmp_path: Path) -> None:
    clicks = begin(cat)
    assert clicks.picture is not None
    assert clicks.picture.shape == (900, 675, 3)
    asked = []
    for at in FIVE:
        asked.append(clicks.sentence)
        assert clicks.file is None
        clicks = placed(clicks, (at,), tmp_path / "uploads")
    assert [each.partition(":")[0] for each in asked] == [f"{count} of 5" for count in (1, 2, 3, 4, 5)]
    assert clicks.file is not None, clicks.sentence
    assert tuple(read_points(clicks.file)) == NAMES
    assert placed(clicks, ((0.9, 0.9),), tmp_path) == clicks, "a sixth changes nothing"
    files = Files.of(reference=cat, points=clicks.file)
    defaults = [control.default for control in CONTROLS]
    assert "--points points.json" in command_line(files.names(), defaults)
    settings = settings_of(files, defaults, {})
    assert settings == AnimationSettings(reference=cat, points=clicks.file)
    face = fit_points(read_points(clicks.file), 1800, 2400)
    np.testing.assert_allclose(face.landmarks[[468, 473], :2], FIVE[:2], atol=1e-3)
    assert hash(clicks) == hash(clicks), "Gradio asks for it, to see whether anything changed"


def test_what_is_clicked_is_shown(cat: Path, tmp_path: Path) -> None:
    clicks = placed(begin(cat), FIVE[:2], tmp_path)
    assert clicks.shown is not None
    changed = (clicks.shown != begin(cat).shown).any(axis=-1)
    for x, y in FIVE[:2]:
        assert changed[round(y * 900), round(x * 675)]
    assert 0 < changed.mean() < 0.01


def test_points_that_are_no_face_are_told_and_taken_back(cat: Path, tmp_path: Path) -> None:
    exchanged = placed(begin(cat), (FIVE[1], FIVE[0], *FIVE[2:]), tmp_path / "uploads")
    assert exchanged.file is None
    assert exchanged.sentence.startswith("Left and right are exchanged")
    assert not (tmp_path / "uploads").exists()
    again = take_back(exchanged)
    assert (len(again.placed), again.sentence.partition(":")[0]) == (4, "5 of 5")
    assert take_back(Clicks()) == Clicks()


def test_a_portrait_that_cannot_be_read_is_told_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("this is no picture", encoding="utf-8")
    told = begin(tmp_path / "broken.png").sentence
    assert "broken.png" in told
    assert str(tmp_path) not in told
    assert begin(None) == Clicks()

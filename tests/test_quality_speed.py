"""The picture of speed and fidelity: the right points, the right front, labels that do not collide."""

from __future__ import annotations

from pathlib import Path

import benchmark_rows
import pytest
from matplotlib.text import Text

from benchmarks.grouping import groups
from benchmarks.plots.quality_speed import Point, draw_all, front, looks, paint, points
from benchmarks.plots.style import LIGHT, OURS, THEMES, spread


def group() -> list[Point]:
    return points(groups(benchmark_rows.acceleration()["rows"])["portrait", "ddim-30"])


def test_points_are_the_rows_with_figures() -> None:
    names = {point.name for point in group()}
    assert "uncached" not in names
    assert "DeepCache N=3 branch 4" not in names  # it failed
    assert {"DDIM 10", "DPM-Solver++ 2M 10", "UniPC 10", "ticache N=3", "tomesd 0.5"} <= names
    ddim = next(point for point in group() if point.name == "DDIM 10")
    assert ddim.ratios["flops_ratio"] == pytest.approx(3)
    assert ddim.ratios["time_ratio"] == 2.95
    assert ddim.psnr == 40.5  # of the face


@pytest.mark.parametrize("ratio", ["time_ratio", "flops_ratio"])
def test_no_point_beats_one_on_the_front(ratio: str) -> None:
    found = group()
    best = front(found, ratio)
    for point in found:
        beaten = any(
            (other.ratios[ratio] or 0) >= (point.ratios[ratio] or 0)
            and other.psnr >= point.psnr
            and (other.ratios[ratio], other.psnr) != (point.ratios[ratio], point.psnr)
            for other in found
        )
        assert (point in best) != beaten, point.name
    assert [point.psnr for point in best] == sorted((point.psnr for point in best), reverse=True)


def test_a_rival_can_be_on_the_front() -> None:
    rival = Point("UniPC 10", "UniPC", {"time_ratio": 9.0}, 90.0)
    assert front([*group(), rival], "time_ratio") == [rival]


def test_rivals_can_be_told_apart() -> None:
    found = looks(group())
    assert len(set(found.values())) == len(found) >= 8
    assert OURS not in {look.colour for look in found.values()}
    for theme in THEMES:
        assert {look.colour for look in found.values()} <= set(theme.colours)
        assert len(set(theme.colours.values())) == len(theme.colours)


def test_every_rival_family_is_labelled_in_both_panels_and_labels_keep_apart() -> None:
    figure = paint(LIGHT, "portrait", group())
    families = {point.family for point in group() if not point.ours}
    figure.canvas.draw()
    for axes in figure.axes:
        texts = {text.get_text(): Text.get_window_extent(text) for text in axes.texts if text.get_text()}
        assert families <= set(texts)
        assert "ticache N=2" in texts  # ours are named at the point
        boxes = [box.shrunk(1, 0.8) for box in texts.values()]  # a line's box is higher than its letters
        for index, box in enumerate(boxes):
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_a_picture_for_each_group_that_can_be_compared(tmp_path: Path) -> None:
    written = {path.name for path in draw_all(benchmark_rows.acceleration(), tmp_path)}
    assert written == {
        f"quality_speed-portrait-{base}-{theme}.svg"
        for base in ("ddim-30", "dpm-solver-20")
        for theme in ("light", "dark")
    }
    light, dark = (
        (tmp_path / f"quality_speed-portrait-ddim-30-{theme}.svg").read_text() for theme in ("light", "dark")
    )
    assert light != dark


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([5], [5]),
        ([5, 20], [5, 20]),
        ([5, 5], [2.5, 7.5]),
        ([5, 6, 20], [3, 8, 20]),
        ([0, 0, 0], [0, 5, 10]),  # pushed up to the lower end
        ([29, 30], [25, 30]),  # pushed down to the upper end
    ],
)
def test_labels_are_spread_as_little_as_may_be(wanted: list[float], expected: list[float]) -> None:
    assert spread(wanted, 5, 0, 30) == pytest.approx(expected)

"""The documents say what the committed results say; every row has its place, the bad ones too."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import benchmark_rows
import pytest

from benchmarks import people_tables, report_tables, summary, tables
from benchmarks.grouping import family, groups, slug
from benchmarks.markdown import table
from benchmarks.plots.error_per_step import curves
from benchmarks.plots.quality_speed import points
from benchmarks.plots.style import is_drawn
from benchmarks.tables import BEGIN, END, ROOT
from fye_pipeline import presets
from fye_pipeline.models.files import SHIPPED_MODEL


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with hand-made results."""
    (tmp_path / "acceleration.json").write_text(json.dumps(benchmark_rows.acceleration()))
    (tmp_path / "ablation.json").write_text(json.dumps(benchmark_rows.ablation()))
    return tmp_path


def test_the_documents_are_what_the_committed_results_make() -> None:
    """If this fails: `python -m benchmarks.tables`, and commit what it writes."""
    for path, text in tables.documents(tables.RESULTS).items():
        assert path.read_text("utf-8") == text, path


def test_the_committed_pictures_show_the_committed_results() -> None:
    """If this fails: `python -m benchmarks.tables`, and commit what it draws."""
    data = tables.load(tables.RESULTS)
    wanted = {}
    if "acceleration" in data:
        for key, rows in groups(data["acceleration"]["rows"]).items():
            if points(rows):
                wanted[slug(*key)] = rows
    if "ablation" in data and curves(data["ablation"]["rows"]):
        wanted["ablation"] = [row for row, *_ in curves(data["ablation"]["rows"])]
    drawn = {path.stem for name in ("quality_speed", "ablation") for path in tables.RESULTS.glob(f"{name}-*.svg")}
    assert drawn == {f"{name}-{theme}" for name in wanted for theme in ("light", "dark")}
    for name, rows in wanted.items():
        assert is_drawn(tables.RESULTS / name, rows)


def test_a_changed_figure_changes_the_documents(results: Path) -> None:
    before = tables.documents(results)
    data = benchmark_rows.acceleration()
    default = next(row for row in data["rows"] if row["name"] == "ticache N=3")
    default["psnr"] -= 0.1
    (results / "acceleration.json").write_text(json.dumps(data))
    after = tables.documents(results)
    changed = {path.relative_to(ROOT).as_posix() for path, text in before.items() if after[path] != text}
    assert changed == {"README.md", "benchmarks/README.md"}


def test_the_tables_of_several_people_say_what_their_files_say(results: Path) -> None:
    assert "Not measured in this checkout: `fye evaluate exprbench" in people_tables.document(results)
    row = {"lmd": 0.00859, "mae": 8.26, "aed": 0.0651, "apd": 0.05, "l1": 0.033, "ssim": 0.852}
    leak = {"pixels": 0.061, "landmarks": None}
    conditions = {
        "people": 2, "clips": 3, "frames": 8, "steps": 30, "seed": 0, "guidance": 1.0, "device": "cpu",
        "versions": {"torch": "2"},
    }  # fmt: skip
    data = {"rows": {"ours": row | {"leak": leak}}, "conditions": conditions}
    (results / "people.json").write_text(json.dumps(data), encoding="utf-8")
    bench = {
        "multi": {"ours": row | {"leak": leak, "frames_without_face": 0}},
        "conditions": {"entries": 4, "settings": {"frames": 8, "steps": 4, "seed": 0}},
        "failed": {},
    }
    (results / "exprbench.json").write_text(json.dumps(bench), encoding="utf-8")
    told = people_tables.document(results)
    assert "| `ours` | 8.590 | 8.260 | 6.510 | 0.050 | 0.0330 | 0.852 | 0.061 | - |" in told
    assert "| two faces, `ours` | 8.59 | 8.26 | 6.51 | 0.050 | 0.061 | - | 0.0 |" in told


def test_check_ends_with_1_where_a_document_differs(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tables", "--check", "--results", str(results)])
    before = (ROOT / "README.md").read_text("utf-8")
    with pytest.raises(SystemExit) as end:
        tables.main()
    assert end.value.code == 1
    assert "README.md: differs" in capsys.readouterr().out
    assert (ROOT / "README.md").read_text("utf-8") == before


def test_every_row_of_every_file_is_told(results: Path) -> None:
    shutil.copy(tables.RESULTS / "compiled_kernels.json", results)
    (results / "kernels.json").write_text(json.dumps(benchmark_rows.kernels()))
    (results / "latency.json").write_text(json.dumps(benchmark_rows.latency()))
    (results / "evaluation.json").write_text(json.dumps(benchmark_rows.evaluation()))
    (results / "schedules.json").write_text(json.dumps(benchmark_rows.schedules()))
    data = tables.load(results)
    text = tables.document(data, results)
    for name in ("acceleration", "ablation", "latency"):
        for row in data[name]["rows"]:
            assert row["name"] in text, row["name"]
            assert not row["error"] or row["error"] in text
    assert "`fye train --config benchmarks/configs/no-facial-loss.toml" in text
    assert "| repeat reference | 0.0444 |" in text
    assert "**missed**" in text
    line = "| sd-like | ddim 30 | 7.5 | 46.5 | 43.2 | 40.1 | 40.1 | 42.7 | 46.0 | 47.0 | 40.5 |"
    assert line in text, "the best by hand is Taylor's, the best solver the second"
    assert text.count("Conditions: ") == 7
    assert "Not measured" not in text
    assert not re.search(r"\bNone\b|\bnan\b", text)


def test_what_is_absent_is_left_out_with_the_command_that_makes_it(tmp_path: Path) -> None:
    text = tables.document({}, tmp_path)
    for section in tables.SECTIONS:
        assert f"`{section.command}`" in text
    assert "acceleration" in tables.short({}, tmp_path)


def test_pictures_are_shown_where_they_are_drawn(results: Path) -> None:
    data = tables.load(results)
    assert "<picture>" not in tables.document(data, results)
    name = slug("portrait", "ddim-30")
    for theme in ("light", "dark"):
        (results / f"{name}-{theme}.svg").write_text("<svg/>")
    assert f'src="results/{name}-light.svg"' in tables.document(data, results)
    assert f'srcset="benchmarks/results/{name}-dark.svg"' in tables.short(data, results)


def test_pictures_are_drawn_where_they_show_other_rows(results: Path) -> None:
    (results / "quality_speed-gone-ddim-30-light.svg").write_text("<svg/>")
    drawn = {path.name for path in tables.draw_stale(results)}
    assert len(drawn) == 6
    assert {path.name for path in results.glob("*.svg")} == drawn
    assert tables.draw_stale(results) == []
    data = benchmark_rows.acceleration()
    data["rows"][-1]["psnr_region"] -= 1
    (results / "acceleration.json").write_text(json.dumps(data))
    again = {path.name for path in tables.draw_stale(results)}
    assert again == {f"quality_speed-portrait-dpm-solver-20-{theme}.svg" for theme in ("light", "dark")}


def test_the_summary_has_the_best_affordable_row_of_each_method() -> None:
    rows = [row for row in benchmark_rows.acceleration()["rows"] if row["base"] == "ddim-30"]
    names = [row["name"] for row in summary.chosen(rows)]
    assert names[0] == "uncached"
    assert {"ticache N=3", "ticache paper N=3", "DPM-Solver++ 2M 10", "DeepCache N=3 branch 0", "tomesd 0.5"} < set(
        names
    )
    assert "DPM-Solver++ 2M 15" not in names  # dearer than our row
    assert "DDIM 14 (equal FLOPs, N=3)" in names  # within the slack
    assert "ticache N=2" not in names
    psnr = [row["psnr"] for row in summary.chosen(rows)]
    assert psnr == sorted(psnr, reverse=True)


def test_the_summary_hides_no_method_that_beats_us() -> None:
    rows = copy.deepcopy([row for row in benchmark_rows.acceleration()["rows"] if row["base"] == "ddim-30"])
    winner = next(row for row in rows if row["name"] == "UniPC 10")
    winner["psnr"] = 99.0
    assert [row["name"] for row in summary.chosen(rows)][1] == "UniPC 10"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DDIM 10", "DDIM"),
        ("DDIM 14 (equal FLOPs, N=3)", "DDIM"),
        ("DPM-Solver++ 2M 8", "DPM-Solver++ 2M"),
        ("DeepCache N=3 branch 0", "DeepCache branch 0"),
        ("DeepCache N=5 branch 11", "DeepCache branch 11"),
        ("tomesd 0.5", "tomesd"),
        ("Spectrum forecaster, 10 calls", "Spectrum forecaster"),
        ("threshold reuse, about 6 calls", "threshold reuse"),
        ("plain reuse outer N=3", "plain reuse outer"),
        ("T-GATE", "T-GATE"),
    ],
)
def test_a_family_is_a_method_without_its_settings(name: str, expected: str) -> None:
    assert family(name) == expected


def test_text_outside_the_markers_stays() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert tables.replaced(text, "new", "x") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    for broken in ("nothing", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"):
        with pytest.raises(ValueError, match="x must have"):
            tables.replaced(broken, "new", "x")


def test_a_table_keeps_its_columns_apart() -> None:
    assert table(["", "dB"], [["a|b", "1.0"], ["c", "-"]]) == "|  | dB |\n| --- | ---: |\n| a\\|b | 1.0 |\n| c | - |"


def test_columns_without_any_figure_are_left_out() -> None:
    rows = [row | {"l1_truth": None} for row in benchmark_rows.acceleration()["rows"]]
    assert "L1" not in report_tables.acceleration_table(rows).splitlines()[0]


def test_a_table_of_earlier_weights_says_so(results: Path) -> None:
    shipped = presets.read(SHIPPED_MODEL)
    assert shipped is not None
    (results / "acceleration.json").unlink()
    data = benchmark_rows.ablation()
    said = []
    for model_hash in (shipped["conditions"]["model_hash"], "0123456789abcdef"):
        data["conditions"]["model_hash"] = model_hash
        (results / "ablation.json").write_text(json.dumps(data))
        text = tables.documents(results)[ROOT / "benchmarks" / "README.md"]
        said.append("Measured on earlier weights of the portrait model (0123456789abcdef)" in text)
        assert text.count("earlier weights") == said[-1]
    assert said == [False, True]

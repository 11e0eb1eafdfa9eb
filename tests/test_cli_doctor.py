"""What `fye doctor` and `fye --version` tell, on whole and on broken installations."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from fye_command import Fye

from fye_pipeline.cli import doctor, entry

ROOT = Path(__file__).resolve().parent.parent


def test_doctor_tells_of_everything_in_about_ten_lines(fye: Fye) -> None:
    code, out, err = fye("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == ["packages", "devices", "kernels", "extras", "faces", "video", "models", "disk"]
    assert f"torch {version('torch')}" in lines[0]
    assert "writes mp4" in lines[5]
    assert "tiny ok" in lines[6]


def test_doctor_tells_the_same_as_json(fye: Fye) -> None:
    code, out, _ = fye("doctor", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["devices"]["cpu"]["dtypes"] == dict.fromkeys(("float32", "float16", "bfloat16", "float64"), True)
    assert told["extras"]["portrait"] == {"missing": []}
    assert told["video"]["writes"]["mp4"] is True
    assert told["disk"]["here"]["free"] > 0


def test_the_pages_extra_brings_the_animator() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"{project['name']}[portrait]" in project["optional-dependencies"]["app"]


def test_what_the_page_needs_is_pinned_beside_everything_else_and_once() -> None:
    common, app = ((ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "constraints-app.txt"))
    assert "\n-c constraints.txt\n" in app
    names = [word.partition("==")[0].lower() for word in (common + app).split() if "==" in word]
    assert len(names) == len(set(names))
    assert {"torch", "gradio", "pillow"} <= set(names)


def test_version_names_versions_and_devices(fye: Fye) -> None:
    code, out, _ = fye("--version")
    assert code == 0
    for said in (
        "ticache ",
        f"torch {version('torch')}",
        f"diffusers {version('diffusers')}",
        "Python 3.",
        "devices: cpu",
    ):
        assert said in out


def test_doctor_succeeds_whatever_is_broken_and_gives_the_reason(fye: Fye, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("av", "fye_pipeline.models.files", "fye_pipeline.landmarks.model_file", "ticache.ops"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    code, out, err = fye("doctor")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "import of av halted" in lines["video"]
    assert "ZeroDivisionError: division by zero" in lines["devices"]
    assert all("ModuleNotFoundError" in lines[name] for name in ("faces", "models", "disk", "kernels"))
    assert json.loads(fye("doctor", "--json")[1])["video"]["error"]


def test_a_device_without_float64_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones

    def refusing(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return ones(*shape, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "ones", refusing)
    found = next(each for each in doctor.examine() if each.name == "devices")
    assert "no float64" in found.text
    assert found.data["cpu"]["dtypes"]["float32"] is True


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`fye` where typer is not installed: arguments -> exit code and what was printed."""
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "fye_pipeline.cli.main", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fye", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.out, printed.err

    return run


def test_without_its_packages_fye_tells_versions_and_what_works(bare: Any) -> None:
    assert bare("--version")[:2] == (0, doctor.versions() + "\n")
    code, out, _ = bare("doctor", "--json")
    assert code == 0
    assert json.loads(out)["packages"]["versions"]["torch"] == version("torch")


@pytest.mark.parametrize("arguments", [(), ("animate", "--output", "a.mp4"), ("doctor", "--nonsense"), ("--help",)])
def test_without_its_packages_other_commands_name_what_to_install(bare: Any, arguments: tuple[str, ...]) -> None:
    code, out, err = bare(*arguments)
    assert (code, out) == (2, "")
    assert err == 'fye: the package typer is not installed; run: pip install "ticache[portrait]"\n'


def test_a_package_missing_in_mid_command_is_named_with_its_extra(
    fye: Fye, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    said = fye.refused("world", "--sheet", tmp_path / "sheet.png")
    assert said == 'fye: the package PIL is not installed; run: pip install "ticache[portrait]"'
    assert doctor.install_line(ModuleNotFoundError(name="ray.data")).endswith('"ticache[ray]"')

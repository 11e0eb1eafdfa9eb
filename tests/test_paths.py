"""Folders and files as people name them, with spaces and umlauts, and text on systems whose encoding is not UTF-8."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from fye_command import Fye, make_video, picture_difference

from fye_pipeline.animate.config import DEMO_DRIVING, DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.points import NAMES
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.world import World

ROOT = Path(__file__).resolve().parent.parent
FIVE = ((212, 240), (300, 240), (256, 300), (222, 345), (290, 345))


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which somebody works, and where they are."""
    folder = tmp_path / "Büro, 2. Stock, ñandú 顔"
    folder.mkdir()
    shutil.copy(DEMO_PORTRAIT, folder / "Frau Müller.png")
    shutil.copy(DEMO_PORTRAIT_LANDMARKS, folder / "Frau Müller.npz")
    shutil.copy(DEMO_DRIVING, folder / "Bewegung größer.npz")
    monkeypatch.chdir(folder)
    return folder


def test_a_portrait_is_animated_and_gone_on_with(
    fye: Fye, office: Path, random_model: Path, stop_at: Callable[[int], list[int]]
) -> None:
    shutil.copytree(random_model, office / "Modelle für später")
    files = {
        "--reference": "Frau Müller.png",
        "--reference-landmarks": "Frau Müller.npz",
        "--driving": "Bewegung größer.npz",
        "--model": "Modelle für später",
        "--output": "fertig schön.mp4",
    }
    size = ("--steps", 2, "--size", 64, "--frames", 36, "--long", "tiles", "--chunk", 24)
    command = ("animate", *(part for pair in files.items() for part in pair), *size)
    runs = stop_at(2)
    assert fye(*command)[0] == 130
    code, out, err = fye(*command, "--resume")
    assert code == 0, err
    assert "fertig schön.mp4: 36 frames" in out
    assert len(runs) == 3, "the clip that was finished is not made again"
    code, _, err = fye("animate", "--config", "fertig schön.mp4", "--output", "noch einmal ö.mp4", "--quiet")
    assert code == 0, err
    assert picture_difference(office / "fertig schön.mp4", office / "noch einmal ö.mp4") < 0.1


def test_landmarks_are_placed_and_drawn(fye: Fye, office: Path) -> None:
    (office / "Punkte für Müller.json").write_text(json.dumps(dict(zip(NAMES, FIVE, strict=True))), encoding="utf-8")
    files = ("--points", "Punkte für Müller.json", "--output", "Gesicht ß.npz", "--preview", "Vorschau ß.png")
    code, out, err = fye("landmarks", "Frau Müller.png", *files)
    assert code == 0, err
    assert "Gesicht ß.npz: one picture" in out
    assert len(LandmarkSequence.load(office / "Gesicht ß.npz")) == 1
    assert (office / "Vorschau ß.png").is_file()


def test_a_manifest_is_measured(fye: Fye, office: Path, face_landmarker_path: Path) -> None:
    """The detector's own file, too, lies where the name has an umlaut."""
    shutil.copy(face_landmarker_path, office / "Gesichtsfinder ü.task")
    frames = list(World(CanonicalFace.load(), size=128).clip("held", 0, frames=3).frames)
    for folder in ("gefahren", "gemacht"):
        (office / folder).mkdir()
        make_video(office / folder / "Müller lächelt.mp4", frames, fps=Fraction(12))
    (office / "Liste für März.csv").write_text("driving\ngefahren/Müller lächelt.mp4\n", encoding="utf-8-sig")
    flags = ("--outputs", "gemacht", "--json", "Zahlen für März.json", "--face-landmarker", "Gesichtsfinder ü.task")
    code, _, err = fye("evaluate", "Liste für März.csv", *flags)
    assert code == 0, err
    result = json.loads((office / "Zahlen für März.json").read_text(encoding="utf-8"))
    assert set(result["rows"]) == {"Müller lächelt"}
    assert (office / "Zahlen für März.md").is_file()


def test_a_terminal_that_lacks_the_letters_of_a_name_shows_the_rest(
    fye: Fye, office: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where output goes into a file on Windows: the letters it cannot write are escaped, and nothing fails."""
    (office / "five.json").write_text(json.dumps(dict(zip(NAMES, FIVE, strict=True))), encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert fye("landmarks", "Frau Müller.png", "--points", "five.json", "--output", "größe.npz")[0] == 0
    assert b"e.npz: one picture" in written.getvalue()


def unspoken_encodings(source: str) -> Iterator[int]:
    """Lines in which text is read or written in the system's own encoding."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="read_text" | "write_text"), keywords=keywords):
                if "encoding" not in {each.arg for each in keywords}:
                    yield node.lineno


def test_text_in_files_is_utf8_whatever_the_system_prefers() -> None:
    """`open` is ruff's to check (PLW1514); of `Path`'s methods it sees only some."""
    assert list(unspoken_encodings("path.read_text()\npath.write_text(a, encoding='utf-8')")) == [1]
    folders = ("ticache", "fye_pipeline", "kernels", "benchmarks")
    found = {
        f"{path.relative_to(ROOT).as_posix()}:{line}"
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for line in unspoken_encodings(path.read_text(encoding="utf-8"))
    }
    assert found == set()

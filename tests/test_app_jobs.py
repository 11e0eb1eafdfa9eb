"""The jobs behind the page, without Gradio: one a device, in order, cancelled, cleaned up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emoji_parts import save_model, small_model
from PIL import Image

from fye_pipeline.animate.config import DEMO_PORTRAIT, DEMO_PORTRAIT_LANDMARKS
from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.app import words
from fye_pipeline.app.controls import GROUP_CONTROLS, Files, group_settings_of
from fye_pipeline.app.jobs import (
    KEPT_SECONDS,
    Cancelled,
    Event,
    Finished,
    JobFolder,
    JobQueue,
    Waiting,
    Working,
    seconds_left,
)
from fye_pipeline.app.pictures import PICTURE, picture_controls, picture_settings_of
from fye_pipeline.app.server import render_examples
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.errors import UserError

NONE = Files()
PATIENCE = 60.0


class Work:
    """Stands for `animate`: reports a step at a time, as long as it is let."""

    def __init__(self) -> None:
        self.go_on, self.began, self.at_work, self.most = threading.Event(), threading.Event(), 0, 0
        self.error: Exception | None = None
        self.sessions: list[Any] = []
        self._lock = threading.Lock()

    def __call__(self, settings: Any, output: Path, *, session: Any, on_progress: Any) -> Any:
        with self._lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        self.sessions.append(session)
        try:
            output.write_text(str(settings), encoding="utf-8")
            self.began.set()
            step = 0
            while not self.go_on.wait(0.01):
                step += 1
                on_progress("denoising", step, 10_000)
            if self.error is not None:
                raise self.error
            return settings
        finally:
            with self._lock:
                self.at_work -= 1


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[JobFolder]:
    with JobFolder(tmp_path / "app") as folder:
        yield folder


@pytest.fixture
def queue(work: Work, folder: JobFolder) -> Iterator[JobQueue]:
    sessions: list[Any] = ["the device"]
    queue = JobQueue(sessions, folder, work)
    yield queue
    work.go_on.set()
    queue.close()


def begin(queue: JobQueue, name: Any) -> tuple[str, Iterator[Event]]:
    ticket = queue.ticket()
    return ticket, queue.run(ticket, NONE, lambda files: name)


def until(events: Iterator[Event], kind: type) -> Any:
    """The first event of a kind, soon."""
    stop = time.monotonic() + PATIENCE
    for event in events:
        if isinstance(event, kind):
            return event
        assert time.monotonic() < stop
    raise AssertionError(f"no {kind.__name__} came")


def test_one_job_a_device_in_the_order_in_which_they_came(queue: JobQueue, work: Work) -> None:
    _, first = begin(queue, "first")
    assert until(first, Working)
    _, second = begin(queue, "second")
    assert next(second) == Waiting(1)
    _, third = begin(queue, "third")
    assert next(third) == Waiting(2)
    assert next(second) == Waiting(1)
    work.go_on.set()
    assert [until(events, Finished).result for events in (first, second, third)] == ["first", "second", "third"]
    assert work.most == 1


def test_two_devices_work_at_once(folder: JobFolder, work: Work) -> None:
    sessions: list[Any] = ["one", "other"]
    queue = JobQueue(sessions, folder, work)
    runs = [begin(queue, name)[1] for name in "abc"]
    assert until(runs[0], Working)
    assert until(runs[1], Working)
    assert next(runs[2]) == Waiting(2)
    work.go_on.set()
    for events in runs:
        until(events, Finished)
    queue.close()
    assert set(work.sessions) == {"one", "other"}
    assert work.most == 2


def test_a_job_at_work_is_cancelled_and_leaves_nothing(queue: JobQueue, work: Work, folder: JobFolder) -> None:
    ticket, events = begin(queue, "a")
    assert until(events, Working)
    assert work.began.wait(PATIENCE)
    queue.cancel(ticket)
    with pytest.raises(Cancelled):
        until(events, Finished)
    assert list(folder.results.iterdir()) == []
    _, after = begin(queue, "b")
    work.go_on.set()
    assert until(after, Finished).result == "b"
    queue.cancel(ticket)  # twice is fine, and so is one that has ended


def test_a_job_in_the_line_is_cancelled_before_its_turn(queue: JobQueue, work: Work) -> None:
    _, first = begin(queue, "first")
    assert until(first, Working)
    ticket, second = begin(queue, "second")
    _, third = begin(queue, "third")
    assert next(second) == Waiting(1)
    assert next(third) == Waiting(2)
    queue.cancel(ticket)
    with pytest.raises(Cancelled):
        until(second, Finished)
    assert next(third) == Waiting(1)
    work.go_on.set()
    until(first, Finished)
    assert until(third, Finished).result == "third"
    assert len(work.sessions) == 2


def test_a_job_cancelled_before_it_was_begun_does_not_begin(queue: JobQueue, work: Work) -> None:
    ticket, events = begin(queue, "a")
    queue.cancel(ticket)
    with pytest.raises(Cancelled):
        next(events)
    assert not work.began.is_set()


@pytest.mark.parametrize("waiting", [False, True])
def test_a_job_that_nobody_listens_to_any_more_is_cancelled(queue: JobQueue, work: Work, waiting: bool) -> None:
    _, first = begin(queue, "first")
    assert until(first, Working)
    if waiting:
        _, second = begin(queue, "second")
        assert next(second) == Waiting(1)
        second.close()  # type: ignore[attr-defined]
    else:
        first.close()  # type: ignore[attr-defined]
    _, last = begin(queue, "last")
    if not waiting:
        assert until(last, Working)
    work.go_on.set()
    assert until(last, Finished).result == "last"


@pytest.mark.parametrize(
    ("error", "sentence"), [(UserError("No face was found."), "No face"), (RuntimeError("boom"), "RuntimeError: boom")]
)
def test_a_job_that_fails_says_so_in_a_sentence_and_frees_its_device(
    queue: JobQueue, work: Work, folder: JobFolder, error: Exception, sentence: str
) -> None:
    work.error = error
    _, events = begin(queue, "a")
    work.go_on.set()
    with pytest.raises(UserError, match=sentence):
        until(events, Finished)
    assert list(folder.results.iterdir()) == []
    work.error = None
    _, after = begin(queue, "b")
    assert until(after, Finished).result == "b"


def test_a_sentence_names_files_and_no_folder_of_the_server(queue: JobQueue, work: Work, tmp_path: Path) -> None:
    portrait = tmp_path / "my photo.png"
    portrait.write_text("a picture")

    def settings_of(files: Files) -> Any:
        work.error = UserError(f"No face was found in {files['reference'][0]}: choose another.")
        return "a"

    work.go_on.set()
    events = queue.run(queue.ticket(), Files.of(reference=portrait), settings_of)
    with pytest.raises(UserError) as told:
        until(events, Finished)
    assert str(told.value) == "No face was found in my photo.png: choose another."


def test_settings_that_cannot_be_end_a_job_before_its_turn(queue: JobQueue, folder: JobFolder) -> None:
    def refuse(files: Files) -> Any:
        raise UserError("seed must be >= 0")

    with pytest.raises(UserError, match="seed"):
        next(queue.run(queue.ticket(), NONE, refuse))
    assert list(folder.results.iterdir()) == []


def test_uploads_may_go_while_their_job_waits(queue: JobQueue, work: Work, tmp_path: Path) -> None:
    _, first = begin(queue, "first")
    assert until(first, Working)
    portrait = tmp_path / "my photo.png"
    portrait.write_text("a picture")
    seen: list[Files] = []

    def settings_of(files: Files) -> Any:
        seen.append(files)
        return "second"

    second = queue.run(queue.ticket(), Files.of(reference=portrait), settings_of)
    assert next(second) == Waiting(1)
    portrait.unlink()
    (files,) = seen
    (copy,) = files["reference"]
    assert (copy.name, copy.read_text()) == ("my photo.png", "a picture")
    work.go_on.set()
    until(second, Finished)


def test_drivers_of_one_name_stay_apart(queue: JobQueue, work: Work, tmp_path: Path) -> None:
    drivers = [tmp_path / side / "driver.mp4" for side in ("left", "right")]
    for path in drivers:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    seen: list[Path] = []

    def settings_of(files: Files) -> Any:
        seen.extend(files["driving"])
        assert [path.read_text() for path in seen] == ["left", "right"]
        return "a"

    work.go_on.set()
    until(queue.run(queue.ticket(), Files.of(driving=drivers), settings_of), Finished)
    assert [path.name for path in seen] == ["driver.mp4", "driver.mp4"]


def test_what_is_an_hour_old_is_deleted_and_what_is_in_use_is_not(
    queue: JobQueue, work: Work, folder: JobFolder
) -> None:
    ticket, events = begin(queue, "a")
    assert until(events, Working)
    old, young = folder.uploads / "x" / "old.png", folder.uploads / "y" / "young.png"
    for path in (old, young):
        path.parent.mkdir()
        path.write_text("a picture")
    now = time.time()
    os.utime(old, (now, now - KEPT_SECONDS - 10))
    folder.sweep(now)
    assert not old.parent.exists()
    assert young.exists()
    folder.sweep(now + KEPT_SECONDS + 10)
    assert not young.exists()
    assert (folder.results / ticket).exists(), "a job that runs for hours keeps its files"
    work.go_on.set()
    until(events, Finished)
    folder.sweep(now + 10)
    assert (folder.results / ticket / "animated.mp4").exists()
    folder.sweep(time.time() + KEPT_SECONDS + 10)
    assert not (folder.results / ticket).exists()


def test_nothing_of_a_page_outlives_it_even_if_it_was_killed(tmp_path: Path) -> None:
    base = tmp_path / "app"
    killed = base / "killed"
    (killed / "uploads").mkdir(parents=True)
    (killed / "uploads" / "a.png").write_text("a picture")
    with JobFolder(base) as one, JobFolder(base) as other:
        assert not killed.exists()
        assert one.folder.exists(), "a page that is alive keeps its files"
        assert other.folder != one.folder
        if os.name != "nt":
            assert base.stat().st_mode & 0o077 == 0
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (0, 10, 3.0, None),
        (5, None, 3.0, None),
        (5, 10, 3.0, 3.0),
        (1, 4, 2.0, 6.0),
        (4, 4, 2.0, 0.0),
        (5, 4, 2.0, None),
    ],
)
def test_the_time_left(done: int, total: int | None, seconds: float, expected: float | None) -> None:
    assert seconds_left(done, total, seconds) == expected


def test_a_job_animates(folder: JobFolder, random_model: Path) -> None:
    from fye_pipeline.animate.config import AnimationSettings

    def settings_of(files: Files) -> AnimationSettings:
        return AnimationSettings.from_dict(
            {
                "reference": str(files["reference"][0]),
                "reference_landmarks": str(DEMO_PORTRAIT_LANDMARKS),
                "model": str(random_model),
                "frames": 2,
                "steps": 2,
            }
        )

    with AnimationSession(device="cpu") as session:
        queue = JobQueue([session], folder)
        ticket = queue.ticket()
        result = until(queue.run(ticket, Files.of(reference=DEMO_PORTRAIT), settings_of), Finished).result
        assert result.frames == 2
        assert result.output == folder.results / ticket / "animated.mp4"
        assert result.output.is_file()
        queue.close()


def test_a_job_animates_several_people(folder: JobFolder, random_model: Path, face_landmarker_path: Path) -> None:
    examples = render_examples(folder.examples)
    files = Files.of(reference=examples.group, driving=examples.drivers)
    values = [{"frames": 2, "steps": 2}.get(control.name, control.default) for control in GROUP_CONTROLS]
    base = {"model": str(random_model)}
    with AnimationSession(face_landmarker_path, device="cpu") as session:
        queue = JobQueue([session], folder)
        events = queue.run(queue.ticket(), files, lambda copies: group_settings_of(copies, values, base))
        result = until(events, Finished).result
        queue.close()
    assert (result.frames, result.size, result.faces) == (2, (1024, 512), 2)
    assert [(person["face"], person["driver"]) for person in result.people] == [(1, 0), (2, 1)]
    assert "2 of 2 faces are moved" in words.outcome(result)
    assert str(folder.folder) not in words.report(result)


def test_a_job_draws_a_sheet_and_can_be_cancelled(
    folder: JobFolder, face_landmarker_path: Path, tmp_path: Path
) -> None:
    model = save_model(small_model(), tmp_path / "model")
    examples = render_examples(folder.examples)
    controls = picture_controls(EmojiSettings.read(model))
    files = Files.of(identity=examples.portraits[1], expression=examples.expressions)

    def settings_of(steps: int) -> Any:
        values = [{"steps": steps, "interval": "two"}.get(control.name, control.default) for control in controls]
        return lambda copies: picture_settings_of(copies, "a photo of a zebra", values, {"model": model}, controls)

    with AnimationSession(face_landmarker_path, device="cpu") as session:
        queue = JobQueue([session], folder)
        result = until(queue.run(queue.ticket(), files, settings_of(2), PICTURE), Finished).result
        ticket = queue.ticket()
        events = queue.run(ticket, files, settings_of(1000), PICTURE)
        while not (isinstance(event := until(events, Working), Working) and event.stage == "drawing"):
            pass
        queue.cancel(ticket)
        with pytest.raises(Cancelled):
            until(events, Finished)
        queue.close()
    with Image.open(result.output) as picture:
        assert (result.pictures, result.size, picture.size) == (3, (3 * 128, 128), (3 * 128, 128))
        assert picture.info["Comment"].startswith("AI-generated")
    assert "3 pictures, 384 x 128 pixels" in words.outcome(result)
    assert "ticache N=2" in words.report(result)
    assert "zebra" in words.report(result), "what the model does not know is told"

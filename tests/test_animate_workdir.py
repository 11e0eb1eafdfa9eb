"""The folder beside an output: whose it is, what of it is used again, and when it goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.animate.run import folder_of, input_digests, work_dir
from fye_pipeline.errors import UserError
from fye_pipeline.progress import collected_notes
from fye_pipeline.storage.files import FolderLock


def at_work(output: Path, **options: Any) -> Any:
    """A work folder; `seed` decides its settings."""
    flags = {"resume": False, "overwrite": False} | {name: options[name] for name in options if name != "seed"}
    return work_dir(output, {"seed": options.get("seed", 0)}, **flags)


def break_off(output: Path, error: BaseException, *made: str, **options: Any) -> None:
    """A run that makes some files and ends with an error."""
    with pytest.raises(type(error)), at_work(output, **options) as folder:
        for name in made:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
        raise error


CLIP, FOUND = "denoising/clip-000000.safetensors", "landmarks/found.raw"


def test_it_is_gone_when_the_work_is_done(tmp_path: Path) -> None:
    with at_work(tmp_path / "a.mp4") as folder:
        (folder / "denoising").mkdir()
        assert folder == tmp_path / "a.mp4.work"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("full disk"), OSError()])
def test_row_31_finished_clips_are_kept_and_this_is_said(tmp_path: Path, error: BaseException) -> None:
    output = tmp_path / "a.mp4"
    with pytest.raises(type(error)), collected_notes() as notes, at_work(output) as folder:
        (folder / "denoising").mkdir()
        (folder / CLIP).write_bytes(b"x")
        raise error
    assert (folder_of(output) / CLIP).exists()
    assert "--resume" in notes[0]
    with (
        pytest.raises(UserError, match=r"holds unfinished work; pass --resume to go on, or --overwrite"),
        at_work(output),
    ):
        pass
    with pytest.raises(UserError, match=r"other settings or files \(seed was 0 and is 1\); pass --overwrite"):
        at_work(output, resume=True, seed=1).__enter__()
    with pytest.raises(ZeroDivisionError), at_work(output, resume=True) as folder:
        assert (folder / CLIP).exists()
        raise ZeroDivisionError
    with at_work(output, overwrite=True) as folder:
        assert not (folder / CLIP).exists()
    assert not folder_of(output).exists()


def test_landmarks_outlive_an_interruption_but_not_an_error_in_them(tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    break_off(output, UserError("no face for 3 seconds"), FOUND)
    assert list(tmp_path.iterdir()) == []
    break_off(output, KeyboardInterrupt(), FOUND)
    with at_work(output) as folder:  # the same settings: nobody need be asked
        assert (folder / FOUND).exists()
    break_off(output, KeyboardInterrupt(), FOUND)
    with at_work(output, seed=1) as folder:
        assert not (folder / FOUND).exists()


def test_another_portrait_of_the_same_name_is_another_work(tmp_path: Path) -> None:
    output, portrait = tmp_path / "a.mp4", tmp_path / "me.png"

    def identity() -> dict[str, Any]:
        return input_digests(AnimationSettings(reference=portrait))

    portrait.write_bytes(b"one")
    with pytest.raises(ZeroDivisionError), work_dir(output, identity(), resume=False, overwrite=False) as folder:
        (folder / "denoising").mkdir()
        (folder / CLIP).write_bytes(b"x")
        raise ZeroDivisionError
    portrait.write_bytes(b"another")
    with pytest.raises(UserError, match=r"another reference file|reference file was"):
        work_dir(output, identity(), resume=True, overwrite=False).__enter__()


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a.mp4")
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(UserError, match="holds something else"):
        at_work(tmp_path / "a.mp4", overwrite=True).__enter__()
    assert [entry.name for entry in folder.iterdir()] == ["mine"]


def test_row_30_one_run_at_a_time_works_on_an_output(tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    with at_work(output), pytest.raises(UserError, match="Another run is at work"):
        at_work(output, resume=True, overwrite=True).__enter__()
    program = "import sys, time; from pathlib import Path; from fye_pipeline.storage.files import FolderLock\n"
    program += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "w")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another run"):
            FolderLock(tmp_path / "w")
        holder.kill()
        holder.wait()
    FolderLock(tmp_path / "w").release()  # the lock ends with the process


def test_a_folder_that_was_deleted_under_its_lock_can_be_held_anew(tmp_path: Path) -> None:
    ended = FolderLock(tmp_path / "w")
    shutil.rmtree(tmp_path / "w")
    held = FolderLock(tmp_path / "w")
    ended.release()
    with pytest.raises(UserError, match="Another run is at work"):
        FolderLock(tmp_path / "w")
    held.release()
    held.release()  # twice is fine
    FolderLock(tmp_path / "w").release()


def test_half_written_videos_of_killed_runs_are_swept_up(tmp_path: Path) -> None:
    for name in (".a.0123456789ab.part.mp4", ".a.0123456789ab.part.mov", ".ab.0123456789ab.part.mp4", "a.part.mp4"):
        (tmp_path / name).touch()
    with at_work(tmp_path / "a.mp4"):
        pass
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {".a.0123456789ab.part.mov", ".ab.0123456789ab.part.mp4", "a.part.mp4"}

"""A manifest's rows in several processes: one ledger, workers that die, launchers, Ray."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fye_command import Fye
from warm_processes import Command, launcher, warm_context

from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.batch import manifest as manifests
from fye_pipeline.batch.manifest import Options, Summary, ledger_of, plan_tasks
from fye_pipeline.batch.workers import run_in_processes
from fye_pipeline.progress import collected_notes
from fye_pipeline.storage.run_log import Ledger

FAST = {"steps": 1, "frames": 1, "size": 64}


def append_many(path: Path, first: int) -> None:
    for row in range(first, first + 40):
        Ledger(path).append({"row": row, "status": "made", "text": "x" * 5000}, once=True)
        Ledger(path).append({"row": row % 20, "status": "made"}, once=True)


def test_a_ledger_is_whole_whoever_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"row": 500, "status": "made"}\n{"row": 501, "sta')  # cut off by a kill
    writers = [warm_context().Process(target=append_many, args=(path, first)) for first in (0, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    lines = path.read_text().splitlines()
    assert lines[1] == '{"row": 501, "sta'
    rows = [json.loads(line)["row"] for line in lines if line != lines[1]]
    assert sorted(rows) == [*range(60), 500], "each row once"
    assert Ledger(path).made() == {*range(60), 500}


def manifest_of(folder: Path, model: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(FAST | {"model": str(model)} | row) + "\n" for row in rows))
    return path


def noted(manifest: Path) -> list[tuple[int, str]]:
    lines = ledger_of(manifest).path.read_text().splitlines()
    return sorted((entry["row"], entry["status"]) for entry in map(json.loads, lines))


def settings_of(values: Any, name: str) -> AnimationSettings:
    landmarks = {"reference_landmarks": "shipped:demo/portrait_landmarks.npz"}
    return AnimationSettings.from_dict(landmarks | dict(values), source=name)


@pytest.mark.usefixtures("warm_workers")
def test_jobs_share_out_the_rows_and_a_process_that_dies_loses_none(tmp_path: Path, random_model: Path) -> None:
    rows = [{"output": f"{seed}.mp4", "seed": seed} for seed in range(3)]
    manifest = manifest_of(tmp_path, random_model, [*rows, {"output": "x.mp4", "driving": "absent.mp4"}])
    tasks = plan_tasks(manifest, settings_of)

    def kill_first(stage: str, done: int, total: int | None) -> None:
        """When the first row has ended, kill a process that makes the next."""
        if done == 1 and not any("tried once more" in note for note in notes):
            multiprocessing.active_children()[0].kill()
            time.sleep(0.2)

    options = Options(device="cpu")
    with collected_notes() as notes:
        summary = run_in_processes(tasks, ledger_of(manifest), options, 2, on_progress=kill_first)
    assert sorted(summary.made + summary.kept) == [1, 2, 3]
    assert list(summary.failed) == [4]
    assert noted(manifest) == [(1, "made"), (2, "made"), (3, "made"), (4, "failed")]
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("warm_workers")
def test_a_row_whose_process_dies_twice_has_failed(
    tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fye_pipeline.batch import workers

    manifest = manifest_of(tmp_path, random_model, [{"output": "a.mp4"}])
    monkeypatch.setattr(workers, "_work", dies)
    summary = run_in_processes(plan_tasks(manifest, settings_of), ledger_of(manifest), Options(device="cpu"), 2)
    assert "ended with code 7, twice" in summary.failed[1]
    assert noted(manifest) == [(1, "failed")]


def dies(pipe: Any, options: Options, count: int) -> None:
    pipe.recv()
    os._exit(7)


def test_summaries_add_up() -> None:
    total = Summary([1], [3], {5: "a"}) + Summary([2], [], {4: "b"})
    assert total == Summary([1, 2], [3], {4: "b", 5: "a"})


def launched(folder: Path, model: Path) -> Path:
    rows = [{"output": f"{seed}.mp4", "seed": seed} for seed in range(3)]
    return manifest_of(folder, model, [{"output": "x.mp4", "driving": "absent.mp4"}, *rows])


def check_launched(manifest: Path, printed: str) -> None:
    assert noted(manifest) == [(1, "failed"), (2, "made"), (3, "made"), (4, "made")], printed
    summary = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert summary["made"] == [2, 3, 4], "rank 0 tells of all"
    assert list(summary["failed"]) == ["1"]


def test_processes_of_a_launcher_share_the_rows_by_rank(tmp_path: Path, random_model: Path) -> None:
    manifest = launched(tmp_path, random_model)
    arguments = ("animate", "--manifest", manifest, "--json", "--quiet")
    with launcher(2) as ranks:
        commands = [Command(tmp_path / f"{rank['RANK']}.log", *arguments, environment=rank) for rank in ranks]
        assert [command.wait() for command in commands] == [1, 1], "a row failed"
    check_launched(manifest, commands[0].log.read_text() + commands[1].log.read_text())


@pytest.mark.slow
def test_accelerate_launch_shares_the_rows_by_rank(tmp_path: Path, random_model: Path) -> None:
    manifest = launched(tmp_path, random_model)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",  # --cpu would start one process only
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command = ["-m", "fye_pipeline.cli", "animate", "--manifest", str(manifest), "--json", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", *command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode != 0, "a row failed"
    check_launched(manifest, done.stdout)


def test_ray_that_is_not_there_is_one_sentence(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_model: Path
) -> None:
    manifest = manifest_of(tmp_path, random_model, [{"output": "a.mp4"}])
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "[ray]" in fye.refused("animate", "--manifest", manifest, "--ray", "local", "--quiet")
    assert "--manifest" in fye.refused("animate", "--jobs", 2, "--output", tmp_path / "a.mp4")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install -e ".[ray]"')
def test_ray_loses_no_row_and_makes_none_twice_when_an_actor_is_killed(tmp_path: Path, random_model: Path) -> None:
    rows = [{"output": f"{seed}.mp4", "seed": seed} for seed in range(6)]
    manifest = manifest_of(tmp_path, random_model, [*rows, {"output": "x.mp4", "driving": "absent.mp4"}])
    program = """
import json, os, signal, sys, threading, time
from pathlib import Path
import ray
from ray.util.state import list_actors
from fye_pipeline.batch.manifest import Options, ledger_of, plan_tasks
from fye_pipeline.batch.ray_workers import run_on_ray
from test_batch_workers import settings_of

manifest, killed = Path(sys.argv[1]), []

def kill_one():
    ledger = ledger_of(manifest)
    while len(ledger.made()) < 2:
        time.sleep(0.02)
    for line in os.popen("ps -eo pid,ppid,args").read().splitlines():
        if "ray::" in line and "MapWorker" in line and str(os.getpid()) in parents(line):
            os.kill(int(line.split()[0]), signal.SIGKILL)
            killed.append(line)
            return

def parents(line):
    # the raylet is a child of this process, and the actors are children of the raylet
    of = {row.split()[0]: row.split()[1] for row in os.popen("ps -eo pid,ppid").read().splitlines()[1:]}
    pid, chain = line.split()[0], []
    while pid in of and pid != "1":
        pid = of[pid]
        chain.append(pid)
    return chain

threading.Thread(target=kill_one, daemon=True).start()
tasks = plan_tasks(manifest, settings_of)
summary = run_on_ray(tasks, ledger_of(manifest), Options(device="cpu"), address="local", actors=2)
ray.shutdown()
print(json.dumps(summary.to_dict() | {"killed": len(killed)}))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program, str(manifest)], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["killed"] == 1, "no actor was killed"
    assert sorted(summary["made"] + summary["kept"]) == [1, 2, 3, 4, 5, 6]
    assert list(summary["failed"]) == ["7"]
    lines = noted(manifest)
    assert [row for row, status in lines if status == "made"] == [1, 2, 3, 4, 5, 6], "each row is made once"
    assert (7, "failed") in lines
    assert len(list(tmp_path.glob("*.mp4"))) == 6
    assert manifests.ledger_of(manifest).made() == {1, 2, 3, 4, 5, 6}

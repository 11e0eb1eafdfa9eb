"""A manifest's rows: here, in several processes, on Ray, or by each rank of `accelerate launch` or `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.batch.manifest import Options, SettingsOf, Summary, ledger_of, plan_tasks, run_tasks
from fye_pipeline.batch.ray_workers import run_on_ray
from fye_pipeline.batch.workers import run_in_processes
from fye_pipeline.progress import OnProgress, silent

_PATIENCE = timedelta(days=30)  # a rank whose rows are done waits for those whose are not


def run_manifest(
    manifest: Path,
    settings_of: SettingsOf,
    options: Options,
    *,
    jobs: int = 1,
    ray: str | None = None,
    on_progress: OnProgress = silent,
) -> tuple[Summary, bool]:
    """Animate the rows. -> what became of all of them, and whether this process is the one that tells it.

    ray: address of a cluster, as `run_on_ray`, with `jobs` actors. Raises `UserError` as `plan_tasks` and the runners.
    """
    rank, count = own_share()
    options = replace(options, device=own_device(options.device))
    tasks, ledger = plan_tasks(manifest, settings_of)[rank::count], ledger_of(manifest)
    if ray is not None:
        summary = run_on_ray(tasks, ledger, options, address=ray, actors=jobs)
    elif jobs > 1:
        summary = run_in_processes(tasks, ledger, options, jobs, on_progress=on_progress)
    else:
        with AnimationSession(options.face_landmarker, **options.of_session) as session:
            how = {"overwrite": options.overwrite, "resume": options.resume}
            summary = run_tasks(tasks, ledger, session=session, on_progress=on_progress, **how)
    return (gather(summary) if count > 1 else summary), rank == 0


def own_share(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, count) of this process as its launcher tells it; (0, 1) where it is alone."""
    try:
        rank, count = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, count) if 0 <= rank < count else (0, 1)


def own_device(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """With `auto`, each process on a machine takes the GPU of its own number."""
    local = environment.get("LOCAL_RANK", "")
    return f"cuda:{local}" if name == "auto" and local.isdigit() and torch.cuda.is_available() else name


def gather(summary: Summary) -> Summary:
    """Wait for the other processes and add up what became of all rows.

    A launcher ends all processes when one ends with an error, so none may end before all have done their rows.
    """
    if "MASTER_ADDR" not in os.environ:
        return summary
    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        every: list[Summary | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, summary)
    finally:
        torch.distributed.destroy_process_group()
    total = summary
    for index, other in enumerate(every):
        if other is not None and index != own_share()[0]:
            total = total + other
    return total

"""A manifest's rows on Ray: Ray Data's actor pool, each actor with the detector and the model loaded once.

Ray starts an actor that dies anew and gives its row to another. A row is written down by the actor that makes it,
before its answer leaves; one that is found finished is not made again, so that no row is lost and none is done twice.
The manifest, its files and its ledger must lie on a disk that all machines share.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.batch.manifest import Options, Summary, Task, carry_out, note_entry
from fye_pipeline.errors import UserError
from fye_pipeline.progress import hush_libraries, logger
from fye_pipeline.storage.run_log import Ledger


class RowMaker:
    """What an actor of the pool does: a batch of one pickled task -> its ledger line as JSON."""

    def __init__(self, options: Options, ledger: Path) -> None:
        hush_libraries()
        self._options, self._ledger = options, Ledger(ledger)
        self._session = AnimationSession(options.face_landmarker, **options.of_session)
        self._session.__enter__()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        task: Task = pickle.loads(batch["task"][0])
        entry = carry_out(task, self._session, overwrite=self._options.overwrite, resume=True)
        note_entry(entry, self._ledger, resume=True)
        return {"entry": [json.dumps(entry)]}


def run_on_ray(
    tasks: Sequence[Task],
    ledger: Ledger,
    options: Options,
    *,
    address: str = "auto",
    actors: int = 1,
) -> Summary:
    """As `manifest.run_tasks`, by `actors` actors; outputs that were made with the same settings are kept.

    address: of a cluster, `auto` for the one that this machine belongs to, `local` for a Ray of its own.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError('--ray needs Ray: pip install -c constraints.txt -e ".[ray]".') from error
    summary = Summary()
    if not ray.is_initialized():
        where: dict[str, Any] = {"logging_level": "ERROR", "include_dashboard": False}
        if address == "local":
            where["num_cpus"] = actors + 1
        try:
            ray.init(address=address, log_to_driver=False, **where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"Ray at {address!r} cannot be reached: {error}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    on_gpu = torch.cuda.is_available() if options.device == "auto" else options.device.startswith("cuda")
    rows = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    made = rows.map_batches(
        RowMaker,
        fn_constructor_args=(options, ledger.path.absolute()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
    )
    for row in made.iter_rows():
        logger.info(summary.add(json.loads(row["entry"])))
    return summary

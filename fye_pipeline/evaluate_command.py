"""`fye evaluate`: a model on heads that it has never seen (`rendered`), or portraits and drivers of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from fye_pipeline.console import Reporter, hush_libraries
from fye_pipeline.errors import UserError
from fye_pipeline.options import Debug, Overwrite, Quiet, TaskFile
from fye_pipeline.settings import SHIPPED_MODEL

if TYPE_CHECKING:
    from fye_pipeline.pipeline import FollowYourEmojiPipeline

Jobs = Annotated[int, typer.Option(min=1, help="Processes that share the work.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]

app = typer.Typer(help="Measure a model.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@dataclass(frozen=True)
class LoadModel:
    """Loads a model folder; unlike a loaded model it can go to other processes."""

    folder: Path
    device: str

    def __call__(self) -> FollowYourEmojiPipeline:
        import torch

        from fye_pipeline.machine import choose_device, load_model

        hush_libraries()
        return load_model(self.folder, choose_device(self.device), torch.float32)


@app.command()
def rendered(
    model: Annotated[Path | None, typer.Option(help="A pipeline folder. Default: the model that ships.")] = None,
    split: Annotated[str, typer.Option(help="Which people: held, train or demo.")] = "held",
    clips: Annotated[int, typer.Option(min=2, help="How many clips, each of another head.")] = 16,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float | None, typer.Option(help="Default: what the model's recipe recommends.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which heads and which noise.")] = 0,
    cross: Annotated[bool, typer.Option("--cross/--no-cross", help="Also portraits with other heads' clips.")] = True,
    interval: Annotated[int | None, typer.Option("--N", min=1, help="Also with the cache: one full step in N.")] = None,
    order: Annotated[int, typer.Option(min=0, help="Cache: highest difference used.")] = 2,
    cut: Annotated[str, typer.Option(help="Cache: where the UNet is cut.")] = "outer",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    face_landmarker: TaskFile = None,
    jobs: Jobs = 1,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Self- and cross-reenactment on the rendered world, beside a still portrait and wrong inputs."""
    reporter = Reporter(quiet=quiet)
    if split not in ("held", "train", "demo"):
        raise UserError(f"--split must be held, train or demo, got {split!r}.")
    if not debug:
        hush_libraries()
    from fye_pipeline.evaluation import figures, reenactment
    from fye_pipeline.inputs import obtain_face_landmarker
    from fye_pipeline.models.recipe import recommended_guidance

    target = _target(json_file, overwrite=overwrite, resume=resume)
    folder = model or SHIPPED_MODEL
    plan = reenactment.Plan(
        split=split,
        clips=clips,
        seed=seed,
        frames=frames,
        steps=steps,
        guidance=recommended_guidance(folder) if guidance is None else guidance,
        cache=None if interval is None else _cache(interval, order, cut),
        cross=cross,
    )
    with reporter.progress() as on_progress:
        result = reenactment.evaluate_rendered(
            LoadModel(folder, device),
            plan,
            face_landmarker=obtain_face_landmarker(face_landmarker, reporter.note),
            jobs=jobs,
            target=target,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=reporter.note,
        )
    reporter.result(figures.describe(result), result)


def _target(path: Path | None, *, overwrite: bool, resume: bool) -> Path | None:
    """The file of the result; with `resume` it may be there already."""
    from fye_pipeline.files import writable_target

    return None if path is None else writable_target(path, overwrite=overwrite or resume)


def _cache(interval: int, order: int, cut: str) -> dict[str, Any]:
    """Options of `ticache.apply`, checked before any long work."""
    from fye_pipeline.cli import check_cache

    options = {"N": interval, "order": order, "cut": cut}
    check_cache(options)
    return options

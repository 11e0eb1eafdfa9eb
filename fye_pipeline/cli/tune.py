"""`fye tune`: the cache's full steps for a portrait model, found on rendered clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fye_pipeline.cli.options import Debug, Device, Guidance, Json, Model, Overwrite, Quiet, UnneededTaskFile
from fye_pipeline.errors import UserError
from fye_pipeline.progress import OnProgress, Reporter, hush_libraries, logger

if TYPE_CHECKING:
    from fye_pipeline.world.calls import RenderedCall

GUIDED = 3.5  # what a recording with guidance is made at where a model is best without: it serves every scale

Preset = Literal["fast", "balanced", "faithful"]


def tune(
    model: Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The JSON to write the settings to.")] = None,
    as_preset: Annotated[
        Preset | None, typer.Option(help="Also keep them as this preset of the model folder, for fye animate --preset.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Search nothing: record the uncached runs of --clips clips, and keep what they tell in the model "
            "folder; its caches then have the best full steps from the first run on.",
        ),
    ] = False,
    target_psnr: Annotated[
        float | None, typer.Option(help="The fewest full steps that keep this PSNR in dB [default: 45].")
    ] = None,
    full_steps: Annotated[
        int | None, typer.Option(min=1, help="Instead: the best fidelity at this many full steps.")
    ] = None,
    face: Annotated[bool, typer.Option("--face", help="Count fidelity in the face only, not in the frame.")] = False,
    cut: Annotated[str, typer.Option(help="Cuts that may be chosen: some of outer,output,branches.")] = "outer,output",
    clips: Annotated[int, typer.Option(min=1, help="Rendered clips to search on, each of another head.")] = 4,
    check_clips: Annotated[int, typer.Option(min=1, help="Clips of held-out heads for the check.")] = 4,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 16,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 30,
    guidance: Guidance = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Most trials to make [default: 40].")] = None,
    minutes: Annotated[float | None, typer.Option(help="Most minutes to search; the check comes on top.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which heads and noise, and the order of trials.")] = 0,
    journal: Annotated[
        Path | None, typer.Option(help="A file in which trials are kept; the same search goes on from it.")
    ] = None,
    device: Device = "auto",
    face_landmarker: UnneededTaskFile = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find which denoising steps to run in full, on rendered clips; Ctrl-C keeps the best so far."""
    reporter = Reporter(quiet=quiet, as_json=as_json)
    if target_psnr is not None and full_steps is not None:
        raise UserError("--target-psnr and --full-steps exclude each other.")
    cuts = tuple(cut.split(","))
    if not set(cuts) <= {"outer", "output", "branches"}:
        raise UserError(f"--cut must be some of outer, output and branches, with commas, got {cut!r}.")
    if full_steps is not None and full_steps > steps:
        raise UserError(f"--full-steps must be at most the {steps} denoising steps, got {full_steps}.")
    from fye_pipeline.animate.session import choose_device, choose_dtype, load_model, recommended_guidance
    from fye_pipeline.models.files import SHIPPED_MODEL
    from fye_pipeline.models.published import model_folder
    from fye_pipeline.storage.files import writable_target, write_text
    from fye_pipeline.world.calls import tuning_calls

    if not debug:
        hush_libraries()
    if calibrate:
        _calibrate(model_folder(model or SHIPPED_MODEL), reporter, device, clips, frames, steps, guidance, seed)
        return
    target = None if output is None else writable_target(output, overwrite=overwrite)
    folder = model_folder(model or SHIPPED_MODEL)
    if as_preset is not None:
        _check_preset(folder, as_preset, overwrite=overwrite)
    if output is None and as_preset is None:
        logger.info("neither --output nor --as-preset is given: the settings are only shown")
    goal = {"full_steps": full_steps} if full_steps is not None else {"target_psnr": target_psnr or 45.0}
    with reporter.progress() as on_progress:
        on = choose_device(device)
        pipe = load_model(folder, on, choose_dtype("auto", on))
        calls = tuning_calls(
            pipe,
            seed,
            (clips, check_clips),
            frames=frames,
            steps=steps,
            guidance=recommended_guidance(folder) if guidance is None else guidance,
        )
        options = {"trials": trials, "minutes": minutes, "cuts": cuts, "seed": seed, "journal": journal}
        settings = _search(pipe, calls, clips, face=face, on_progress=on_progress, **goal, **options)
    text = settings.to_json()
    if target is not None:
        write_text(target, text + "\n")
    if as_preset is not None:
        from fye_pipeline import presets

        presets.write(folder, {as_preset: json.loads(text)}, {"frames": frames, "steps": steps, "seed": seed})
    full = ", ".join(map(str, settings.steps))
    reporter.result(
        f"full steps {full}; order {settings.order}, cut {settings.cut}, {settings.forecaster}\n{settings.provenance}",
        json.loads(text),
    )


def _check_preset(folder: Path, name: Preset, *, overwrite: bool) -> None:
    from fye_pipeline import presets

    content = presets.read(folder)
    if content is not None and name in content["presets"] and not overwrite:
        raise UserError(f"{folder / presets.FILE} has a preset {name}; pass --overwrite to replace it.")


def _search(
    pipe: Any, calls: list[RenderedCall], clips: int, *, face: bool, on_progress: OnProgress, **options: Any
) -> Any:
    """Tune, telling of progress. -> the tuned `ticache.CacheConfig`. Raises `UserError` for what cannot be searched."""
    import ticache
    from ticache.tuning.trials import Progress, described

    best: list[float | None] = [None]

    def show(at: Progress) -> None:
        on_progress(at.stage, at.done, at.total)
        if at.best is not None and at.best != best[0]:
            best[0] = at.best
            logger.info(described(at))

    try:
        return ticache.tune(
            pipe,
            calls=[each.arguments for each in calls[:clips]],
            check=[each.arguments for each in calls[clips:]],
            region=[each.face for each in calls] if face else None,
            progress=show,
            **options,
        )
    except ValueError as error:
        raise UserError(f"Tuning: {error}.") from error


def _calibrate(
    folder: Path,
    reporter: Reporter,
    device: str,
    clips: int,
    frames: int,
    steps: int,
    guidance: float | None,
    seed: int,
) -> None:
    """Record uncached runs with guidance and without, and keep the recordings in the model folder."""
    import ticache
    from fye_pipeline import presets
    from fye_pipeline.animate.session import choose_device, choose_dtype, load_model, recommended_guidance
    from fye_pipeline.world.calls import tuning_calls
    from ticache.calibration import Calibration

    on = choose_device(device)
    pipe = load_model(folder, on, choose_dtype("auto", on))
    usual = recommended_guidance(folder) if guidance is None else guidance
    scales = (usual, 1.0) if usual > 1 else (1.0, GUIDED)
    found: Calibration | None = None
    with reporter.progress() as on_progress:
        for number, scale in enumerate(scales):
            made = {"frames": frames, "steps": steps, "guidance": scale}
            for index, call in enumerate(tuning_calls(pipe, seed, (clips, 0), **made)):
                on_progress("recording", number * clips + index, len(scales) * clips)
                with ticache.apply(pipe, schedule="auto") as session:
                    pipe(**call.arguments)
                    recorded = session.calibration
                assert recorded is not None
                if found is None:
                    found = recorded
                else:
                    for recording in recorded.recordings.values():
                        found.add(recording)
    assert found is not None
    conditions = {"clips": clips, "frames": frames, "steps": steps, "guidance": list(scales), "seed": seed}
    path = presets.write_calibration(folder, found.to_dict(), conditions)
    reporter.result(f"{path}: {found!r}", conditions)

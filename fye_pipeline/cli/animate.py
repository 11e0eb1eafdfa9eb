"""`fye animate`: its flags, and what they mean together with a settings file or a result made before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fye_pipeline.cli.options import (
    AcceptTerms,
    Debug,
    Detector,
    Device,
    ExpressionWeights,
    Json,
    MaxGap,
    Model,
    NoFaceRule,
    NoWatermark,
    Overwrite,
    Points,
    Quiet,
    TaskFile,
    Verbose,
)
from fye_pipeline.errors import UserError
from fye_pipeline.progress import Reporter, hush_libraries, logger

if TYPE_CHECKING:
    from fye_pipeline.animate.config import AnimationSettings

OUTPUT = Path("animated.mp4")

_CACHE = {"interval": "N", "order": "order", "cut": "cut", "preset": "preset"}
# Flags that are settings under the same name; the others are translated in `_changes`.
_SAME = (
    *("reference", "driving", "model", "steps", "guidance", "seed", "frames", "fps", "size", "long", "crop_scale"),
    *("crop_shift", "face", "min_face", "reference_frame", "background", "max_pixels", "regions", "intensity", "pose"),
    *("neutral_frame", "compare", "no_face", "max_gap", "allow_partial", "unaligned", "reference_landmarks", "dtype"),
    *("chunk", "alpha", "vae_tiling", "dilation", "detail", "points", "assign", "until", "audio_from"),
    "expression_adapter",
    "expression_weights",
)

Long = Literal["auto", "progressive", "tiles", "uniform"]
Dilation = Literal["auto", "none"]
Detail = Literal["full", "none"]
Until = Literal["shortest", "longest"]
Cut = Literal["output", "outer", "branches"]
Preset = Literal["paper", "fast", "balanced", "faithful"]
Pose = Literal["absolute", "relative"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
Offload = Literal["none", "model", "sequential"]


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is no frame rate such as 25 or 30000/1001.") from None


def animate(
    context: typer.Context,
    reference: Annotated[
        Path | None, typer.Option(help="The portrait: a picture or a video. Default: a rendered one that ships.")
    ] = None,
    driving: Annotated[
        list[Path] | None,
        typer.Option(
            help="A video, GIF, folder of pictures or landmark sequence (.npz, .npy). Default: one ships. Given more "
            "than once: a driver for each face of the picture, left to right."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The video to write: .mp4, .mov or .mkv.")] = OUTPUT,
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none. Default: the model's own, else 3.5.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    frames: Annotated[int | None, typer.Option(help="Use the first frames of the driver only.")] = None,
    fps: Annotated[
        Fraction | None, typer.Option(parser=_fraction, help="Resample the driver to this rate; its length stays.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side that the model makes. Default: the model's.")] = None,
    dilation: Annotated[
        Dilation, typer.Option(help="Larger than the model's size: its deepest convolutions reach further, early on.")
    ] = "auto",
    long: Annotated[
        Long, typer.Option(help="More frames than a clip: keyframes, then the gaps; or overlapping tiles, or windows.")
    ] = "auto",
    crop_only: Annotated[
        bool, typer.Option("--crop-only", help="Write the animated crop alone, and <output>_crop.json.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="No crop: the whole portrait, letterboxed to the model's size.")
    ] = False,
    crop_scale: Annotated[float, typer.Option(help="Side of the crop over the face's longer side.")] = 2.0,
    crop_shift: Annotated[str, typer.Option(help="Move the crop: x,y in shares of its side.")] = "0,-0.08",
    face: Annotated[
        str, typer.Option(help="Which face: largest, a number (from 1, left to right) or x,y.")
    ] = "largest",
    min_face: Annotated[int, typer.Option(help="Refuse a face with fewer pixels.")] = 48,
    assign: Annotated[
        str | None,
        typer.Option(
            help="Several faces: for each from the left its driver, from 0, or - for none, such as 1,0. With one "
            "--driving the drivers are its faces."
        ),
    ] = None,
    until: Annotated[
        Until, typer.Option(help="Several drivers: end with the shortest, or hold the last frames of the others.")
    ] = "shortest",
    audio_from: Annotated[int, typer.Option(help="Several drivers: the one whose sound is taken, from 0.")] = 0,
    expression_adapter: Annotated[
        Path | None,
        typer.Option(help="A Wan model: the published expression adapter. Default: the one that lies in its folder."),
    ] = None,
    expression_weights: ExpressionWeights = None,
    reference_frame: Annotated[
        int | None, typer.Option(help="Frame of a portrait that is a video. Default: the calmest.")
    ] = None,
    background: Annotated[str, typer.Option(help="Laid under transparent pictures: a name or #rrggbb.")] = "white",
    alpha: Annotated[
        bool, typer.Option("--alpha", help="Give the portrait's transparency back: a .webm or .mov output.")
    ] = False,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger pictures.")] = 100_000_000,
    regions: Annotated[
        str, typer.Option(help="What the driver moves: some of eyes,lips,brows,pose.")
    ] = "eyes,lips,brows,pose",
    intensity: Annotated[float, typer.Option(help="How much it moves them: 0 to 2.")] = 1.0,
    pose: Annotated[
        Pose, typer.Option(help="The head turns as the driver's, or from its own pose as the driver's does.")
    ] = "absolute",
    neutral_frame: Annotated[
        int | None,
        typer.Option(help="The driver's frame to count from. Default: the one most like the portrait."),
    ] = None,
    chunk: Annotated[int, typer.Option(help="Tiles and windows: frames made at once; the rest in parts.")] = 240,
    interval: Annotated[int | None, typer.Option("--N", help="Cache: one full step in N [default: 3].")] = None,
    order: Annotated[int | None, typer.Option(help="Cache: highest difference used [default: 2].")] = None,
    cut: Annotated[Cut | None, typer.Option(help="Cache: where the UNet is cut [default: outer].")] = None,
    preset: Annotated[Preset | None, typer.Option(help="Cache: a recipe for what is left out.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step in full.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also run uncached: PSNR, side-by-side video.")] = False,
    no_face: NoFaceRule = "interpolate",
    max_gap: MaxGap = 0.5,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Use a damaged driver up to the damage.")
    ] = False,
    unaligned: Annotated[
        bool, typer.Option("--unaligned", help="Draw the driver's own landmarks; no face is sought in the portrait.")
    ] = False,
    reference_landmarks: Annotated[
        Path | None, typer.Option(help="The portrait's landmarks (.npz of one frame), so that none are detected.")
    ] = None,
    points: Points = None,
    detector: Detector = "mediapipe",
    no_audio: Annotated[bool, typer.Option("--no-audio", help="Leave the driver's sound out.")] = False,
    face_landmarker: TaskFile = None,
    no_watermark: NoWatermark = False,
    i_accept_the_terms: AcceptTerms = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Many at once: a .csv or .jsonl whose columns are settings and output.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Rows of a manifest made at once, each in its own process.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Make a manifest's rows on Ray: local, auto, or a cluster's address.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings: JSON, or an mp4 made before. Flags beside it win.")
    ] = None,
    save_config: Annotated[Path | None, typer.Option(help="Write the settings as JSON.")] = None,
    device: Device = "auto",
    dtype: Annotated[DType, typer.Option(help="Numbers of the networks; auto is float16 on CUDA.")] = "auto",
    detail: Annotated[
        Detail | None,
        typer.Option(
            help="full: the portrait bent at its full resolution, with what the model changed laid over it (default, "
            "where the model can); none: the model's own pixels."
        ),
    ] = None,
    offload: Annotated[
        Offload, typer.Option(help="GPU memory: hold one network (model) or one layer (sequential) at a time.")
    ] = "none",
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Large pictures pass through the VAE in tiles: less memory.")
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run broke off; keep a finished output.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Animate a portrait with a driving face video; without arguments, the demo that ships."""
    reporter = Reporter(quiet=quiet, as_json=as_json, verbose=verbose)
    logger.debug("loading torch and diffusers")
    from fye_pipeline.animate.config import check_terms, row_settings
    from fye_pipeline.animate.run import is_finished
    from fye_pipeline.animate.session import check_detector
    from fye_pipeline.multi_portrait.settings import without_group
    from fye_pipeline.pipeline import check_cache_options
    from fye_pipeline.storage.files import writable_target, write_json

    if not debug:
        hush_libraries()
    base = common_settings(context, config)
    source = str(config) if config else "The flags"

    def settings_of(row: Mapping[str, Any], name: str) -> AnimationSettings:
        common = without_group(base) if "driving" in row else base
        settings = row_settings(common, row, name, check_cache_options, settings_kind({**common, **row}))
        check_terms(watermark=settings.watermark, accepted=i_accept_the_terms)
        return settings

    if manifest is None and (jobs > 1 or ray is not None):
        raise UserError("--jobs and --ray are for the rows of a --manifest.")
    if manifest is not None:
        _run_manifest(context, manifest, settings_of, reporter)
        return
    settings = settings_of({}, source)
    if save_config is not None:
        write_json(writable_target(save_config, overwrite=overwrite or resume), settings.to_dict())
    if resume and not overwrite and is_finished(output, settings):
        text = f"{output} was made with the same settings; nothing to do."
        reporter.result(text, {"output": str(output), "resumed": True})
        return
    with reporter.progress() as on_progress:
        result = settings.runner().animate(
            settings,
            output,
            overwrite=overwrite,
            resume=resume,
            face_landmarker=face_landmarker,
            detector=check_detector(detector, settings.points),
            device=device,
            offload=offload,
            on_progress=on_progress,
        )
    reporter.result(str(result), result.to_dict())


def settings_kind(values: Mapping[str, Any]) -> type[AnimationSettings]:
    """The settings that plain values are of: of Wan's pipeline, else of several people, else of one face.

    Raises:
        UserError: what only Wan's pipeline has, for another model.
    """
    from fye_pipeline.animate.config import AnimationSettings, pipeline_class
    from fye_pipeline.multi_portrait.settings import OF_GROUPS, GroupSettings
    from fye_pipeline.multi_portrait.wan_settings import OF_WAN, WAN, WanSettings

    if pipeline_class(values.get("model")) == WAN:
        return WanSettings
    if unfit := [name for name in OF_WAN if values.get(name) is not None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
        raise UserError(f"{flags} is for a folder with a {WAN}: name it with --model.")
    return AnimationSettings if set(OF_GROUPS).isdisjoint(values) else GroupSettings


def _run_manifest(
    context: typer.Context,
    manifest: Path,
    settings_of: Callable[[Mapping[str, Any], str], AnimationSettings],
    reporter: Reporter,
) -> None:
    """Animate the rows; ends the command with code 1 where some failed."""
    from fye_pipeline.animate.session import check_detector
    from fye_pipeline.batch.manifest import Options
    from fye_pipeline.batch.run import run_manifest

    given = context.params
    names = ("face_landmarker", "device", "overwrite", "resume")
    detector = check_detector(given["detector"], manifest)  # points may be a column
    options = Options(offload=given["offload"], detector=detector, **{name: given[name] for name in names})
    with reporter.progress() as on_progress:
        summary, telling = run_manifest(
            manifest, settings_of, options, jobs=given["jobs"], ray=given["ray"], on_progress=on_progress
        )
    if telling:
        reporter.result(str(summary), summary.to_dict())
        if reporter.quiet:
            for number, reason in summary.failed.items():
                print(f"fye: row {number}: {reason}", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(1)


def common_settings(context: typer.Context, config: Path | None) -> dict[str, Any]:
    """The settings of a file, if any, changed by the flags that were given, as plain values."""
    from fye_pipeline.animate.config import read_settings
    from fye_pipeline.multi_portrait.settings import OF_GROUPS

    values = read_settings(config) if config is not None else {}
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    }
    if "reference" in given:
        for name in ("reference_landmarks", "points"):  # those in the file belong to the portrait in the file
            values.pop(name, None)
    if "driving" in given:
        values = {name: value for name, value in values.items() if name not in OF_GROUPS}
    return values | _changes(given, values.get("cache"))


def _changes(given: dict[str, Any], cache: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that flags change, as plain values."""
    values = {name: _plain(given[name]) for name in _SAME if name in given}
    if files := values.pop("driving", None):
        values |= {"driving": files[0]} if len(files) == 1 else {"drivers": files}
    if given.get("crop_only") and given.get("whole"):
        raise UserError("--crop-only and --whole exclude each other.")
    for flag, name, value in (
        ("crop_only", "framing", "crop"),
        ("whole", "framing", "whole"),
        ("no_audio", "audio", False),
        ("no_watermark", "watermark", False),
        ("no_cache", "cache", None),
    ):
        if given.get(flag):
            values[name] = value
    asked = {name: _plain(given[flag]) for flag, name in _CACHE.items() if given.get(flag) is not None}
    if asked and not given.get("no_cache"):
        from fye_pipeline.animate.config import cache_options

        values["cache"] = cache_options(asked, cache)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path | Fraction) else value

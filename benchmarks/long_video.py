"""Long videos on the shipped model: are the seams seen, and does memory grow with the length?

    python -m benchmarks.long_video [--quick] [--json FILE] [--sheet PNG]
    python -m benchmarks.long_video --drivers 1 10 --json FILE  # memory of `fye animate`, drivers of 1 and 10 minutes

A held-out head of the rendered world is animated with 96 frames of its own landmarks, in every mode, each in a process
of its own. `seam` is the mean difference between two neighbouring frames where clips meet, over the median of all such
differences (`jitter`), `worst` that of the worst seam; `truth` and `truth_worst` are those of the rendered frames at
the same places. Wanted for progressive: seams within 1.5, and the same `peak_bytes` for 32 and 96 frames within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import ROOT, conditions, print_table, require_green, write_json
from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.animate.session import obtain_face_landmarker, recommended_guidance
from fye_pipeline.landmarks.drawing import draw_sequence
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.media.writer import write_video
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.sampling.clip_plan import keyframes, plan_clips, plan_windows
from fye_pipeline.sampling.progressive import clip_length, generate
from fye_pipeline.world import RenderedClip, World

TESTS = ("tests/test_sampling_clip_plan.py", "tests/test_sampling_progressive.py", "tests/test_sampling_windows.py")
MODES = ("progressive", "progressive, no seams", "uniform", "tiles")
FRAMES, SHORT = 96, 32
COLUMNS = ("mode", "frames", "steps", "seam", "worst", "truth", "truth_worst", "jitter", "l1_truth", "peak_bytes")
BYTES = 1024 if sys.platform != "darwin" else 1  # of the unit that getrusage counts memory in
OVERLAP = 4  # frames that tiles share, as the pipeline's default


def peak_bytes() -> int | None:
    """The most memory that this process has held; None where the system does not tell, such as on Windows."""
    try:
        resource = import_module("resource")
    except ImportError:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * BYTES


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process, whose `returncode` is then set. -> the most memory it has held, or None as `peak_bytes`."""
    wait4: Any = getattr(os, "wait4", None)
    if wait4 is None:
        process.wait()
        return None
    _, status, usage = wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return int(usage.ru_maxrss) * BYTES


def seams(mode: str, frames: int, length: int) -> list[int]:
    """The transitions (number of the frame before) at which a viewer could see two clips meet."""
    if mode.startswith("progressive"):
        keys = keyframes(plan_clips(frames, length=length))
        return sorted({key - 1 for key in keys} | set(keys))
    windows = plan_windows(frames, mode, length=24 if mode == "uniform" else length, overlap=OVERLAP)
    weights = np.zeros((len(windows), frames))
    for row, window in zip(weights, windows, strict=True):
        row[list(window.frames)] = window.weights
    rules = weights.argmax(axis=0)  # the window that counts most for a frame
    return [frame for frame in range(frames - 1) if rules[frame] != rules[frame + 1]]


def render(index: int, frames: int) -> tuple[RenderedClip, RenderedClip]:
    """A clip of a held-out head, and its portrait."""
    world = World(CanonicalFace.load())
    return world.clip("held", index, take=1, frames=frames), world.portrait("held", index)


def animate(mode: str, clip: RenderedClip, seen: RenderedClip, steps: int) -> tuple[NDArray[np.float32], int]:
    """The video [F, H, W, 3] in [0, 1], and the length of the mode's clips."""
    pipe = FollowYourEmojiPipeline.from_pretrained(SHIPPED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    portrait, landmarks = seen.frames[0], clip.sequence.landmarks
    pictures = draw_sequence(landmarks, len(portrait))
    bent = BentPortraits(portrait, seen.sequence.landmarks[0], landmarks, len(portrait)).stack(0, len(landmarks))
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "bent": bent,
        "guidance_scale": recommended_guidance(SHIPPED_MODEL),
    }
    if mode.startswith("progressive"):
        with tempfile.TemporaryDirectory() as folder:
            options |= {"work_folder": folder, "seed": 0, "seams": mode == "progressive"}
            video = torch.cat(list(generate(pipe, portrait, pictures, **options)))
        return video.permute(0, 2, 3, 1).numpy(), clip_length(pipe)
    options |= {"generator": torch.Generator().manual_seed(0), "output_type": "np", "overlap": OVERLAP}
    result: Any = pipe(portrait, pictures, long=mode, **options)
    return result.frames[0], clip_length(pipe)


def measure(mode: str, index: int, frames: int, steps: int, video_path: Path | None = None) -> dict[str, Any]:
    """One mode on one head, in this process, whose peak memory is the row's."""
    clip, portrait = render(index, frames)
    video, length = animate(mode, clip, portrait, steps)
    peak = peak_bytes()
    if video_path is not None:
        np.save(video_path, (video * 255 + 0.5).astype(np.uint8))
    truth = clip.frames / 255.0
    at = seams(mode, frames, length)
    row: dict[str, Any] = {"mode": mode, "head": index, "frames": frames, "steps": steps, "seams": len(at)}
    for name, moving in (("", video), ("truth", truth)):
        change = np.abs(np.diff(moving.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
        median = float(np.median(change))
        row |= {
            name or "seam": float(change[at].mean()) / median,
            f"{name}_worst" if name else "worst": float(change[at].max()) / median,
            f"{name}_jitter" if name else "jitter": median,
        }
    return row | {"l1_truth": float(np.abs(video - truth).mean()), "peak_bytes": peak}


def in_process(arguments: list[str]) -> dict[str, Any]:
    """Run this file with arguments in a process of its own. -> the JSON that it prints last."""
    command = [sys.executable, "-m", "benchmarks.long_video", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def contact_sheet(videos: list[NDArray[np.uint8]], every: int = 8) -> NDArray[np.uint8]:
    """Every eighth frame of each video in two rows, one video under the other."""
    rows = []
    for video in videos:
        shown = video[::every]
        half = -(-len(shown) // 2)
        padded = np.concatenate([shown, np.zeros((2 * half - len(shown), *shown.shape[1:]), np.uint8)])
        rows += [np.concatenate(list(padded[:half]), axis=1), np.concatenate(list(padded[half:]), axis=1)]
    return np.concatenate(rows)


def measure_modes(heads: list[int], steps: int, sheet: Path | None) -> list[dict[str, Any]]:
    """Every mode on every head, and progressive once more with fewer frames."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index in heads:
            for mode in MODES:
                video = Path(folder, f"{index}-{mode.replace(', ', '-').replace(' ', '-')}.npy")
                arguments = ["--mode", mode, "--head", str(index), "--frames", str(FRAMES), "--steps", str(steps)]
                rows.append(in_process([*arguments, "--video", str(video)]))
                print(f"{mode}, head {index}: seams {rows[-1]['seam']:.2f} of the median", file=sys.stderr)
        if sheet is not None:
            videos = [np.load(path) for path in sorted(Path(folder).glob(f"{heads[0]}-*.npy"))]
            Image.fromarray(contact_sheet(videos)).save(sheet)
    arguments = ["--mode", "progressive", "--head", str(heads[0]), "--frames", str(SHORT), "--steps", str(steps)]
    return [*rows, in_process(arguments)]


def make_driver(path: Path, minutes: float, fps: Fraction, size: int = 256) -> None:
    """A driver of that length: rendered frames of one head, to and fro."""
    world = World(CanonicalFace.load(), size=size)
    once = world.clip("held", 1, take=1, frames=24, fps=fps).frames
    there_and_back = [*once, *once[-2:0:-1]]
    count = round(minutes * 60 * fps)
    write_video(path, (there_and_back[number % len(there_and_back)] for number in range(count)), fps)


def measure_driver(minutes: float, fps: Fraction, steps: int, size: int) -> dict[str, Any]:
    """`fye animate` on a driver of some minutes, in a process of its own. -> its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        driver, output = Path(folder, "driver.mp4"), Path(folder, "out.mp4")
        make_driver(driver, minutes, fps)
        command = [
            sys.executable,
            "-m",
            "fye_pipeline.cli",
            "animate",
            "--driving",
            str(driver),
            "--output",
            str(output),
        ]
        command += [
            "--steps",
            str(steps),
            "--size",
            str(size),
            "--json",
            "--face-landmarker",
            str(obtain_face_landmarker()),
        ]
        with open(Path(folder, "report.json"), "w+b") as report:
            process = subprocess.Popen(command, cwd=ROOT, stdout=report)
            peak = wait(process)
            report.seek(0)
            made = json.loads(report.read() or b"{}")
        if process.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    row = {"mode": f"fye animate, {minutes:g} minutes at {float(fps):g} fps", "frames": made["frames"], "steps": steps}
    return row | {"size": size, "peak_bytes": peak}


def verdict(rows: list[dict[str, Any]]) -> str:
    """What was wanted, and whether it is so."""
    lines = []
    for mode in MODES:
        figures = [row for row in rows if row["mode"] == mode and row["frames"] == FRAMES]
        if figures:
            mean, worst = np.mean([row["seam"] for row in figures]), max(row["worst"] for row in figures)
            lines.append(f"{mode}: seams {mean:.2f} of the median (worst {worst:.2f})")
    long = [row for row in rows if row["mode"] == "progressive" or row["mode"].startswith("fye")]
    peaks = [row["peak_bytes"] for row in long if row["peak_bytes"] is not None]
    if len(peaks) > 1:
        lines.append(f"peak memory, most over least: {max(peaks) / min(peaks):.3f} (wanted: at most 1.10)")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one head, 8 steps; else three heads, 30 steps")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG) of the first head")
    parser.add_argument("--heads", type=int, nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--drivers", type=float, nargs="+", metavar="MINUTES", help="measure fye animate instead")
    parser.add_argument("--fps", type=Fraction, default=Fraction(1), help="of those drivers")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of their results")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--head", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=FRAMES, help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.mode:
        print(json.dumps(measure(options.mode, options.head, options.frames, options.steps, options.video)))
        return
    require_green(*TESTS)
    if options.drivers:
        rows = [measure_driver(each, options.fps, options.steps or 2, options.size) for each in options.drivers]
    else:
        heads = options.heads or ([0] if options.quick else [0, 3, 5])
        rows = measure_modes(heads, options.steps or (8 if options.quick else 30), options.sheet)
    print_table(rows, COLUMNS)
    print(verdict(rows))
    if options.json:
        write_json(options.json, rows, conditions("cpu", quick=options.quick, model=str(SHIPPED_MODEL.name)))


if __name__ == "__main__":
    main()

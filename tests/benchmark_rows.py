"""Hand-made results in the agreed shape, for the tests of what reads them; no figure here was measured."""

from __future__ import annotations

from typing import Any

CONDITIONS: dict[str, Any] = {
    "device": "a device",
    "threads": 1,
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
    "commit": "0123456789ab",
    "quick": True,
}
UNCACHED = 2.2e11


def row(name: str, calls: int | None, time: float | None, psnr: float | None, **more: Any) -> dict[str, Any]:
    """A row of `benchmarks.acceleration`."""
    return {
        "model": "portrait",
        "base": "ddim-30",
        "name": name,
        "steps": 30,
        "calls": calls,
        "flops": None if time is None else int(UNCACHED / (time * 1.04)),
        "time_ratio": time,
        "psnr": psnr,
        "psnr_region": None if psnr is None else psnr - 1.5,
        "ssim": None if psnr is None else 0.9,
        "l1_truth": None if psnr is None else 0.03,
        "error": None,
        **more,
    }


def acceleration() -> dict[str, Any]:
    """Every kind of row: ours, solvers, rivals, one that failed; two groups."""
    rows = [
        row("uncached", 30, 1.0, 100.0, flops=int(UNCACHED)),
        row("DDIM 15", 15, 1.98, 47.0, flops=int(UNCACHED / 2)),
        row("DDIM 10", 10, 2.95, 42.0, flops=int(UNCACHED / 3)),
        row("DDIM 14 (equal FLOPs, N=3)", 14, 2.1, 46.0, flops=int(UNCACHED / 2.08)),
        row("DPM-Solver++ 2M 15", 15, 1.97, 49.0, flops=int(UNCACHED / 2)),
        row("DPM-Solver++ 2M 10", 10, 2.9, 45.0),
        row("UniPC 10", 10, 2.9, 45.5),
        row("UniPC 8", 8, 3.6, 43.1),
        row("DeepCache N=3 branch 0", 10, 2.0, 44.4),
        row("DeepCache N=5 branch 0", 6, 2.4, 40.1),
        row("DeepCache N=3 branch 4", None, None, None, error="n/a: a UNet with motion modules"),
        row("tomesd 0.5", 30, 0.9, 35.0),
        row("SiTo 0.5", 30, 1.1, 38.0),
        row("Spectrum forecaster, 10 calls", 10, 2.8, 49.9),
        row("TaylorSeer maths, 10 calls", 10, 2.0, 51.0),
        row("plain reuse outer N=3", 10, 2.0, 44.0),
        row("threshold reuse, about 10 calls", 12, 2.2, 41.0),
        row("ticache N=2", 15, 1.6, 66.0),
        row("ticache N=3", 10, 2.05, 63.0),
        row("ticache order=1 N=3", 10, 2.05, 62.0),
        row("ticache N=4", 8, 2.3, 59.0),
        row("ticache N=5", 6, 2.6, 54.0),
        row("ticache output N=3", 10, 2.9, 60.0),
        row("ticache output N=5", 6, 4.6, 51.0),
        row("ticache paper N=3", 10, 2.05, 54.0),
    ]
    second = [
        row("uncached", 20, 1.0, 100.0, base="dpm-solver++-20", flops=int(UNCACHED * 2 / 3), steps=20),
        row("ticache N=3", 7, 1.9, 52.0, base="dpm-solver++-20", steps=20),
        row("DPM-Solver++ 2M 10", 10, 1.9, 39.0, base="dpm-solver++-20", steps=20),
    ]
    claim = {"model": "portrait", "claim": "10 dB above every solver", "figures": "63.0 dB, +14.0", "met": True}
    missed = {"model": "portrait", "claim": "above 60 dB at 6 calls", "figures": "54.0 dB", "met": False}
    more = {"claims": [claim, missed], "models": {"portrait": {"model_hash": "0011", "clips": 2}}}
    return {"conditions": {**CONDITIONS, **more}, "rows": [*rows, *second]}


def ablation() -> dict[str, Any]:
    """Two tables: one of settings, one of models that are trained, of which one is not."""

    def measured(name: str, tables: list[str], calls: int, psnr: float) -> dict[str, Any]:
        figures = {"psnr": psnr, "psnr_region": psnr - 1, "l1_truth": 0.03, "ssim_truth": 0.85}
        figures |= {"psnr_clips": [psnr - 2, psnr + 2], "psnr_region_clips": [psnr - 3, psnr + 1]}
        figures |= {"landmark_error": 0.008, "frames_without_face": 0, "calls": calls, "flops_ratio": 30 / calls}
        curve = {"full_steps": [0, 2], "mse": [0.0, 1e-5, 3e-6]}
        return {"name": name, "tables": tables, "steps": 30, "command": None, "error": None, **figures, **curve}

    untrained = {"name": "no facial loss", "tables": ["losses"], "steps": 30, "error": "n/a: not trained"}
    untrained["config"] = "benchmarks/configs/no-facial-loss.toml"
    untrained["command"] = "fye train --config benchmarks/configs/no-facial-loss.toml --output runs/x"
    rows = [
        measured("uncached", ["interval", "losses"], 30, 100.0),
        measured("ticache N=3 order=2", ["interval"], 10, 63.0),
        measured("ticache paper N=3 order=2", ["interval"], 10, 55.0),
        untrained,
    ]
    titles = {"interval": "Refresh interval", "losses": "Losses", "cut": "A table without rows"}
    return {"conditions": {**CONDITIONS, "titles": titles}, "rows": rows}


def kernels() -> dict[str, Any]:
    """One case with its three backends, one of them not there."""
    case = {"op": "predict", "site": "small", "dtype": "float16", "order": 2, "mask": "none"}
    timed = {"p20": 0.9e-5, "p50": 1e-5, "p80": 1.2e-5, "copy": 0.9, "error": None}
    rows = [{**case, "backend": "eager", **timed}, {**case, "backend": "compiled", **timed}]
    return {"conditions": CONDITIONS, "rows": [*rows, {**case, "backend": "triton", "error": "no GPU"}]}


def latency() -> dict[str, Any]:
    """The uncached run, one of ours, and a rival that failed."""
    timed = {
        "model": "sd15",
        "mode": "eager",
        "steps": 30,
        "p20": 0.9,
        "p50": 1.0,
        "p80": 1.2,
        "peak_bytes": None,
        "error": None,
    }
    failed = dict.fromkeys(("calls", "p20", "p50", "p80", "time_ratio", "time_ratios", "peak_bytes"))
    rows = [
        {**timed, "name": "uncached", "calls": 30, "time_ratio": 1.0, "time_ratios": [1.0, 1.0]},
        {**timed, "name": "ticache outer N=3", "calls": 10, "time_ratio": 2.4, "time_ratios": [2.3, 2.5]},
        {"model": "sd15", "mode": "eager", "name": "tomesd 0.1.3", **failed, "error": "ZeroDivisionError: by zero"},
    ]
    return {"conditions": {**CONDITIONS, "samples": {"sd15": [2, 4, 64, 64]}}, "rows": rows}


def evaluation() -> dict[str, Any]:
    """Two rows and what is asked of the model."""
    ours = {"l1": 0.031, "psnr": 25.4, "ssim": 0.855, "landmark_error": 0.0081, "frames_without_face": 0}
    still = {"l1": 0.0444, "psnr": 20.4, "ssim": 0.706, "landmark_error": None, "frames_without_face": 1}
    asked = [{"what": "L1 over that of the still portrait", "value": 0.7, "relation": "<=", "limit": 0.5, "met": False}]
    return {"ours": ours, "repeat_reference": still, "thresholds": asked, "conditions": {"seed": 0, **CONDITIONS}}


def schedules() -> dict[str, Any]:
    """One cell of the grid."""
    place = {"model": "sd-like", "sampler": "ddim", "steps": 30, "guidance": 7.5}
    fixed = {"late": 40.1, "late 1.3": 40.1, "even": 42.7, "uniform": 46.0}
    taylor = {f"{name} taylor": psnr - 1 for name, psnr in fixed.items()} | {"even taylor": 47.0}
    solvers = {"equal FLOPs DDIM": 39.3, "equal FLOPs UniPC": 40.5}
    figures = {"auto": 46.5, "default": 43.2} | fixed | taylor | solvers
    rows = [{**place, "name": name, "calls": 10, "psnr": psnr, "psnr_min": psnr - 3} for name, psnr in figures.items()]
    return {"conditions": {"device": "a processor", "models": {"sd-like": {"pictures": 6}}}, "rows": rows}

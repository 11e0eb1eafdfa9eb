"""`fye doctor` and `fye --version`: what there is on this machine. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

_GIB = 2**30
_SHOWN = ("torch", "diffusers", "numpy", "transformers", "triton")
# What a user calls it -> FFmpeg's encoders, of which the writer takes these.
_ENCODERS = {"mp4": ("libx264", "aac"), "webm": ("libvpx-vp9", "libopus"), "mov with alpha": ("prores_ks",)}
_DECODERS = ("h264", "hevc", "vp9", "av1", "prores", "mjpeg")
_DTYPES = ("float32", "float16", "bfloat16", "float64")
# Extra -> the packages by which it is known to be installed: the import name, and its name on PyPI where that differs.
_EXTRAS = {
    "portrait": (
        *(
            "accelerate",
            "av",
            "cv2",
            "filelock",
            "huggingface_hub",
            "mediapipe",
            "PIL",
            "pydantic",
            "rich",
            "safetensors",
        ),
        *("scipy", "tensorboard", "torchmetrics", "transformers", "typer"),
    ),
    "app": ("gradio",),
    "ray": ("ray",),
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, in words, and as plain values for JSON."""

    name: str
    text: str
    data: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name:<9} {self.text}"


def tell(*, as_json: bool) -> None:
    """Print every finding, a line each, or all as one JSON object."""
    found = examine()
    if as_json:
        print(json.dumps({each.name: each.data for each in found}, indent=2))
    else:
        print("\n".join(map(str, found)))


def examine() -> list[Finding]:
    """Look at everything; what cannot even be looked at is a finding with the error."""
    checks = (_packages, _devices, _kernels, _extras, _faces, _video, _models, _disk)
    return [_looked_at(check) for check in checks]


def versions() -> str:
    """Versions of this package and what it runs on, the platform, the devices."""
    ours = _version("ticache") or "(not installed)"
    devices = _looked_at(_devices)
    return f"ticache {ours}\n{_looked_at(_packages).text}\ndevices: {devices.text}"


def install_line(missing: ModuleNotFoundError) -> str:
    """The sentence for a package that is not installed."""
    name = (missing.name or str(missing)).partition(".")[0]
    extra = next((extra for extra, names in _EXTRAS.items() if name in names), "portrait")
    return f'the package {name} is not installed; run: pip install "ticache[{extra}]"'


def _looked_at(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # broken installations fail in every way, and this is where one looks for the reason
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(check.__name__.removeprefix("_"), text, {"error": text})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Finding:
    found = {"ticache": _version("ticache"), "python": platform.python_version()}
    found |= {name: _version(name) for name in _SHOWN}
    listed = ", ".join(f"{name} {found[name] or 'missing'}" for name in _SHOWN if name != "triton" or found[name])
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding(
        "packages",
        f"{listed}, Python {found['python']} on {system}",
        {"versions": found, "platform": platform.platform()},
    )


def _devices() -> Finding:
    import torch

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    data = {name: _device(torch, name) for name in names}
    return Finding("devices", "; ".join(_device_text(name, each) for name, each in data.items()), data)


def _device(torch: Any, name: str) -> dict[str, Any]:
    """What one device is, and which numbers it multiplies."""
    data: dict[str, Any] = {"name": platform.machine(), "cores": os.cpu_count()}
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        data = {"name": properties.name, "bytes": properties.total_memory}
    elif name == "mps":
        data = {"name": "Apple GPU"}
    data["dtypes"] = {dtype: _multiplies(torch, name, dtype) for dtype in _DTYPES}
    return data


def _multiplies(torch: Any, device: str, dtype: str) -> bool:
    try:
        ones = torch.ones(4, 4, dtype=getattr(torch, dtype), device=device)
        return float((ones @ ones).sum().cpu()) == 64.0
    except (RuntimeError, TypeError):  # what torch raises for numbers that a device does not have
        return False


def _device_text(name: str, data: dict[str, Any]) -> str:
    size = f", {data['bytes'] / _GIB:.0f} GiB" if "bytes" in data else ""
    size += f", {data['cores']} cores" if "cores" in data else ""
    lacking = [dtype for dtype, works in data["dtypes"].items() if not works]
    numbers = f"no {', '.join(lacking)}" if lacking else f"{', '.join(data['dtypes'])} work"
    return f"{name} ({data['name']}{size}; {numbers})"


def _kernels() -> Finding:
    import torch

    from ticache.ops import resolve_backend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen, triton = resolve_backend("auto", device), _version("triton")
    why = "" if chosen == "triton" else ": no CUDA or ROCm GPU" if device == "cpu" else ": Triton does not run here"
    text = f"Triton {triton or 'missing'}; the cache computes with {chosen}{why}"
    return Finding("kernels", text, {"triton": triton, "backend": chosen})


def _extras() -> Finding:
    missing = {extra: [n for n in names if importlib.util.find_spec(n) is None] for extra, names in _EXTRAS.items()}
    parts = []
    for extra, names in missing.items():
        lacks = f'without {", ".join(names)} (pip install "ticache[{extra}]")'
        parts.append(f"{extra} {lacks if names else 'complete'}")
    return Finding("extras", "; ".join(parts), {extra: {"missing": names} for extra, names in missing.items()})


def _faces() -> Finding:
    from fye_pipeline.models.files import known_files

    mediapipe = _version("mediapipe")
    if mediapipe is not None:
        importlib.import_module("mediapipe.tasks.python.vision")  # its libraries may be missing where its files are not
    task = next(each for each in known_files() if each.name == "face-landmarker")
    fetch = "" if task.state != "missing" else " (`fye models get face-landmarker`)"
    text = f"MediaPipe {mediapipe or 'missing'}; {task.path}: {task.state}{fetch}"
    return Finding("faces", text, {"mediapipe": mediapipe, "file": str(task.path), "state": task.state})


def _video() -> Finding:
    import av

    writes = {kind: all(_has_codec(av, name, "w") for name in names) for kind, names in _ENCODERS.items()}
    reads = {name: _has_codec(av, name, "r") for name in _DECODERS}
    text = f"PyAV {av.__version__}; writes {_listed(writes)}; reads {_listed(reads)}"
    return Finding("video", text, {"pyav": av.__version__, "writes": writes, "reads": reads})


def _has_codec(av: Any, name: str, mode: str) -> bool:
    try:
        av.Codec(name, mode)
    except ValueError:  # PyAV's error for a codec that this FFmpeg lacks is one
        return False
    return True


def _listed(works: dict[str, bool]) -> str:
    lacking = [name for name, there in works.items() if not there]
    return (", ".join(name for name, there in works.items() if there) or "nothing") + (
        f" (not {', '.join(lacking)})" if lacking else ""
    )


def _models() -> Finding:
    from fye_pipeline.models.files import known_files

    models = [each for each in known_files() if each.name != "face-landmarker"]
    text = "; ".join(f"{each.name} {each.state}" for each in models)
    return Finding("models", text, {each.name: {"path": str(each.path), "state": each.state} for each in models})


def _disk() -> Finding:
    from fye_pipeline.landmarks.model_file import cache_folder

    folder = cache_folder()
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    data = {
        "cache": {"path": str(folder), "free": shutil.disk_usage(there).free, "writable": os.access(there, os.W_OK)},
        "here": {"path": os.getcwd(), "free": shutil.disk_usage(".").free, "writable": os.access(".", os.W_OK)},
    }
    parts = [
        f"{each['free'] / _GIB:.0f} GiB free {'here' if name == 'here' else f'for the cache folder {folder}'}"
        + ("" if each["writable"] else ", not writable")
        for name, each in data.items()
    ]
    return Finding("disk", "; ".join(parts), data)

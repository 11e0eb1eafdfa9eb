"""What every benchmark shares: conditions, percentiles, tables, and the refusal to speak while tests are red."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
CODE = ("ticache", "kernels", "fye_pipeline", "benchmarks")  # folders, whole: what is measured may lie anywhere in them
PACKAGES = ("torch", "triton", "diffusers", "transformers", "numpy", "DeepCache", "tomesd")


def flags() -> argparse.ArgumentParser:
    """The flags of every benchmark, as a parent for `argparse.ArgumentParser(parents=[...])`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--quick", action="store_true", help="small sizes and fewer rows, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; several on a busy machine time its queue")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions and rows to this file")
    return parser


def conditions(device: torch.device | str = "cpu", **more: Any) -> dict[str, Any]:
    """Device, versions, commit and whatever else decides the numbers."""
    device = torch.device(device)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "timer": timer_of(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "cuda": torch.version.cuda,
        "commit": _commit(),
        **more,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")
    for line in told.read_text(encoding="utf-8").splitlines() if told.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def timer_of(device: torch.device) -> str:
    """The clock: on a CPU with one thread the time the process had, so that a busy machine tells the same."""
    return "time.process_time" if device.type == "cpu" and torch.get_num_threads() == 1 else "time.perf_counter"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with "+" where tracked files differ from it; None outside a checkout."""
    run = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or None


def require_green(*tests: str) -> None:
    """Run these test files unless they passed on the very same sources; SystemExit if one fails."""
    stamp = Path(tempfile.gettempdir(), f"ticache-green-{_fingerprint(tests)}")
    if stamp.exists():
        return
    print(f"testing first: {' '.join(tests)}", file=sys.stderr)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{run.stdout[-3000:]}{run.stderr[-1000:]}\nno figures while tests are red")
    stamp.touch()


def _fingerprint(tests: Sequence[str]) -> str:
    """A digest of the tests, of what they test and of the versions they ran with."""
    versions = {name: _version(name) for name in PACKAGES}
    digest = hashlib.sha256(repr((tests, sys.version, versions)).encode())
    code = [path for name in CODE for path in (ROOT / name).rglob("*.py")]
    helpers = [path for path in (ROOT / "tests").glob("*.py") if not path.name.startswith("test_")]
    for path in sorted({*code, *helpers, *(ROOT / test for test in tests)}):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:24]


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80 by linear interpolation."""
    values = torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return dict(zip(("p20", "p50", "p80"), values.tolist(), strict=True))


def time_calls(call: Callable[[], Any], device: torch.device, *, seconds: float, warmup: int = 3) -> dict[str, float]:
    """Seconds per call as percentiles. On a GPU: events around each call, and the L2 cache flushed before it."""
    for _ in range(warmup):
        call()
    if device.type == "cuda":
        from triton.testing import do_bench

        milliseconds = do_bench(call, rep=int(seconds * 1000), return_mode="all") or []
        return percentiles([value / 1000 for value in milliseconds])
    clock = time.process_time if timer_of(device) == "time.process_time" else time.perf_counter
    samples: list[float] = []
    while len(samples) < 5 or sum(samples) < seconds:
        start = clock()
        call()
        samples.append(clock() - start)
    return percentiles(samples)


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Rows as plain text, columns as wide as they need be."""
    if not rows:
        print("no rows")
        return
    names = list(columns or rows[0])
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path, rows: Sequence[dict[str, Any]], conditions: dict[str, Any]) -> None:
    """Conditions and rows, a line for each row."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    text = f'{{\n "conditions": {json.dumps(conditions, indent=1)},\n "rows": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

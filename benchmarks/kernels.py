"""How close do the two operations come to the memory bandwidth?

    python -m benchmarks.kernels [--quick] [--device cuda] [--json FILE]

Every row moves the least bytes that its operation can (each tensor read once, written once) in p50 seconds; `copy` is
the bandwidth of a plain copy of as many bytes, in the same run. Beside Triton's kernels stand the reference in eager
PyTorch and under torch.compile. On a CPU there is no Triton to time: its rows say so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import conditions, flags, print_table, require_green, time_calls, write_json
from ticache import ops, reference

TESTS = ("tests/test_ops.py", "tests/test_kernels_predict.py", "tests/test_kernels_update_differences.py")
# The feature that enters the last layer of the last up block, with classifier-free guidance; tokens of one attention.
SITES = {
    "SD 1.5 512": (2, 320, 64, 64),
    "AnimateDiff 16x256": (32, 320, 32, 32),
    "SDXL 1024": (2, 320, 128, 128),
    "tokens": (2, 4096, 320),
    "video 5-D": (2, 320, 16, 64, 64),
}
QUICK_SITES = {"small": (2, 32, 64, 64), "odd": (3, 31, 37, 41), "tokens": (2, 1024, 64)}
NEWTON = (1.0, 2 / 3, 5 / 9, 40 / 81, 110 / 243)
COLUMNS = ("op", "site", "dtype", "order", "mask", "backend", "megabytes", "p20", "p50", "p80", "gb_s", "copy", "error")


@dataclass(frozen=True)
class Case:
    """One operation on one site. `kind`: of the mask; "face" covers a ninth of it, "half" is a chequerboard."""

    op: str
    site: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    order: int
    kind: str | None = None
    channels_last: bool = False

    def tensors(self, device: torch.device, count: int) -> list[Tensor]:
        made = [torch.randn(self.shape, device=device).to(self.dtype) for _ in range(count)]
        return [each.to(memory_format=torch.channels_last) for each in made] if self.channels_last else made

    def mask(self, device: torch.device) -> Tensor | None:
        if self.kind is None:
            return None
        if len(self.shape) == 3:
            mask = torch.zeros(self.shape[0], self.shape[1], 1, device=device)
            mask[:, : self.shape[1] // 9] = 1
            return mask
        *_, height, width = self.shape
        mask = torch.zeros(self.shape[0], 1, *self.shape[2:], device=device)
        if self.kind == "face":
            mask[..., height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 1
        else:
            mask[..., ::2, ::2] = mask[..., 1::2, 1::2] = 1
        return mask

    def bytes_moved(self, mask: Tensor | None) -> int:
        """The least there is to move: what the mask covers, and what is read but never written, counted as they are."""
        elements = torch.Size(self.shape).numel()
        size = self.dtype.itemsize
        if self.op == "update_differences":
            return elements * size * (2 + 2 * self.order)
        inside = 1.0 if mask is None else float(mask.mean())
        weights = 0 if mask is None else mask.numel() * mask.element_size()
        return int(elements * size * (2 + self.order * inside)) + weights


def cases(quick: bool) -> Iterator[Case]:
    sites = QUICK_SITES if quick else SITES
    for dtype in (torch.float32,) if quick else (torch.float16, torch.bfloat16, torch.float32):
        for site, shape in sites.items():
            for order in (2,) if quick else (0, 1, 2, 3, 4):
                yield Case("predict", site, shape, dtype, order)
                yield Case("update_differences", site, shape, dtype, order)
            yield Case("predict", site, shape, dtype, 2, "face")
            if not quick and len(shape) > 3:
                yield Case("predict", site, shape, dtype, 2, "half")
        site, shape = next(iter(sites.items()))
        yield Case("predict", f"{site}, channels_last", shape, dtype, 2, "face", channels_last=True)


def call_of(
    case: Case, backend: str, device: torch.device, mask: Tensor | None
) -> tuple[Callable[[], Any], list[Tensor]]:
    """What is timed, and the tensors that it writes."""
    differences = case.tensors(device, case.order + 1)
    coefficients = torch.tensor(NEWTON[: case.order + 1], device=device)
    (feature,) = case.tensors(device, 1)
    if case.op == "predict":
        out = torch.empty_like(feature)
        if backend == "triton":
            return lambda: ops.predict(differences, coefficients, mask, out=out, backend="triton"), [out]
        function = torch.compile(reference.predict, dynamic=False) if backend == "compiled" else reference.predict
        return lambda: function(differences, coefficients, mask, out=out), [out]
    if backend == "triton":
        return lambda: ops.update_differences(feature, differences, backend="triton"), differences
    function = reference.update_differences
    function = torch.compile(function, dynamic=False) if backend == "compiled" else function
    return lambda: function(feature, differences), differences


def copy_speed(bytes_moved: int, device: torch.device, seconds: float) -> float:
    """Bytes per second of a copy that reads and writes `bytes_moved` bytes in all."""
    source = torch.empty(max(bytes_moved // 2, 1), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / time_calls(lambda: target.copy_(source), device, seconds=seconds)["p50"]


def measure(case: Case, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """A row per backend; all start from the same tensors and must agree before any is timed."""
    mask = case.mask(device)
    moved = case.bytes_moved(mask)
    copy = copy_speed(moved, device, seconds)
    rows, expected = [], None
    for backend in ("eager", "compiled", "triton"):
        row = {"op": case.op, "site": case.site, "shape": list(case.shape), "dtype": str(case.dtype).split(".")[1]}
        row |= {"order": case.order, "mask": case.kind, "backend": backend, "megabytes": moved / 1e6, "error": None}
        rows.append(row)
        if backend == "triton" and device.type != "cuda":
            row["error"] = "no GPU"
            continue
        torch.manual_seed(0)
        torch.compiler.reset()
        call, written = call_of(case, backend, device, mask)
        call()
        result = [each.float().clone() for each in written]
        expected = expected or result
        for actual, wanted in zip(result, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)
        row |= time_calls(call, device, seconds=seconds)
        row["gb_s"] = moved / row["p50"] / 1e9
        row["copy"] = moved / row["p50"] / copy
    return rows


def verdict(rows: list[dict[str, Any]], device: torch.device) -> str:
    """The targets, where there is a GPU to meet them: 85 % of the copy, never slower than torch.compile."""
    if device.type != "cuda":
        return "targets: to be judged on a GPU (85 % of the copy bandwidth, never slower than torch.compile)"
    ours = [row for row in rows if row["backend"] == "triton"]
    theirs = [row for row in rows if row["backend"] == "compiled"]
    slow = [f"{row['op']} {row['site']} {row['dtype']} {row['copy']:.2f}" for row in ours if row["copy"] < 0.85]
    lost = sum(our["p50"] > 1.02 * their["p50"] for our, their in zip(ours, theirs, strict=True))
    return f"below 85 % of the copy: {len(slow)} of {len(ours)} {slow}; slower than torch.compile by over 2 %: {lost}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[flags()]
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    require_green(*TESTS)
    device = torch.device(options.device)
    rows = []
    for case in cases(options.quick):
        rows += measure(case, device, seconds=0.05 if options.quick else 0.2)
        print(".", end="", flush=True)
    print()
    print_table(rows, COLUMNS)
    peak = copy_speed(2**24 if options.quick else 2**31, device, 0.5)
    print(f"copy of a large tensor: {peak / 1e9:.1f} GB/s; {verdict(rows, device)}")
    if options.json:
        write_json(options.json, rows, conditions(device, quick=options.quick, copy_bytes_per_second=peak))


if __name__ == "__main__":
    main()

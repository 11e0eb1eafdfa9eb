"""What do the kernels compile to? Registers, spills, shared memory and load widths, for GPUs that need not be here.

    python -m benchmarks.compiled_kernels [--target sm_90 ...] [--json FILE]

Compiles ahead of time, so Triton's interpreter must be off. The figures are read from the compiled object: with
NVIDIA's `cuobjdump` that comes with Triton, or from AMD's code object metadata.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.common import conditions, print_table, write_json
from ticache_kernels.launch import OPTIONS
from ticache_kernels.predict import arguments as predict_arguments
from ticache_kernels.predict import predict_kernel
from ticache_kernels.update_differences import arguments as update_arguments
from ticache_kernels.update_differences import update_differences_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTER = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def sites(dtype: torch.dtype) -> Iterator[tuple[str, list[Tensor], Tensor | None]]:
    """What a cache holds: name, differences (order 2), mask; most are Stable Diffusion's last layer, without memory."""

    def differences(*shape: int, order: int = 2) -> list[Tensor]:
        return [torch.empty(shape, dtype=dtype, device="meta") for _ in range(order + 1)]

    yield "NCHW", differences(2, 320, 64, 64), None
    yield "NCHW, order 4", differences(2, 320, 64, 64, order=4), None
    yield "NCHW, mask", differences(2, 320, 64, 64), torch.empty(2, 1, 64, 64, device="meta")
    channels_last = [each.to(memory_format=torch.channels_last) for each in differences(2, 320, 64, 64)]
    yield "channels_last, mask", channels_last, torch.empty(2, 1, 64, 64, device="meta")
    yield "tokens, mask", differences(2, 4096, 320), torch.empty(2, 4096, 1, device="meta")
    yield "video, mask", differences(2, 320, 16, 32, 32), torch.empty(2, 1, 16, 32, 32, device="meta")
    yield "odd sizes, mask", differences(3, 7, 13, 11), torch.empty(3, 1, 13, 11, device="meta")


def source(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """The kernel specialised to these arguments as a launch would: what is 1 or None is constant, the rest is typed."""
    signature, constants, attributes = {}, {}, {}

    def describe(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(describe(item, (*path, index)) for index, item in enumerate(value))
        if isinstance(value, Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return POINTER[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if value == 1:
            constants[path] = value
            return "constexpr"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if value < 2**31 else "i64"

    for index, (name, value) in enumerate(arguments.items()):
        if value is None or isinstance(value, bool | str) or name.isupper():
            signature[name] = "constexpr"
            constants[(index,)] = value
        else:
            signature[name] = describe(value, (index,))
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def resources(compiled: Any) -> dict[str, Any]:
    """Registers and spills per thread, shared memory in bytes, and the widest global load in bits."""
    if "cubin" in compiled.asm:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.cubin")
            path.write_bytes(compiled.asm["cubin"])
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
        loads = re.findall(r"ld\.global(?:\.L\w+)*(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
        widths = [int(count or 1) * int(bits) for count, bits in loads]
        spilled = figures["STACK"] + figures["LOCAL"]
        return {
            "registers": figures["REG"],
            "spilled_bytes": spilled,
            "shared_bytes": figures["SHARED"],
            "load_bits": max(widths),
        }
    text = compiled.asm["amdgcn"]
    spills = [int(count) for count in re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text)]
    (registers,) = re.findall(r"\.vgpr_count:\s+(\d+)", text)
    loads = re.findall(r"(?:global|buffer)_load_dword(?:x(\d))?\b", text)
    return {
        "registers": int(registers),
        "spilled_bytes": 4 * sum(spills),
        "shared_bytes": compiled.metadata.shared,
        "load_bits": max(32 * int(count or 1) for count in loads) if loads else 16,
    }


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Site, kernel and arguments of everything that is compiled."""
    for site, differences, mask in sites(dtype):
        coefficients = torch.empty(len(differences), device="meta")
        out = torch.empty_like(differences[0])
        yield site, predict_kernel, predict_arguments(differences, coefficients, mask, out)[1]
        if mask is None:
            yield site, update_differences_kernel, update_arguments(out, differences)[1]


def compile_all(targets: Sequence[str], *, quick: bool = False) -> list[dict[str, Any]]:
    """One row per kernel, site, dtype and target; `quick`: float16 only."""
    compile_options = {name: value for name, value in OPTIONS.items() if name != "TILE"}
    rows = []
    for dtype in (torch.float16,) if quick else (torch.float16, torch.float32):
        for site, kernel, arguments in calls(dtype):
            specialised = source(kernel, {**arguments, "TILE": OPTIONS["TILE"]})
            for target in targets:
                compiled = triton.compile(specialised, target=TARGETS[target], options=compile_options)
                row = {"kernel": kernel.__name__, "site": site, "dtype": str(dtype), "target": target}
                rows.append(row | resources(compiled))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--quick", action="store_true", help="float16 only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if knobs.runtime.interpret:
        parser.exit(2, "benchmarks.compiled_kernels: unset TRITON_INTERPRET; the interpreter compiles nothing\n")
    rows = compile_all(options.target, quick=options.quick)
    print_table(rows)
    if options.json:
        write_json(options.json, rows, conditions(targets=options.target))


if __name__ == "__main__":
    main()

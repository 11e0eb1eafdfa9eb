"""One face for the two operations of the cache: check the arguments, pick the backend, call it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ticache import reference

BACKENDS = ("auto", "triton", "reference")
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def resolve_backend(name: str, device: torch.device | str) -> str:
    """The backend that `name` means for tensors on `device`: "triton" or "reference".

    "auto" is Triton on a CUDA (or ROCm) device where Triton is installed, and the reference elsewhere; the CPU never
    gets Triton's interpreter by itself. ValueError for an unknown name; RuntimeError, with what to do, where a backend
    asked for by name cannot run.
    """
    device = torch.device(device)
    if name == "auto":
        return "triton" if device.type == "cuda" and _triton_missing(device) is None else "reference"
    if name == "reference":
        return name
    if name == "triton":
        reason = _triton_missing(device)
        if reason is not None:
            raise RuntimeError(f"backend 'triton' cannot run on {device}: {reason}")
        return name
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")


def update_differences(feature: Tensor, differences: Sequence[Tensor], *, backend: str = "auto") -> None:
    """Turn the backward differences D_0..D_O of the last full step into those of this one, in place.

    feature [*shape], each difference [*shape] on the same device; the differences share one floating-point dtype,
    which may be lower than the feature's. D_0 = feature, D_n = D_{n-1} - D_{n-1} as found; D_O is written and never
    read. ValueError or TypeError for tensors that do not fit. Equation 4 of Follow-Your-Emoji-Faster.
    """
    _check_differences(differences)
    _check_like("feature", feature, differences[0])
    _check_written("differences", differences)
    if any(feature is difference for difference in differences):
        raise ValueError("feature must not be one of the differences: they are overwritten")
    if _pick(backend, feature.device, feature.dtype, differences[0].dtype) == "triton":
        _kernels().update_differences(feature, list(differences))
    else:
        reference.update_differences(feature, differences)


def predict(
    differences: Sequence[Tensor],
    coefficients: Tensor | Sequence[float],
    mask: Tensor | None = None,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Predict a feature from its differences: D_0 + mask * (sum_i c_i D_i - D_0). -> [*shape], in `dtype`.

    differences: D_0..D_O, each [*shape]. coefficients: c_0..c_k with k <= O, as numbers or as a 1-D float32 tensor on
    the device; the tensor form neither recompiles nor is frozen into a CUDA graph when the values change. mask: values
    in [0, 1], broadcastable to [*shape]: (B, 1, H, W), (B, tokens, 1), (B, 1, F, H, W). dtype: of the result, that of
    D_0 if None. out: written and returned in place of a new tensor. Where the mask is 0 no difference is read.
    Exact: mask 0 and coefficients (1, 0, ...) give D_0 bit for bit, mask 1 what no mask gives. Errors as above.
    """
    _check_differences(differences)
    _check_coefficients(coefficients, differences)
    base = differences[0]
    if mask is not None:
        _check_mask(mask, base)
    if out is not None:
        _check_like("out", out, base)
        _check_written("out", [out])
        if dtype is not None and out.dtype != dtype:
            raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
        if any(out is difference for difference in differences):
            raise ValueError("out must not be one of the differences: they are needed for the next prediction")
    elif dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    dtype = dtype or (base.dtype if out is None else out.dtype)
    return predictor(backend, base.device, base.dtype, dtype)(differences, coefficients, mask, out=out, dtype=dtype)


def predictor(backend: str, device: torch.device, *dtypes: torch.dtype) -> Callable[..., Tensor]:
    """`predict` for such tensors without its checks: the step path chooses once, and its arguments are known to fit."""
    return reference.predict if _pick(backend, device, *dtypes) == "reference" else _launch_predict


def _launch_predict(
    differences: Sequence[Tensor],
    coefficients: Tensor | Sequence[float],
    mask: Tensor | None = None,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype,
) -> Tensor:
    if not isinstance(coefficients, Tensor):
        # On the host: the launcher hands the values to the kernel, no copy to the device and no wait.
        coefficients = torch.tensor(coefficients, dtype=torch.float32)
    if out is None:
        out = torch.empty_like(differences[0], dtype=dtype)
    _kernels().predict(list(differences[: len(coefficients)]), coefficients, mask, out)
    return out


def _pick(backend: str, device: torch.device, *dtypes: torch.dtype) -> str:
    """The backend for such tensors. "auto" leaves dtypes that the kernels lack, such as float64, to the reference."""
    chosen = resolve_backend(backend, device)
    unknown = [dtype for dtype in dtypes if dtype not in _TRITON_DTYPES]
    if chosen == "triton" and unknown:
        if backend != "auto":
            raise TypeError(f"backend 'triton' takes float32, float16 and bfloat16, got {unknown[0]}")
        return "reference"
    return chosen


def _kernels():
    import ticache_kernels  # only when used: it needs Triton

    return ticache_kernels


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _triton_missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`, with what to do; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run `pip install triton`"
    if importlib.util.find_spec("ticache_kernels") is None:
        return "ticache_kernels is not installed; run `pip install ticache`"
    if device.type == "cuda" or (device.type == "cpu" and _interpreting()):
        return None
    return "Triton needs a CUDA or ROCm device; use backend='reference', or TRITON_INTERPRET=1 to run it interpreted"


def _check_differences(differences: Sequence[Tensor]) -> None:
    if len(differences) == 0:
        raise ValueError("differences must hold at least D_0, got none")
    base = differences[0]
    if not base.is_floating_point():
        raise TypeError(f"differences must be floating-point tensors, got {base.dtype}")
    for order, difference in enumerate(differences):
        _check_like(f"differences[{order}]", difference, base)
        if difference.dtype != base.dtype:
            raise TypeError(f"differences[{order}] must have dtype {base.dtype}, got {difference.dtype}")


def _check_like(name: str, tensor: Tensor, base: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.shape != base.shape:
        raise ValueError(f"{name} must have shape {tuple(base.shape)}, got {tuple(tensor.shape)}")
    if tensor.device != base.device:
        raise ValueError(f"{name} must be on {base.device}, got {tensor.device}")


def _check_written(name: str, tensors: Sequence[Tensor]) -> None:
    for number, tensor in enumerate(tensors):
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            name = f"{name}[{number}]" if len(tensors) > 1 else name
            raise ValueError(f"{name} must not overlap itself, got strides {tensor.stride()}")


def _check_coefficients(coefficients: Tensor | Sequence[float], differences: Sequence[Tensor]) -> None:
    if isinstance(coefficients, Tensor):
        if coefficients.ndim != 1:
            raise ValueError(f"coefficients must have one axis, got shape {tuple(coefficients.shape)}")
        if not coefficients.is_floating_point():
            raise TypeError(f"coefficients must be floating-point, got {coefficients.dtype}")
        if coefficients.device not in (differences[0].device, torch.device("cpu")):
            raise ValueError(f"coefficients must be on {differences[0].device}, got {coefficients.device}")
    if not 1 <= len(coefficients) <= len(differences):
        raise ValueError(
            f"coefficients must be 1 to {len(differences)}, as many as differences at most, got {len(coefficients)}"
        )


def _check_mask(mask: Tensor, base: Tensor) -> None:
    if mask.device != base.device:
        raise ValueError(f"mask must be on {base.device}, got {mask.device}")
    if not mask.is_floating_point() and mask.dtype != torch.bool:
        raise TypeError(f"mask must be floating-point or bool, got {mask.dtype}")
    fits = mask.ndim <= base.ndim and all(
        size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(base.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"mask must be broadcastable to {tuple(base.shape)}, got shape {tuple(mask.shape)}")

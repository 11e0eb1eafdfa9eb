"""What is kept of a site's last full steps, and the prediction made from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ticache import forecast, ops


class History:
    """The differences (or, for `chebyshev`, the snapshots) of one site over one run.

    dtype: of what is kept, None for the feature's own. offload: "cpu" keeps it in host memory and fetches it for each
    prediction.
    """

    def __init__(self, *, forecaster: str, order: int, dtype: torch.dtype | None, offload: str | None, backend: str):
        self.forecaster = forecaster
        self.order = 0 if forecaster == "reuse" else order
        self.tensors: list[Tensor] = []
        self._dtype = dtype
        self._offload = offload
        self._backend = backend
        self._feature_dtype = torch.float32
        self._device = torch.device("cpu")
        self._shape = torch.Size()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @property
    def example(self) -> Tensor:
        """A tensor of the feature's shape, on its device."""
        return self.tensors[0] if self._offload is None else torch.empty((), device=self._device).expand(self._shape)

    def update(self, feature: Tensor) -> None:
        """Take in the feature of a full step, [*shape] as at every earlier full step. Copies; never keeps `feature`."""
        feature = feature.detach()
        self._feature_dtype = feature.dtype
        self._device = feature.device
        self._shape = feature.shape
        if self._offload is not None:
            feature = feature.to(self._offload)
        if self.forecaster == "chebyshev":
            if len(self.tensors) == forecast.CHEBYSHEV_SNAPSHOTS:
                self.tensors.pop()
            self.tensors.insert(0, self._empty_like(feature).copy_(feature))
            return
        if len(self.tensors) <= self.order:
            # The highest difference is written and never read, so it may begin uninitialised.
            self.tensors.append(self._empty_like(feature))
        ops.update_differences(feature, self.tensors, backend=self._backend)

    def predict(self, coefficients: Sequence[float], mask: Tensor | None = None) -> Tensor:
        """D_0 + mask * (sum_i c_i D_i - D_0) in the feature's dtype, on its device; always a new tensor."""
        used = self.tensors[: len(coefficients)]
        if self._offload is not None:
            used = [tensor.to(self._device, non_blocking=True) for tensor in used]
        return ops.predict(used, coefficients, mask, dtype=self._feature_dtype, backend=self._backend)

    def _empty_like(self, feature: Tensor) -> Tensor:
        pinned = self._offload is not None and self._device.type == "cuda"
        empty = torch.empty_like(feature, dtype=self._dtype or feature.dtype, requires_grad=False)
        return empty.pin_memory() if pinned else empty

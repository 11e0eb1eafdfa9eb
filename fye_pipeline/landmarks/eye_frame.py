"""An eye's own coordinates in a picture, in which an iris moves as a whole between two lids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class EyeFrame:
    """An eye's own coordinates: u from corner to corner in eye widths, v across, in eye widths too."""

    def __init__(self, landmarks: Array, lower: list[int], upper: list[int], iris: tuple[int, ...]) -> None:
        points = landmarks[:, :2]
        start, end = points[lower[0]], points[lower[-1]]
        if start[0] > end[0]:
            start, end = end, start
        along = end - start
        self._start, self.width = start, max(float(np.linalg.norm(along)), 1e-6)
        self._u = along / self.width
        self._v = np.array([-self._u[1], self._u[0]])
        self._floor, self._ceiling = self._sorted(points[lower]), self._sorted(points[upper])
        centre = self.to_eye(points[[iris[0]]])
        self.iris = float(centre[0][0]), float(centre[1][0])
        ring = self.to_eye(points[list(iris[1:])])
        spread = np.hypot(ring[0] - self.iris[0], ring[1] - self.iris[1])
        self.radius = max(float(spread.mean()), 0.05)
        inner = np.clip([self.iris[0] - self.radius, self.iris[0] + self.radius], 0.02, 0.98)
        self.knots = np.maximum.accumulate(np.array([0.0, inner[0], max(inner[1], inner[0] + 0.02), 1.0]))
        floor, ceiling = self.lids(np.array([0.35, 0.5, 0.65]))
        self.height = float((floor - ceiling).mean())

    def to_eye(self, pixels: Array) -> tuple[Array, Array]:
        offset = (pixels - self._start) / self.width
        return offset @ self._u, offset @ self._v

    def to_picture(self, u: Array, v: Array) -> Array:
        return self._start + self.width * (u[:, None] * self._u + v[:, None] * self._v)

    def lids(self, u: Array) -> tuple[Array, Array]:
        """The lower and the upper lid at u; v points down, so that the lower one is larger."""
        floor, ceiling = np.interp(u, *self._floor), np.interp(u, *self._ceiling)
        return np.maximum(floor, ceiling), np.minimum(floor, ceiling)

    def _sorted(self, chain: Array) -> tuple[Array, Array]:
        u, v = self.to_eye(chain)
        order = np.argsort(u)
        return u[order], v[order]

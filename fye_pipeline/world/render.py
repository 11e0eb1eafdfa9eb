"""Paint a head: polygons in painter's order at twice the size, then reduced by area."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks.geometry import project
from fye_pipeline.world.anatomy import (
    INNER_LOWER,
    INNER_UPPER,
    LEFT_EYE_CORNERS,
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    OUTER_LOWER,
    OUTER_UPPER,
    RIGHT_EYE_CORNERS,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
    Array,
    Head,
)
from fye_pipeline.world.overlay import Overlay
from fye_pipeline.world.shapes import (
    CIRCLE,
    SUBPIXEL,
    Picture,
    background_gradient,
    blend,
    blush,
    ellipsoid,
    hair_shell,
    polygon_mask,
    to_bytes,
)

OVERSAMPLE = 2

OUTER_LIPS = [61, *OUTER_UPPER, 291, *OUTER_LOWER[::-1]]
INNER_LIPS = [78, *INNER_UPPER, 308, *INNER_LOWER[::-1]]
UPPER_LIP_FILL = [61, *OUTER_UPPER, 291, 308, *INNER_UPPER[::-1], 78]
LOWER_LIP_FILL = [61, *OUTER_LOWER, 291, 308, *INNER_LOWER[::-1], 78]
EYES = (
    ([RIGHT_EYE_CORNERS[0], *RIGHT_EYE_UPPER, RIGHT_EYE_CORNERS[1], *RIGHT_EYE_LOWER[::-1]], 468),
    ([LEFT_EYE_CORNERS[0], *LEFT_EYE_UPPER, LEFT_EYE_CORNERS[1], *LEFT_EYE_LOWER[::-1]], 473),
)
LID_LINES = (
    [RIGHT_EYE_CORNERS[0], *RIGHT_EYE_UPPER, RIGHT_EYE_CORNERS[1]],
    [LEFT_EYE_CORNERS[0], *LEFT_EYE_UPPER, LEFT_EYE_CORNERS[1]],
)
LID_FOLDS = ([247, 30, 29, 27, 28, 56], [467, 260, 259, 257, 258, 286])
BROWS = (([46, 53, 52, 65, 55], [107, 66, 105, 63, 70]), ([276, 283, 282, 295, 285], [336, 296, 334, 293, 300]))
HAIRLINE = [127, 162, 21, 54, 103, 67, 109, 10, 338, 297, 332, 284, 251, 389, 356]
OVAL = [
    *(356, 389, 251, 284, 332, 297, 338, 10, 109, 67, 103, 54, 21, 162, 127, 234, 93, 132),
    *(58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454),
]


class Painter:
    """Draws one identity's frames of size x size pixels; what does not move is prepared once."""

    def __init__(self, head: Head, triangles: NDArray[np.int64], size: int, overlay: Overlay | None = None) -> None:
        self.head, self.triangles, self.size = head, triangles, size
        self.wide = size * OVERSAMPLE
        identity = head.identity
        self.cartoon = identity.style == "cartoon"
        self.background = background_gradient(identity.background, identity.style, self.wide)
        self.overlay = overlay
        if overlay is not None and (behind := overlay.background()) is not None:
            wide = cv2.resize(behind, (self.wide, self.wide), interpolation=cv2.INTER_CUBIC)
            self.background = np.asarray(wide, np.uint8)
        light = np.asarray(identity.light)
        self.light = light / np.linalg.norm(light)
        self.blush = blush(head.neutral) * identity.blush
        skin = np.asarray(identity.skin)
        red = skin * np.array([0.98, 0.66, 0.62]) if identity.style != "statue" else skin * 0.95
        self.tint = skin + (red - skin) * self.blush[:, None]  # [468, 3]
        self.skull = ellipsoid((0, 1.2, -3.2), (7.9, 9.6, 9.0))
        volume = identity.hair_volume
        self.hair_shell = hair_shell(identity.hair_style, volume)
        self.outline_color = tuple(float(c) * 0.25 for c in identity.skin)
        self.corner = np.zeros(2)

    def paint(self, points: Array, rotation: Array, translation: Array) -> tuple[Picture, Array]:
        """Draw one frame. points [478, 3] in cm and its pose -> (RGB uint8 [size, size, 3], landmarks [478, 3])."""
        image = self.background.copy()
        landmarks = self.paint_on(image, points, rotation, translation)
        small = np.asarray(cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA), np.uint8)
        return small if self.overlay is None else self.overlay.lay(small, landmarks), landmarks

    def paint_on(
        self, image: Picture, points: Array, rotation: Array, translation: Array, corner: tuple[float, float] = (0, 0)
    ) -> Array:
        """Paint a head over a picture at twice its size, uint8 [H, W, 3], which is changed; as `paint` otherwise.

        corner: where the painter's square begins, in pixels of that picture. -> landmarks [478, 3] in the square.
        """
        camera = points @ rotation.T + translation
        landmarks = project(camera, 1, 1)
        alone = image.shape == self.background.shape  # in its picture, or beside others
        before = None if alone else image.copy()
        self._place = (rotation, translation)
        self.corner = np.asarray(corner, np.float64)
        xy = landmarks[:, :2] * self.wide + self.corner
        identity = self.head.identity
        self._torso(image, rotation, translation)
        if identity.hair_style != "bald":
            self._hull(image, self.hair_shell, identity.hair, 0.82)
        self._neck(image, rotation, translation)
        self._hull(image, self.skull, identity.skin, 0.86)
        if identity.hair_style != "bald":
            self._hull(image, self.hair_shell[self.hair_shell[:, 1] > 3.0], identity.hair, 0.95)
        for side in (-1, 1):
            ear = ellipsoid((side * 7.9, 0.4, -2.6), (0.9, 2.2, 1.3))
            if identity.hair_style not in ("medium", "long"):
                self._hull(image, ear, identity.skin, 0.8)
        self._skin(image, camera, xy)
        soft = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.65 * self._unit), np.uint8)  # hides the facets
        image[:] = soft if before is None else _within(image, before, soft)
        if self.cartoon:
            self._line(image, xy[[*OVAL, OVAL[0]]], self.outline_color, 1.2)
        self._nose(image, xy)
        self._mouth(image, xy)
        for eye, iris in EYES:
            self._eye(image, xy, eye, iris)
        for k in range(2):
            self._lid(image, xy, k)
        self._brows(image, xy)
        if identity.hair_style != "bald":
            self._fringe(image, xy)
        if identity.glasses is not None:
            self._glasses(image, points)
        return landmarks

    def _flat(self, points: Array) -> Array:
        """Head coordinates [P, 3] -> pixels [P, 2] of the oversampled canvas."""
        rotation, translation = self._place
        return project(points @ rotation.T + translation, 1, 1)[:, :2] * self.wide + self.corner

    @property
    def _unit(self) -> float:
        """Pixels of the oversampled canvas per pixel of a 128-pixel picture."""
        return self.wide / 128

    def _fill(self, image: Picture, xy: Array, color: tuple[float, ...] | Array) -> None:
        fixed = np.round(xy * (1 << SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(image, [fixed], to_bytes(color), cv2.LINE_AA, SUBPIXEL)

    def _line(self, image: Picture, xy: Array, color: tuple[float, ...] | Array, width: float) -> None:
        fixed = np.round(xy * (1 << SUBPIXEL)).astype(np.int32)
        thickness = max(1, round(width * self._unit))
        cv2.polylines(image, [fixed], False, to_bytes(color), thickness, cv2.LINE_AA, SUBPIXEL)

    def _hull(self, image: Picture, points: Array, color: tuple[float, ...], shade: float) -> None:
        hull = cv2.convexHull(self._flat(points).astype(np.float32))[:, 0].astype(np.float64)
        self._fill(image, hull, np.asarray(color) * shade)
        if self.cartoon:
            self._line(image, np.concatenate([hull, hull[:1]]), self.outline_color, 1.0)

    def _torso(self, image: Picture, rotation: Array, translation: Array) -> None:
        body = np.array([0.0, 0.0, -4.0]) + translation * np.array([0.8, 0.6, 1.0])
        angles = np.linspace(0, np.pi, 24)
        arch = np.stack([19 * np.cos(angles), -24 + 9.5 * np.sin(angles) ** 0.7, 0 * angles], 1)
        arch = np.concatenate([arch, [[-19, -45, 0], [19, -45, 0]]])
        xy = project(arch + body, 1, 1)[:, :2] * self.wide + self.corner
        self._fill(image, xy, self.head.identity.clothes)
        if self.cartoon:
            self._line(image, xy, self.outline_color, 1.0)

    def _neck(self, image: Picture, rotation: Array, translation: Array) -> None:
        body = np.array([0.0, 0.0, -4.0]) + translation * np.array([0.8, 0.6, 1.0])
        top = np.array([[-4.6, -5, -3.0], [4.6, -5, -3.0]]) @ rotation.T + translation
        low = np.array([[5.2, -15.5, 0], [2.5, -17, 1], [-2.5, -17, 1], [-5.2, -15.5, 0]]) + body
        xy = project(np.concatenate([top, low]), 1, 1)[:, :2] * self.wide + self.corner
        self._fill(image, xy, np.asarray(self.head.identity.skin) * 0.68)

    def _skin(self, image: Picture, camera: Array, xy: Array) -> None:
        """The face mesh, far triangles first, each with the mean of its corners' smooth shades."""
        corners = camera[:468][self.triangles]  # [T, 3, 3]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        smooth = np.zeros((468, 3))
        np.add.at(smooth, self.triangles.ravel(), np.repeat(normals, 3, 0))
        smooth /= np.linalg.norm(smooth, axis=1, keepdims=True) + 1e-9
        shade = self._shade(smooth)
        colors = (self.tint * shade[:, None])[self.triangles].mean(1)  # [T, 3]
        front = (normals * corners.mean(1)).sum(1) < 0
        order = np.argsort(corners[:, :, 2].mean(1))
        order = order[front[order]]
        flat = np.round(xy[:468][self.triangles[order]] * (1 << SUBPIXEL)).astype(np.int32)
        values = np.clip(np.round(colors[order] * 255), 0, 255).tolist()
        self._fill(image, xy[OVAL], np.asarray(self.head.identity.skin) * 0.85)
        for triangle, color in zip(flat, values, strict=True):
            cv2.fillConvexPoly(image, triangle, color, cv2.LINE_8, SUBPIXEL)

    def _shade(self, normals: Array) -> Array:
        ambient = self.head.identity.ambient
        lit = np.clip(normals @ self.light, 0, 1)
        facing = np.clip(normals[:, 2], 0, 1)
        shade = ambient + (1 - ambient) * (0.75 * lit + 0.35 * facing)
        if self.cartoon:
            return 0.82 + 0.18 / (1 + np.exp(-(shade - 0.78) * 25))
        if self.head.identity.style == "statue":
            return 0.35 + 0.75 * lit + 0.1 * facing
        return shade

    def _nose(self, image: Picture, xy: Array) -> None:
        dark = np.asarray(self.head.identity.skin) * 0.5
        if self.cartoon:
            self._line(image, xy[[98, 97, 2, 326, 327]], dark, 1.0)
            return
        for nostril in ([166, 60, 99, 97, 141], [392, 290, 328, 326, 370]):
            centre = xy[nostril].mean(0)
            self._fill(image, centre + (xy[nostril] - centre) * 0.8, dark)

    def _mouth(self, image: Picture, xy: Array) -> None:
        identity = self.head.identity
        lips = np.asarray(identity.lips)
        inner = xy[INNER_LIPS]
        statue = identity.style == "statue"
        opening = float(np.linalg.norm(xy[13] - xy[14])) / self._unit
        self._fill(image, xy[UPPER_LIP_FILL], lips * 0.86)
        self._fill(image, xy[LOWER_LIP_FILL], lips * 1.04)
        if opening > 0.5:
            self._fill(image, inner, lips * 0.35 if statue else (0.24, 0.06, 0.07))
            self._inside(image, xy, inner, statue)
        seam = np.asarray(identity.skin) * 0.3 if not statue else lips * 0.5
        if opening <= 1.5:
            middle = (xy[list(INNER_UPPER)] + xy[list(INNER_LOWER)]) / 2
            self._line(image, np.concatenate([xy[[78]], middle, xy[[308]]]), seam, 0.9)
        if self.cartoon:
            self._line(image, xy[[61, *OUTER_UPPER, 291]], self.outline_color, 0.8)

    def _inside(self, image: Picture, xy: Array, inner: Array, statue: bool) -> None:
        """Upper teeth and tongue, clipped to the opening."""
        region = polygon_mask(inner, image.shape)
        if region is None:
            return
        (x0, y0, x1, y1), mask = region
        corner = np.array([x0, y0])
        patch = image[y0:y1, x0:x1].copy()
        teeth = np.asarray(self.head.identity.skin) * 0.8 if statue else np.array([0.95, 0.93, 0.88])
        if not statue:
            tongue = xy[[14]] + (xy[[14]] - xy[[13]]) * 0.1
            span = np.linalg.norm(xy[308] - xy[78]) * 0.3
            oval = tongue + np.stack([np.cos(CIRCLE) * span, np.sin(CIRCLE) * span * 0.55], 1)
            self._fill(patch, oval - corner, (0.72, 0.30, 0.32))
        down = (xy[152] - xy[10]) / np.linalg.norm(xy[152] - xy[10])
        reach = 0.9 * self.wide / 42  # about 9 mm of teeth show
        upper = np.concatenate([xy[[78]], xy[list(INNER_UPPER)], xy[[308]]])
        edge = upper + down * reach * np.sin(np.linspace(0.12, np.pi - 0.12, len(upper)))[:, None] ** 0.4
        self._fill(patch, np.concatenate([upper, edge[::-1]]) - corner, teeth)
        blend(image[y0:y1, x0:x1], patch, mask)

    def _eye(self, image: Picture, xy: Array, eye: list[int], iris: int) -> None:
        identity = self.head.identity
        region = polygon_mask(xy[eye], image.shape)
        if region is None:
            return
        (x0, y0, x1, y1), mask = region
        corner = np.array([x0, y0])
        statue = identity.style == "statue"
        sclera = np.asarray(identity.skin) * 0.95 if statue else np.array([0.96, 0.95, 0.94])
        patch = np.empty_like(image[y0:y1, x0:x1])
        patch[:] = to_bytes(sclera)[:3]
        centre = xy[iris] - corner
        ring = xy[iris + 1 : iris + 5] - corner
        axes = (ring[0] - ring[2]) / 2, (ring[1] - ring[3]) / 2

        def disc(scale: float, shift: Array | float = 0.0) -> Array:
            around = np.cos(CIRCLE)[:, None] * axes[0] + np.sin(CIRCLE)[:, None] * axes[1]
            return centre + around * scale + shift

        color = np.asarray(identity.iris)
        self._fill(patch, disc(1.0), color * 0.55)
        self._fill(patch, disc(0.82), color)
        self._fill(patch, disc(0.45), color * 0.3 if statue else (0.03, 0.03, 0.04))
        if not statue:
            self._fill(patch, disc(0.2, (axes[1] - axes[0]) * 0.35), (1.0, 1.0, 1.0))
        blend(image[y0:y1, x0:x1], patch, mask)

    def _lid(self, image: Picture, xy: Array, side: int) -> None:
        skin = np.asarray(self.head.identity.skin)
        statue = self.head.identity.style == "statue"
        dark = skin * 0.45 if statue else skin * 0.18
        self._line(image, xy[LID_FOLDS[side]], skin * 0.72, 0.6)
        self._line(image, xy[LID_LINES[side]], dark, 1.3 if self.cartoon else 1.0)

    def _brows(self, image: Picture, xy: Array) -> None:
        width = self.head.identity.brow_width
        for low, high in BROWS:
            bottom, top = xy[low], xy[high][::-1]
            middle = (bottom + top) / 2
            half = (top - bottom) / 2 * width
            half *= np.array([0.45, 0.9, 1.0, 1.0, 0.85])[:, None]
            self._fill(image, np.concatenate([middle - half, (middle + half)[::-1]]), self.head.identity.brow)

    def _fringe(self, image: Picture, xy: Array) -> None:
        """Hair that falls over the forehead, more on one side than on the other."""
        identity = self.head.identity
        share = np.linspace(*identity.fringe, len(HAIRLINE))
        share = np.clip(share * (0.6 + 0.4 * np.sin(np.linspace(0, np.pi, len(HAIRLINE)))), 0.02, 1)
        lower = xy[[227, 34, 139, 71, 63, 105, 66, 9, 296, 334, 293, 301, 368, 264, 447]]
        edge = xy[HAIRLINE] + (lower - xy[HAIRLINE]) * share[:, None]
        centre = xy[HAIRLINE].mean(0)
        outer = xy[HAIRLINE] + (xy[HAIRLINE] - centre) * 0.06
        self._fill(image, np.concatenate([outer, edge[::-1]]), np.asarray(identity.hair) * 0.95)
        if identity.hair_style == "long":
            for side, ids in ((-1, [162, 127, 234, 93, 132]), (1, [389, 356, 454, 323, 361])):
                lock = xy[ids]
                out = lock + np.array([side * 5.0, 0]) * self._unit
                inn = lock - np.array([side * 1.5, 0]) * self._unit
                self._fill(image, np.concatenate([out, inn[::-1]]), np.asarray(identity.hair) * 0.9)

    def _glasses(self, image: Picture, points: Array) -> None:
        color = self.head.identity.glasses
        assert color is not None
        rims = []
        for side in (-1, 1):
            angle = np.concatenate([CIRCLE, CIRCLE[:1]])
            shape = np.stack(
                [
                    side * 3.3 + 2.35 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.7,
                    2.3 + 1.75 * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.7,
                    5.2 - 0.25 * np.abs(3.3 + 2.35 * np.cos(angle)),
                ],
                1,
            )
            rims.append(shape)
            self._line(image, self._flat(shape), color, 1.0)
        self._line(image, self._flat(np.array([[-1.0, 2.8, 5.3], [1.0, 2.8, 5.3]])), color, 1.0)


def _within(image: Picture, before: Picture, soft: Picture) -> Picture:
    """The soft picture where something was painted since `before`, so that who was painted earlier stays sharp."""
    painted = (image != before).any(-1, keepdims=True)
    return np.where(painted, soft, image)

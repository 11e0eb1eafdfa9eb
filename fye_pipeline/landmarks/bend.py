"""A portrait bent to other landmarks of its own face: pure geometry, and a mask of what the result can vouch for.

The face mesh is drawn at its new place, triangle by triangle, each pixel looking back to where it came from. Two rings
around the head move with it as a rigid body; from there to a resting ring all stretches. Where the person can be told
from the background (`front`), the rings hold the hair, and the background rests behind. Irises keep their shape; an
open mouth is filled from an open one only. No part of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks.eye_frame import EyeFrame
from fye_pipeline.landmarks.front import SIZE, behind, hole_of, person_in_front, reach_of
from fye_pipeline.landmarks.geometry import CanonicalFace, metric_mesh, project, transform
from fye_pipeline.landmarks.topology import (
    FACE_OVAL,
    INNER_LIPS,
    LEFT_EYE,
    LEFT_IRIS,
    N_MESH,
    RIGHT_EYE,
    RIGHT_IRIS,
)
from fye_pipeline.media.image import resized

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Map = NDArray[np.float32]

_SUBPIXEL = 4  # fractional bits of OpenCV's polygon coordinates
_SOURCE_SIZE = 1024  # pixels a side, of twice the portrait's side, at which it is looked at what the portrait shows
_ROWS = 128  # rows of pixels that are looked up together
_HEAD_CENTRE = np.array([0.0, 0.5, -3.0])  # cm in the canonical pose
# Rings around the head: shares of the oval's distance from the centre (sides, above, below); how far their depth goes
# from the oval's own to `_HEAD_BACK`.
_RINGS = ((1.15, 1.30, 1.02, 0.2), (1.30, 1.60, 1.06, 0.5))
_HEAD_BACK = -4.0  # cm in the canonical pose
_STILL = (0.001, 0.008)  # in picture widths: a head that is shifted less than this rests; more, and it moves fully
# Degrees: a head that nods or turns less than this does not; more, and it does fully. A mouth that opens looks like 3.
_UPRIGHT = (2.0, 8.0)
_FIRM = (33, 133, 362, 263, 127, 356)  # the corners of the eyes and the temples: a head is where they are
_HAIR = (1.05, 2.4)  # the outer ring holds the hair: by how much, and up to which share of the oval's distance
_BEYOND_HAIR = 1.25  # what rests, from so much further out
_RESTING = 1.9  # of the oval's distance in the picture: from here on nothing moves
_EYES = ((RIGHT_EYE, RIGHT_IRIS), (LEFT_EYE, LEFT_IRIS))
_UNTRUSTED_STRETCH = (1.7, 3.2)  # magnification at which trust begins to fall, and at which nothing is left of it
_SEEN_EDGE_ON = (0.10, 0.35)  # cosine between a triangle and the line of sight in the portrait: no trust, full trust
_LOOKS_SHUT = 0.06  # height of the inner lips over their width
_EYE_SHUT = 0.05  # height of an eye's opening over its width: below it nothing shows between the lids
_LASHES = 0.08  # share of an eye's opening that belongs to the lids' edges
_MOVED = (0.002, 0.006)  # shift in picture widths: unmoved up to, moved from


@dataclass(frozen=True)
class Bend:
    """Where each pixel of a bent portrait comes from, and what is known of it.

    x, y: places in the portrait in 0..1, [S, S]. trust: 1 where the portrait shows what belongs here, 0 where it was
    hidden or is pulled out of a few pixels. moved: 0 where the bent portrait is the portrait. mouth: where an opened
    mouth shows what a shut one does not. front: where the person is in front of the background; None where the two
    are one. All float32 [S, S] in [0, 1].
    """

    x: Map
    y: Map
    trust: Map
    moved: Map
    mouth: Map
    front: Map | None = None

    @property
    def shown(self) -> Map:
        """Where the result can be taken from: what is trusted, and the background, filled in or not. [S, S]."""
        return self.trust if self.front is None else np.maximum(self.trust, 1 - self.front)

    def apply(self, portrait: Picture, background: Picture | None = None) -> Picture:
        """Bend a portrait of any size, uint8 [H, H, 3] -> [S, S, 3].

        background: what lies behind the person (`Bender.behind`), as large as the portrait; None bends all.
        """
        side, size = portrait.shape[0], len(self.x)
        while side >= 2 * size:  # without this, a large portrait would be sampled without averaging
            portrait = resized(portrait, side // 2)
            side //= 2
        bent = np.asarray(
            cv2.remap(
                portrait, self.x * side - 0.5, self.y * side - 0.5, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            ),
            np.uint8,
        )
        if self.mouth.any():
            dark = (bent * 0.25).astype(np.float32) + np.float32(8)
            bent = np.asarray(np.clip(bent + self.mouth[..., None] * (dark - bent), 0, 255) + 0.5, np.uint8)
        if self.front is None or background is None or not self.moved.any():
            return bent
        layered = _mix(resized(background, size), bent, self.front)
        return _mix(resized(portrait, size), layered, self.moved)

    def rgba(self, portrait: Picture, background: Picture | None = None) -> Picture:
        """The bent portrait with what it can be trusted for as its alpha; see `apply`. -> uint8 [S, S, 4]."""
        return np.dstack([self.apply(portrait, background), np.uint8(self.trust * 255 + 0.5)])


class Bender:
    """Bends one portrait; its landmarks [478, >= 3] are normalised to the square that is bent.

    front: where its person is (`person_in_front`), so that only the person moves; None where that is not known.
    """

    def __init__(self, landmarks: NDArray, canonical: CanonicalFace | None = None, front: Map | None = None) -> None:
        self._canonical = CanonicalFace.load() if canonical is None else canonical
        self.front = front
        self._known_hole: Map | None = None
        self._landmarks = np.asarray(landmarks, np.float64)
        self._mesh, self._pose = metric_mesh(self._landmarks, 1, 1, self._canonical)
        self._triangles = self._canonical.triangles
        self._oval = list(FACE_OVAL)
        points = self._landmarks[:N_MESH, :2]
        hair = np.ones(len(self._oval)) if front is None else self._hair(front)
        self._rings = _head_rings(self._mesh[self._oval], hair)
        self._resting = _resting_ring(points[self._oval], hair)
        strips, vertices = _strip_triangles(len(self._oval))
        self._strips = strips
        self._source, shown = self._vertices(self._landmarks, self._pose)
        self._faces = np.concatenate([strips, self._triangles + vertices])
        self._trust = self._source_trust(shown)

    @classmethod
    def of(
        cls, portrait: Picture, landmarks: NDArray, canonical: CanonicalFace | None = None, *, size: int = SIZE
    ) -> Bender:
        """For a portrait, uint8 [H, H, 3], whose person is told from the background, where that can be done.

        size: pixels a side at which that is done.
        """
        return cls(landmarks, canonical, person_in_front(portrait, landmarks, size))

    def behind(self, portrait: Picture) -> Picture | None:
        """What lies behind the person of the portrait, uint8 [H, H, 3]; None where that is not known."""
        return None if self.front is None else behind(portrait, self.front)

    def to(self, landmarks: NDArray, size: int) -> Bend:
        """Where the pixels of the portrait bent to landmarks [478, >= 3] come from, for `size` pixels a side."""
        target = np.asarray(landmarks, np.float64)
        _, pose = metric_mesh(target, 1, 1, self._canonical)
        count = len(self._oval)
        rest = self._source[count : count * (1 + len(_RINGS))].reshape(len(_RINGS), count, 2)
        vertices, normals = self._vertices(target, pose, rest)
        drawn, order = self._order(vertices, normals, target)
        coefficients, stretch = _affine(vertices[drawn], self._source[drawn])
        low, high = _UNTRUSTED_STRETCH
        trusted = self._trust[order] * np.clip((high - stretch) / (high - low), 0, 1)
        number = np.zeros((size, size), np.int32)
        _paint(number, vertices[drawn] * size, range(1, len(drawn) + 1))
        # Thin triangles are painted a little beyond their edges, where their maps would lead far away.
        edge = 1 / size
        bounds = np.concatenate([self._source[drawn].min(1) - edge, self._source[drawn].max(1) + edge], axis=1)
        resting = np.array([[1, 0, 0, 0, 1, 0, -1, -1, 2, 2]])
        table = np.concatenate([resting, np.concatenate([coefficients, bounds], axis=1)]).astype(np.float32)
        along = (np.arange(size, dtype=np.float32) + 0.5) / size
        column, row = along[None, :], along[:, None]
        x, y = np.empty((2, size, size), np.float32)
        for start in range(0, size, _ROWS):
            rows = slice(start, start + _ROWS)
            found = table[number[rows]]  # [rows, S, 10]
            across = found[..., 0] * column + found[..., 1] * row[rows] + found[..., 2]
            down = found[..., 3] * column + found[..., 4] * row[rows] + found[..., 5]
            x[rows] = np.clip(across, found[..., 6], found[..., 8])
            y[rows] = np.clip(down, found[..., 7], found[..., 9])
        trust = np.concatenate([[1.0], trusted]).astype(np.float32)[number]
        mouth = self._open_mouth(target, trust)
        for eye, iris in _EYES:
            self._place_eye(target, eye, iris, x, y, trust)
        shift = np.hypot(x - column, y - row)
        moved = np.clip((shift - _MOVED[0]) / (_MOVED[1] - _MOVED[0]), 0, 1)
        blur = max(size / 128, 1)
        front = None
        if self.front is not None:
            hole = self._hole(size)
            wide = len(self.front)
            place = x * wide - 0.5, y * wide - 0.5
            front = np.asarray(
                cv2.remap(self.front, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
            )
            moved = moved * np.maximum(hole, front)
            trust = (1 - hole) + front * (trust - (1 - hole))
        trust = cv2.GaussianBlur(trust, (0, 0), blur)
        moved = cv2.GaussianBlur(np.maximum(moved, 1 - trust) if moved.any() else moved, (0, 0), 1.5 * blur)
        return Bend(x, y, np.asarray(trust, np.float32), np.asarray(moved, np.float32), mouth, front)

    def pictures(self, portrait: Picture, landmarks: NDArray, size: int) -> Picture:
        """A portrait bent to many frames' landmarks [F, 478, >= 3]. -> uint8 RGBA [F, size, size, 4]."""
        background = self.behind(portrait)
        return np.stack([self.to(frame, size).rgba(portrait, background) for frame in landmarks])

    def _hole(self, size: int) -> Map:
        """Where nothing is known of what lies behind, [size, size]."""
        assert self.front is not None
        if self._known_hole is None or len(self._known_hole) != size:
            self._known_hole = hole_of(self.front, size).astype(np.float32)
        return self._known_hole

    def _hair(self, front: Map) -> Array:
        """How far the person reaches beyond the oval, at each of its points: shares of its distance. -> [36]."""
        margin, most = _HAIR
        centre = project(transform(_HEAD_CENTRE[None], self._pose), 1, 1)[0, :2]
        found = reach_of(front, centre, self._landmarks[self._oval, :2], most / margin) * margin
        wide = np.maximum(found, np.maximum(np.roll(found, 1), np.roll(found, -1)))
        return (np.roll(wide, 1) + wide + np.roll(wide, -1)) / 3

    def _vertices(self, landmarks: Array, pose: Array, rest: Array | None = None) -> tuple[Array, Array]:
        """All vertices in the picture [V, 2], the strips' rings first, and the mesh's triangles' normals [T, 3]."""
        points = landmarks[:N_MESH, :2]
        inner = _silhouette(points, points[self._oval])
        rings = [ring[:, :2] for ring in self._moved_rings(points, pose)]
        if rest is not None:
            rings = [calm + _settled(ring - calm) for calm, ring in zip(rest, rings, strict=True)]
        vertices = np.concatenate([self._resting, *rings, inner, points])
        corners = np.stack([landmarks[:N_MESH, 0], -landmarks[:N_MESH, 1], -landmarks[:N_MESH, 2]], 1)[self._triangles]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return vertices, normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)

    def _moved_rings(self, points: Array, pose: Array) -> list[Array]:
        """The rings around the head where its pose takes them, outer one first, projected. points [468, 2] -> [36, 3].

        They turn with the pose, without the tremble of a head that rests, and go where the firm points of the mesh go.
        """
        before, after = self._pose[:3, :3], pose[:3, :3]
        grown = float(np.cbrt(np.linalg.det(after) / np.linalg.det(before)))
        turn = cv2.Rodrigues(after @ np.linalg.inv(before) / grown)[0][:, 0]
        share = _rise(float(np.degrees(np.hypot(turn[0], turn[1]))), *_UPRIGHT)
        matrix = cv2.Rodrigues(turn * np.array([share, share, 1]))[0] * grown
        firm = self._mesh[list(_FIRM)]
        old, new = (transform(firm, each).mean(0) for each in (self._pose, pose))

        def moved(place: Array) -> Array:
            return project((transform(place, self._pose) - old) @ matrix.T + new, 1, 1)

        beside = points[list(_FIRM)].mean(0) - moved(firm)[:, :2].mean(0)
        return [moved(ring) + np.array([*beside, 0]) for ring in self._rings[::-1]]

    def _order(self, vertices: Array, normals: Array, landmarks: Array) -> tuple[NDArray, NDArray]:
        """Triangles in the order of painting [D, 3], and their numbers: strips, then what faces us, far before near."""
        front = np.flatnonzero(normals[:, 2] > 0)
        depth = landmarks[:N_MESH, 2][self._triangles[front]].mean(1)
        front = front[np.argsort(-depth)]
        order = np.concatenate([np.arange(len(self._strips)), len(self._strips) + front])
        drawn = self._faces[order]
        edge = vertices[drawn[:, 1:]] - vertices[drawn[:, :1]]
        area = np.abs(edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0])
        return drawn[area > 1e-9], order[area > 1e-9]

    def _source_trust(self, normals: Array) -> Array:
        """How well the portrait shows each triangle [T']: 0 for what is hidden in it or seen edge-on."""
        drawn, order = self._order(self._source, normals, self._landmarks)
        number = np.full((_SOURCE_SIZE, _SOURCE_SIZE), -1, np.int32)
        corners = (self._source[drawn] + 0.5) * (_SOURCE_SIZE / 2)
        _paint(number, corners, order.tolist())
        count = np.bincount(number[number >= 0], minlength=len(self._faces))[order]
        edge = corners[:, 1:] - corners[:, :1]
        area = np.abs(edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0]) / 2
        trust = np.zeros(len(self._faces))
        trust[order] = np.clip(count / np.maximum(area, 1) * 2 - 0.4, 0, 1)
        low, high = _SEEN_EDGE_ON
        trust[len(self._strips) :] *= np.clip((normals[:, 2] - low) / (high - low), 0, 1)
        return trust

    def _open_mouth(self, target: Array, trust: Map) -> Map:
        """Mark the inside of a mouth that opens further than the portrait's, which cannot be known. -> [S, S]."""
        size = len(trust)
        now, before = _openness(target), _openness(self._landmarks)
        mask = np.zeros_like(trust)
        if now < _LOOKS_SHUT:
            return mask
        polygon = np.round((target[list(INNER_LIPS), :2] * size - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(mask, [polygon], 1.0, cv2.LINE_8, _SUBPIXEL)
        known = float(np.clip(before / now, 0, 1)) if before > _LOOKS_SHUT else 0.0
        rise = float(np.clip((now - _LOOKS_SHUT) / 0.1, 0, 1))  # what was shut opens without a jump
        inside = mask > 0
        trust[inside] *= 1 - rise * (1 - 0.6 * known)
        soft = cv2.GaussianBlur(mask * np.float32(rise * (1 - known) ** 2), (0, 0), max(size / 256, 0.5))
        return np.asarray(soft, np.float32)

    def _place_eye(
        self,
        target: Array,
        chains: tuple[tuple[int, ...], tuple[int, ...]],
        iris: tuple[int, ...],
        x: Map,
        y: Map,
        trust: Map,
    ) -> None:
        """Within an eye's opening, move the iris as a whole and let the white stretch; changes x, y and trust there."""
        size = len(x)
        lower, upper = (list(chain) for chain in chains)
        outline = [*lower, *upper[::-1][1:-1]]
        opening = target[outline, :2]
        low = np.floor(opening.min(0) * size).astype(int).clip(0, size)
        high = (np.ceil(opening.max(0) * size).astype(int) + 1).clip(0, size)
        if (high <= low).any():
            return
        window = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        polygon = np.round((opening * size - 0.5 - low) * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(window, [polygon], 1, cv2.LINE_8, _SUBPIXEL)
        rows, columns = np.nonzero(window)
        if not len(rows):
            return
        pixels = np.stack([(columns + low[0] + 0.5) / size, (rows + low[1] + 0.5) / size], 1)
        now, then = EyeFrame(target, lower, upper, iris), EyeFrame(self._landmarks, lower, upper, iris)
        if now.height < _EYE_SHUT:
            return
        u, v = now.to_eye(pixels)
        u0 = np.interp(u, now.knots, then.knots) + u - np.clip(u, 0, 1)
        v0 = then.iris[1] + (v - now.iris[1]) * (then.radius / now.radius)
        floor, ceiling = then.lids(u0)
        low_lid, high_lid = now.lids(u)
        share = (v - high_lid) / np.maximum(low_lid - high_lid, 1e-6)  # 0 at the upper lid, 1 at the lower
        height = np.maximum(floor - ceiling, 1e-6)
        inside = np.clip(
            v0, ceiling + np.minimum(share, _LASHES) * height, floor - np.minimum(1 - share, _LASHES) * height
        )
        missed = np.abs(inside - v0) / max(then.radius, 1e-6)
        source = then.to_picture(u0, inside)
        where = rows + low[1], columns + low[0]
        x[where], y[where] = source[:, 0], source[:, 1]
        seen = np.clip((then.height - 0.08) / 0.1, 0, 1)  # a shut eye shows no iris
        trust[where] = seen * np.clip(1 - 1.5 * missed, 0, 1)


def _settled(shift: Array) -> Array:
    """Shifts of a ring's points [P, 2], without the tremble of a head that rests."""
    size = float(np.linalg.norm(shift, axis=1).max())
    return shift * _rise(size, *_STILL)


def _rise(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, smooth between."""
    share = float(np.clip((value - low) / (high - low), 0, 1))
    return share * share * (3 - 2 * share)


def _openness(landmarks: Array) -> float:
    """Height of the inner lips over their width."""
    width = np.linalg.norm(landmarks[78, :2] - landmarks[308, :2])
    return float(np.linalg.norm(landmarks[13, :2] - landmarks[14, :2]) / max(width, 1e-6))


def _head_rings(oval: Array, hair: Array) -> list[Array]:
    """Rings around the head that move with it, from the oval of its mesh [36, 3] in cm. -> each [36, 3].

    hair: how far above the ears the outer one reaches at least, as shares of the oval's distance [36].
    """
    offset = oval - _HEAD_CENTRE
    rings = []
    for step, (sides, above, below, back) in enumerate(_RINGS, 1):
        ring = offset * np.array([sides, 1.0, 1.0])
        ring[:, 1] = offset[:, 1] * np.where(offset[:, 1] > 0, above, below)
        around = offset * (1 + (hair[:, None] - 1) * step / len(_RINGS))
        farther = np.linalg.norm(around[:, :2], axis=1) > np.linalg.norm(ring[:, :2], axis=1)
        ring += (farther * _above(offset[:, 1], 4.0, -2.0))[:, None] * (around - ring)
        ring += _HEAD_CENTRE
        ring[:, 2] = oval[:, 2] + back * (_HEAD_BACK - oval[:, 2])
        rings.append(ring)
    return rings


def _resting_ring(oval: Array, hair: Array) -> Array:
    """What stays where it is: the oval [36, 2] in the picture, made larger, beyond the hair too. -> [36, 2]."""
    centre = (oval.min(0) + oval.max(0)) / 2
    offset, (width, height) = oval - centre, np.ptp(oval, axis=0)
    distance = np.linalg.norm(offset, axis=1)
    reach = float(max(width, height)) / 2 * _RESTING
    further = np.maximum(distance * hair * _BEYOND_HAIR - reach, 0) * _above(-offset[:, 1], float(height) / 4)
    return centre + offset * ((reach + further) / np.maximum(distance, 1e-9))[:, None]


def _above(upward: Array, rise: float, start: float = 0.0) -> Array:
    """From 0 at `start` to 1 a `rise` above it."""
    return np.clip((upward - start) / rise, 0, 1)


def _silhouette(mesh: Array, oval: Array) -> Array:
    """The oval [36, 2], moved out to the mesh's outline where the head is turned so that it lies within. -> [36, 2]."""
    hull = cv2.convexHull(mesh.astype(np.float32))[:, 0].astype(np.float64)
    centre = (hull.min(0) + hull.max(0)) / 2
    offset = oval - centre
    angle = np.arctan2(*(hull - centre).T[::-1])
    order = np.argsort(angle)
    angle, distance = angle[order], np.linalg.norm(hull - centre, axis=1)[order]
    around = np.concatenate([angle - 2 * np.pi, angle, angle + 2 * np.pi])
    reach = np.interp(np.arctan2(offset[:, 1], offset[:, 0]), around, np.tile(distance, 3))
    length = np.linalg.norm(offset, axis=1)
    return centre + offset * np.maximum(reach / np.maximum(length, 1e-9), 1)[:, None]


def _strip_triangles(count: int) -> tuple[NDArray[np.int64], int]:
    """Triangles between neighbouring rings of `count` vertices, outer ones first, and how many vertices they have."""
    rings = len(_RINGS) + 2  # at rest, around the head, silhouette
    here = np.arange(count)
    there = (here + 1) % count
    strips = []
    for ring in range(rings - 1):
        outer, inner = ring * count, (ring + 1) * count
        strips.append(np.stack([outer + here, outer + there, inner + here], 1))
        strips.append(np.stack([outer + there, inner + there, inner + here], 1))
    return np.concatenate(strips), rings * count


def _mix(below: Picture, above: Picture, share: Map) -> Picture:
    """One picture laid over another, [S, S, 3], as much of it as `share` [S, S] says."""
    over = cv2.blendLinear(above, below, share, 1 - share)
    return np.asarray(over, np.uint8)


def _paint(canvas: NDArray[np.int32], triangles: Array, numbers: Iterable[int]) -> None:
    """Write each triangle's number [T] into the pixels that it covers, one over the other. triangles [T, 3, 2]."""
    flat = np.round((triangles - 0.5) * (1 << _SUBPIXEL)).clip(-(2**28), 2**28).astype(np.int32)
    for number, triangle in zip(numbers, flat, strict=True):
        cv2.fillConvexPoly(canvas, triangle, (number, 0, 0, 0), cv2.LINE_8, _SUBPIXEL)


def _affine(target: Array, source: Array) -> tuple[Array, Array]:
    """Maps of triangles [T, 3, 2] back to where they came from: coefficients [T, 6] of x and y, and magnification."""
    edges, origin = target[:, 1:] - target[:, :1], target[:, 0]
    matrix = np.linalg.solve(edges, source[:, 1:] - source[:, :1])  # rows: d source / d target
    offset = source[:, 0] - np.einsum("ti,tij->tj", origin, matrix)
    least = np.linalg.svd(matrix, compute_uv=False)[:, -1]
    coefficients = np.concatenate(
        [matrix[:, :, 0], offset[:, :1], matrix[:, :, 1], offset[:, 1:]],
        axis=1,
    )
    return np.asarray(coefficients, np.float64), np.asarray(1 / np.maximum(least, 1e-6), np.float64)

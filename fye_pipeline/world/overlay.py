"""What version 2 of the world lays over its painted heads: everything that must be copied rather than known.

Skin, strokes, beards, hats, glasses and jewellery are drawn once for each head, in a frontal view, and carried to every
frame by the same bending that moves a portrait; background, cloth and light rest. All of it follows from a seed.
"""

from __future__ import annotations

import cv2
import numpy as np

from fye_pipeline.landmarks.bend import Bender
from fye_pipeline.landmarks.geometry import project
from fye_pipeline.landmarks.topology import FACE_OVAL, LEFT_EYE_POINTS, OUTER_LIPS, RIGHT_EYE_POINTS
from fye_pipeline.world.anatomy import EXPRESSIONS, Array, Head
from fye_pipeline.world.shapes import Picture
from fye_pipeline.world.textures import PATTERNS, Field, camera, natural_picture, noise, palette, strands, weave

PLAIN = 0.25  # share of the heads that are left as they are painted
DRAWN = 256  # pixels a side of the frontal view
_DISTANCE = 42.0  # cm from the camera, at which a head fills the frontal view well
_NOT_CLOTH = 0.10  # distance in colour, in [0, 1], from the cloth's at which a pixel is something else


def overlay_of(head: Head, size: int) -> Overlay | None:
    """A head's decoration, or None for one of those that have none."""
    plain = np.random.default_rng([13, *head.identity.seed]).random() < PLAIN
    return None if plain else Overlay(head, size)


class Overlay:
    """One head's decoration for frames of `size` pixels; see the module."""

    def __init__(self, head: Head, size: int) -> None:
        self.size, self.head = size, head
        self._rng = rng = np.random.default_rng([11, *head.identity.seed])
        front = head.pose(np.zeros(len(EXPRESSIONS)), np.zeros(2)) + np.array([0.0, 0.0, -_DISTANCE])
        self._landmarks = project(front, 1, 1)
        self._bender = Bender(self._landmarks)
        self._xy = self._landmarks[:, :2] * DRAWN
        self._paint = np.zeros((DRAWN, DRAWN, 4), np.float32)  # colour and cover, laid over
        self._shade = np.ones((DRAWN, DRAWN, 3), np.float32)  # multiplied
        self._skin()
        self._strokes()
        self._beard()
        self._hat()
        self._kept_clear()
        self._glasses()
        self._jewels()
        self._cloth = self._cloth_pattern()
        self._light = self._light_field()
        self._look = str(rng.choice(("plain", "sketch", "sepia", "grey"), p=(0.86, 0.04, 0.04, 0.06)))
        self._camera_seed = int(rng.integers(2**31))

    def background(self) -> Picture | None:
        """A picture behind the head, or None for the plain one. -> uint8 [size, size, 3]."""
        rng = np.random.default_rng([12, *self.head.identity.seed])
        if rng.random() < 0.3:
            return None
        picture = natural_picture(self.size, rng)
        blur = float(rng.choice((0.0, 0.6, 1.5, 4.0)))
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.uint8) if blur else picture
        mean = picture.mean((0, 1))
        return (mean + (picture - mean) * rng.uniform(0.3, 1.0)).astype(np.uint8)

    def lay(self, frame: Picture, landmarks: Array) -> Picture:
        """Decorate a painted frame, uint8 [size, size, 3], with exact landmarks [478, 3] -> the same."""
        bend = self._bender.to(landmarks, self.size)
        places = bend.x * DRAWN - 0.5, bend.y * DRAWN - 0.5
        layers = np.dstack([self._paint, self._shade])
        moved = np.dstack([cv2.remap(part, *places, cv2.INTER_LINEAR) for part in (layers[..., :4], layers[..., 4:])])
        picture = frame.astype(np.float32) / 255
        if self._cloth is not None:
            distance = np.abs(picture - np.asarray(self.head.identity.clothes, np.float32)).max(-1, keepdims=True)
            picture = picture * (1 + np.clip(1 - distance / _NOT_CLOTH, 0, 1) * self._cloth)
        picture = picture * moved[..., 4:]
        picture = picture + moved[..., 3:4] * (moved[..., :3] - picture)
        return self._finish(np.clip(picture * self._light, 0, 1).astype(np.float32))

    def _finish(self, picture: Field) -> Picture:
        grey = picture.mean(-1, keepdims=True)
        if self._look == "grey":
            picture = np.repeat(grey, 3, -1)
        elif self._look == "sepia":
            picture = grey * np.array([1.0, 0.86, 0.68], np.float32)
        elif self._look == "sketch":
            edges = np.abs(cv2.Laplacian(cv2.GaussianBlur(grey[..., 0], (0, 0), 0.8), cv2.CV_32F))[..., None]
            picture = np.repeat(np.clip(0.55 + 0.4 * grey - 3.5 * edges, 0, 1), 3, -1)
        return camera((picture * 255 + 0.5).astype(np.uint8), np.random.default_rng(self._camera_seed))

    def _area(self, points: Array | list[int] | tuple[int, ...], soft: float = 1.5) -> Field:
        """A soft polygon of landmarks, or of places in pixels of the frontal view. -> [DRAWN, DRAWN]."""
        places = self._xy[list(points)] if isinstance(points, list | tuple) else points
        mask = np.zeros((DRAWN, DRAWN), np.float32)
        hull = cv2.convexHull(np.asarray(places, np.float32))
        cv2.fillPoly(mask, [np.round(hull * 16).astype(np.int32)], (1.0,), cv2.LINE_AA, 4)
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), soft), np.float32)

    def _cover(self, mask: Field, colour: Field) -> None:
        """Lay a colour [3] or picture [DRAWN, DRAWN, 3] over what is drawn, as far as the mask goes."""
        mask = mask[..., None]
        self._paint[..., :3] += mask * (colour - self._paint[..., :3])
        self._paint[..., 3:] += mask * (1 - self._paint[..., 3:])

    def _colour(self) -> Field:
        return palette(self._rng, 1)[0]

    def _skin(self) -> None:
        """Blotches, freckles, lines: how light or dark the skin and the hair are from place to place."""
        rng = self._rng
        for _ in range(int(rng.integers(1, 4))):
            field = PATTERNS[rng.integers(len(PATTERNS))](DRAWN, rng)[..., None] - 0.5
            self._shade *= 1 + field * rng.uniform(0.05, 0.5) * rng.uniform(0.7, 1.3, 3).astype(np.float32)
        oval = self._xy[list(FACE_OVAL)]
        hair = self._area(oval.mean(0) + (oval - oval.mean(0)) * 1.35, 8.0) * (1 - self._area(list(FACE_OVAL), 3.0))
        self._shade *= 1 + (strands(DRAWN, rng) - 0.5)[..., None] * hair[..., None] * rng.uniform(0.2, 1.2)
        if rng.random() < 0.35:
            spots = np.zeros((DRAWN, DRAWN), np.float32)
            for _ in range(int(rng.integers(3, 120))):
                centre = tuple(int(v) for v in self._xy[rng.integers(468)] + rng.normal(0, 6, 2))
                cv2.circle(spots, centre, int(rng.integers(1, 3)), (1.0,), -1, cv2.LINE_AA)
            self._shade *= 1 - spots[..., None] * rng.uniform(0.1, 0.6)
        if rng.random() < 0.5:
            for _ in range(int(rng.integers(2, 14))):  # wrinkles
                start = self._xy[rng.integers(468)]
                places = start + np.cumsum(rng.normal(0, 5, (4, 2)) + rng.normal(0, 3, 2), 0)
                drawn = np.zeros((DRAWN, DRAWN), np.float32)
                cv2.polylines(drawn, [np.round(places).astype(np.int32)], False, (1.0,), 1, cv2.LINE_AA)
                self._shade *= 1 - cv2.GaussianBlur(drawn, (0, 0), 0.7)[..., None] * rng.uniform(0.1, 0.5)

    def _strokes(self) -> None:
        """Patches of paint, as an oil painting or face paint has."""
        rng = self._rng
        if rng.random() > 0.3:
            return
        for _ in range(int(rng.integers(1, 25))):
            centre = self._xy[rng.integers(468)] + rng.normal(0, 14, 2)
            around = rng.normal(0, rng.uniform(2, 14), (5, 2)) + centre
            self._cover(self._area(around, rng.uniform(0.6, 3)) * rng.uniform(0.2, 0.9), self._colour())

    def _beard(self) -> None:
        rng, xy = self._rng, self._xy
        kind = rng.choice(("none", "beard", "moustache", "stubble"), p=(0.62, 0.16, 0.12, 0.10))
        if kind == "none":
            return
        colour = np.clip(np.asarray(self.head.identity.hair) * rng.uniform(0.5, 1.3), 0, 1).astype(np.float32)
        fine = 0.6 + 0.8 * strands(DRAWN, rng)[..., None]
        centre = xy[0] * 0.4 + xy[2] * 0.6  # between nose and lip
        wide = np.linalg.norm(xy[61] - xy[291])
        if kind == "moustache":
            across, down = wide * rng.uniform(0.45, 0.85), wide * rng.uniform(0.08, 0.2)
            angles = np.linspace(0, 2 * np.pi, 16)
            mask = self._area(centre + np.stack([np.cos(angles) * across, np.sin(angles) * down], 1), 1.2)
        else:
            low = [132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361]
            mask = self._area(np.concatenate([xy[low] + np.array([0, rng.uniform(0, 10)]), xy[[205, 425]]]), 3.0)
        cover = mask * (rng.uniform(0.25, 0.5) if kind == "stubble" else rng.uniform(0.75, 1.0))
        self._cover(cover, (colour * fine).astype(np.float32))

    def _hat(self) -> None:
        rng, xy = self._rng, self._xy
        if rng.random() > 0.22:
            return
        left, right, top = xy[[127, 234]].mean(0), xy[[356, 454]].mean(0), xy[10]
        width, rise = right[0] - left[0], rng.uniform(0.25, 0.7) * (xy[152, 1] - top[1])
        brim = top[1] + rng.uniform(-0.02, 0.14) * (xy[152, 1] - top[1])
        out = width * rng.uniform(0.0, 0.2)
        places = [[left[0] - out, brim], [right[0] + out, brim], [right[0] + out / 2, brim - rise * 0.7]]
        places += [[top[0], brim - rise], [left[0] - out / 2, brim - rise * 0.7]]
        first, second = palette(rng, 2)
        pattern = weave(DRAWN, rng)[..., None] if rng.random() < 0.6 else noise(DRAWN, rng, 1.2)[..., None]
        self._cover(self._area(np.array(places), 1.0), first + pattern * (second - first) * rng.uniform(0, 1))

    def _kept_clear(self) -> None:
        """Nothing so far may cover eyes and lips, which move by themselves."""
        lips = list({point for chain in OUTER_LIPS for point in chain})
        for points in (list(RIGHT_EYE_POINTS), list(LEFT_EYE_POINTS), lips):
            clear = np.clip(self._area(points, 1.5) * 1.6, 0, 1)[..., None]
            self._paint[..., 3:] *= 1 - clear
            self._shade += clear * (1 - self._shade)

    def _glasses(self) -> None:
        rng, xy = self._rng, self._xy
        if self.head.identity.glasses is not None or rng.random() > 0.3:
            return
        frame = np.zeros((DRAWN, DRAWN), np.float32)
        thick = int(rng.integers(1, 5))
        across = np.linalg.norm(xy[33] - xy[133]) * rng.uniform(0.75, 1.1)
        down = across * rng.uniform(0.6, 1.0)
        square = rng.uniform(0.35, 1.0)
        angles = np.linspace(0, 2 * np.pi, 32)
        shape = np.stack([np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** square * across], 1)
        shape = np.concatenate([shape, (np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** square * down)[:, None]], 1)
        centres = [xy[[33, 133]].mean(0), xy[[263, 362]].mean(0)]
        for centre in centres:
            cv2.polylines(
                frame, [np.round((shape + centre) * 16).astype(np.int32)], True, (1.0,), thick, cv2.LINE_AA, 4
            )
        inner = [centres[0] + np.array([across, -2]), centres[1] - np.array([across, 2])]
        outer = [xy[127], centres[0] - np.array([across, 2]), centres[1] + np.array([across, -2]), xy[356]]
        for start, end in ((inner[0], inner[1]), (outer[0], outer[1]), (outer[2], outer[3])):
            cv2.line(frame, tuple(map(int, start)), tuple(map(int, end)), (1.0,), thick, cv2.LINE_AA)
        self._cover(np.clip(frame, 0, 1), self._colour() * rng.uniform(0.2, 1.0))

    def _jewels(self) -> None:
        rng = self._rng
        if rng.random() > 0.2:
            return
        mask = np.zeros((DRAWN, DRAWN), np.float32)
        for point, side in ((132, -1), (361, 1)):
            centre = self._xy[point] + np.array([side * 5.0, rng.uniform(0, 4)])
            cv2.circle(mask, tuple(map(int, centre)), int(rng.integers(2, 6)), (1.0,), -1, cv2.LINE_AA)
        self._cover(mask, self._colour())

    def _cloth_pattern(self) -> Field | None:
        rng = self._rng
        if rng.random() < 0.3:
            return None
        field = weave(self.size, rng) if rng.random() < 0.6 else noise(self.size, rng, rng.uniform(0.6, 1.5))
        return (field[..., None] - 0.5) * rng.uniform(0.2, 1.4) * rng.uniform(0.4, 1, 3).astype(np.float32)

    def _light_field(self) -> Field:
        """Coloured light, light from one side, a vignette. -> [size, size, 3], about 1."""
        rng = self._rng
        y, x = np.mgrid[-1 : 1 : self.size * 1j, -1 : 1 : self.size * 1j].astype(np.float32)
        light = np.ones((self.size, self.size, 1), np.float32)
        if rng.random() < 0.5:
            angle = rng.uniform(0, 2 * np.pi)
            light = light * (1 + (x * np.cos(angle) + y * np.sin(angle))[..., None] * rng.uniform(0, 0.4))
        if rng.random() < 0.25:
            light = light * (1 - (x * x + y * y)[..., None] * rng.uniform(0, 0.3))
        tint = 1 + rng.normal(0, 0.1, 3) if rng.random() < 0.5 else np.ones(3)
        return (light * tint * rng.uniform(0.65, 1.1)).astype(np.float32)

"""Who a head is and how its face can move: smooth changes of MediaPipe's canonical mesh.

Units are centimetres in the canonical pose: x to the image's right, y up, z towards the viewer.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STYLES = ("photo", "cartoon", "statue")

# Names follow the 52 blendshapes of the face landmarker wherever one of them says the same.
EXPRESSIONS = (
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeWideLeft",
    "eyeWideRight",
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "jawOpen",
    "jawLeft",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthPucker",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "noseSneerLeft",
)

RIGHT_EYE_UPPER = (246, 161, 160, 159, 158, 157, 173)
RIGHT_EYE_LOWER = (7, 163, 144, 145, 153, 154, 155)
RIGHT_LID_FOLD = (247, 30, 29, 27, 28, 56, 190)
RIGHT_LID_OUTER = (113, 225, 224, 223, 222, 221, 189)
LEFT_EYE_UPPER = (466, 388, 387, 386, 385, 384, 398)
LEFT_EYE_LOWER = (249, 390, 373, 374, 380, 381, 382)
LEFT_LID_FOLD = (467, 260, 259, 257, 258, 286, 414)
LEFT_LID_OUTER = (342, 445, 444, 443, 442, 441, 413)
RIGHT_EYE_CORNERS = (33, 133)
LEFT_EYE_CORNERS = (263, 362)

UPPER_LIP = (
    *(185, 40, 39, 37, 0, 267, 269, 270, 409, 184, 74, 73, 72, 11, 302, 303, 304, 408),
    *(183, 42, 41, 38, 12, 268, 271, 272, 407, 191, 80, 81, 82, 13, 312, 311, 310, 415),
)
LOWER_LIP = (
    *(146, 91, 181, 84, 17, 314, 405, 321, 375, 77, 90, 180, 85, 16, 315, 404, 320, 307),
    *(96, 89, 179, 86, 15, 316, 403, 319, 325, 95, 88, 178, 87, 14, 317, 402, 318, 324),
)
MOUTH_CORNERS = (61, 76, 62, 78, 291, 306, 292, 308)
INNER_UPPER = (191, 80, 81, 82, 13, 312, 311, 310, 415)
INNER_LOWER = (95, 88, 178, 87, 14, 317, 402, 318, 324)
OUTER_UPPER = (185, 40, 39, 37, 0, 267, 269, 270, 409)
OUTER_LOWER = (146, 91, 181, 84, 17, 314, 405, 321, 375)

JAW_HINGE = (-0.5, -1.0)  # y, z of the axis between the ears
IRIS_RADIUS = 0.72

SHAPES = (
    *("width", "height", "depth", "jaw_width", "chin_length", "cheeks", "forehead", "nose_size", "nose_width"),
    *("eye_size", "eye_spacing", "eye_tilt", "mouth_width", "mouth_height", "lip_fullness", "brow_height"),
    "brow_tilt",
)


@dataclass(frozen=True)
class Identity:
    """Everything about a head that does not change while it moves; colours are RGB in [0, 1]."""

    seed: tuple[int, ...]
    style: str
    shape: tuple[float, ...]  # one value in [-1, 1] per entry of SHAPES
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    brow: tuple[float, float, float]
    lips: tuple[float, float, float]
    iris: tuple[float, float, float]
    clothes: tuple[float, float, float]
    background: tuple[tuple[float, float, float], ...] = field(default=())
    brow_width: float = 0.6
    hair_style: str = "short"
    hair_volume: float = 0.5
    fringe: tuple[float, float] = (0.0, 0.0)  # how far hair falls over the forehead, right and left
    blush: float = 0.2
    glasses: tuple[float, float, float] | None = None
    light: tuple[float, float, float] = (0.3, 0.4, 0.85)
    ambient: float = 0.55


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1)))


def _between(a: tuple[float, ...], b: tuple[float, ...], share: float) -> tuple[float, float, float]:
    mixed = (1 - share) * np.asarray(a) + share * np.asarray(b)
    return (float(mixed[0]), float(mixed[1]), float(mixed[2]))


def sample_identity(*seed: int, style: str | None = None) -> Identity:
    """Draw a head from a seed. Raises ValueError for an unknown style."""
    rng = np.random.default_rng([1, *seed])
    drawn = str(rng.choice(STYLES, p=(0.62, 0.24, 0.14)))
    if style is not None and style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    style = style or drawn
    shape = tuple(float(v) for v in np.clip(rng.normal(0, 0.45, len(SHAPES)), -1, 1))
    skin = _between((0.95, 0.78, 0.66), (0.42, 0.27, 0.19), float(rng.beta(1.1, 1.6)))
    skin = _between(skin, _hsv(rng.uniform(0.02, 0.09), 0.5, 0.8), rng.uniform(0, 0.25))
    natural = ((0.09, 0.07, 0.06), (0.26, 0.16, 0.10), (0.50, 0.32, 0.17), (0.80, 0.64, 0.36), (0.55, 0.22, 0.10))
    hair = (*natural, (0.62, 0.60, 0.58))[rng.integers(6)]
    if rng.random() < 0.15:
        hair = _hsv(rng.random(), 0.6, 0.65)
    brow = _between(hair, (0.12, 0.08, 0.06), 0.45)
    lips = _between(skin, _hsv(rng.uniform(0.94, 1.02), 0.65, 0.65), rng.uniform(0.35, 0.75))
    iris = ((0.25, 0.14, 0.07), (0.36, 0.24, 0.10), (0.22, 0.42, 0.62), (0.27, 0.45, 0.27), (0.36, 0.42, 0.46))[
        rng.integers(5)
    ]
    clothes = _hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.85))
    hue = rng.random()
    background = tuple(
        _hsv(hue + rng.normal(0, 0.06), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.95)) for _ in range(3)
    )
    if style == "cartoon":
        saturated = colorsys.rgb_to_hsv(*skin)
        skin = _hsv(saturated[0], saturated[1] * 1.15, saturated[2] * 1.05)
        iris = _hsv(rng.random(), 0.7, 0.55)
    if style == "statue":
        grey = rng.uniform(0.62, 0.85)
        tint = (grey, grey * rng.uniform(0.94, 1.0), grey * rng.uniform(0.86, 1.0))
        skin, hair, clothes = tint, _between(tint, (0, 0, 0), 0.18), _between(tint, (0, 0, 0), 0.12)
        brow, lips, iris = (_between(tint, (0, 0, 0), s) for s in (0.32, 0.16, 0.35))
    glasses = None
    if style != "statue" and rng.random() < 0.15:
        glasses = _hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.08, 0.35))
    angle = rng.uniform(-1.0, 1.0)
    return Identity(
        seed=tuple(seed),
        style=style,
        shape=shape,
        skin=skin,
        hair=hair,
        brow=brow,
        lips=lips,
        iris=iris,
        clothes=clothes,
        background=background,
        brow_width=float(rng.uniform(0.4, 0.95)),
        hair_style=str(rng.choice(("bald", "short", "medium", "long"), p=(0.1, 0.35, 0.25, 0.3))),
        hair_volume=float(rng.uniform(0.0, 1.0)),
        fringe=(float(rng.uniform(-0.1, 0.55)), float(rng.uniform(-0.1, 0.55))),
        blush=float(rng.uniform(0.0, 0.35)),
        glasses=glasses,
        light=(float(np.sin(angle)) * 0.7, float(rng.uniform(0.1, 0.7)), 0.8),
        ambient=float(rng.uniform(0.45, 0.7)),
    )


def _bump(vertices: Array, centre: Array, radius: float) -> Array:
    """A smooth weight around a point. [V, 3], [3] -> [V, 1]."""
    return np.exp(-((vertices - centre) ** 2).sum(-1, keepdims=True) / (2 * radius * radius))


def _smoothstep(x: Array | float) -> Array:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class Head:
    """One identity's neutral mesh, its expression basis and its eyes.

    `canonical` [468, 3] is the canonical face in cm. `neutral` [468, 3], `basis` [len(EXPRESSIONS), 468, 3].
    """

    def __init__(self, canonical: Array, identity: Identity) -> None:
        self.identity = identity
        self.neutral = _close_mouth(_shape_face(np.asarray(canonical, np.float64), identity))
        self.basis = _expression_basis(self.neutral)
        self.eyes = np.stack(
            [
                self.neutral[list(RIGHT_EYE_CORNERS)].mean(0) + self._eye_lift(RIGHT_EYE_UPPER, RIGHT_EYE_LOWER),
                self.neutral[list(LEFT_EYE_CORNERS)].mean(0) + self._eye_lift(LEFT_EYE_UPPER, LEFT_EYE_LOWER),
            ]
        )
        self.eyes[:, 2] = self.neutral[[*RIGHT_EYE_UPPER, *LEFT_EYE_UPPER], 2].mean()
        self.iris_radius = IRIS_RADIUS * (1 + 0.12 * self._value("eye_size"))

    def _value(self, name: str) -> float:
        return self.identity.shape[SHAPES.index(name)]

    def _eye_lift(self, upper: tuple[int, ...], lower: tuple[int, ...]) -> Array:
        middle = (self.neutral[list(upper)].mean(0) + self.neutral[list(lower)].mean(0)) / 2
        return np.array([0.0, middle[1] - self.neutral[[upper[0], upper[-1]]].mean(0)[1], 0.0])

    def pose(self, expression: Array, gaze: Array) -> Array:
        """Deform the face. expression [E] in [0, 1], gaze [2] in [-1, 1] (right, up) -> points [478, 3] in cm."""
        points = np.empty((478, 3))
        points[:468] = self.neutral + np.tensordot(expression, self.basis, 1)
        blink = expression[[EXPRESSIONS.index("eyeBlinkRight"), EXPRESSIONS.index("eyeBlinkLeft")]]
        for eye, start in ((0, 468), (1, 473)):
            centre = self.eyes[eye] + np.array([0.75 * gaze[0], 0.34 * gaze[1] - 0.12 * blink[eye], 0.0])
            points[start] = centre
            # The landmarker's order: towards the image's right, up, left, down.
            for k, (dx, dy) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
                points[start + 1 + k] = centre + self.iris_radius * np.array([dx, dy, 0.0])
        return points


def _shape_face(vertices: Array, identity: Identity) -> Array:
    """Bend the canonical face into an identity's. [468, 3] -> [468, 3]."""
    s = dict(zip(SHAPES, identity.shape, strict=True))
    v = vertices * np.array([1 + 0.07 * s["width"], 1 + 0.06 * s["height"], 1 + 0.06 * s["depth"]])
    low = _smoothstep((-v[:, 1] - 1) / 8)
    v[:, 0] *= 1 + 0.13 * s["jaw_width"] * low
    v[:, 1] -= 0.9 * s["chin_length"] * _smoothstep((-v[:, 1] - 5) / 4)
    v[:, 1] += 0.8 * s["forehead"] * _smoothstep((v[:, 1] - 4) / 4)
    for side in (-1, 1):
        v += _bump(v, np.array([side * 5.0, -3.0, 2.5]), 2.2) * np.array([side * 0.7, 0, 0.4]) * s["cheeks"]
    nose = np.array([0.0, -0.8, 6.5])
    v += _bump(v, nose, 1.7) * (v - np.array([0.0, 0.5, 4.5])) * np.array([0.1, 0.2, 0.25]) * s["nose_size"]
    v[:, 0] *= 1 + 0.22 * s["nose_width"] * _bump(v, nose - np.array([0, 0.6, 1]), 1.4)[:, 0]
    for side in (-1, 1):
        eye = np.array([side * 3.15, 2.6, 3.5])
        weight = _bump(v, eye, 1.25)
        v += weight * (v - eye) * np.array([0.20, 0.90, 0.0]) * (0.80 + 0.5 * s["eye_size"])
        v[:, 1:2] += weight * side * (v[:, :1] - eye[0]) * 0.13 * s["eye_tilt"]
        v += _bump(v, eye, 1.9) * np.array([side * 0.32, 0, 0]) * s["eye_spacing"]
        brow = np.array([side * 3.3, 5.0, 4.4])
        weight = _bump(v, brow, 1.2)
        v[:, 1:2] += weight * (0.35 * s["brow_height"] + 0.18 * s["brow_tilt"] * side * (v[:, :1] - brow[0]))
    mouth = np.array([0.0, -4.3, 4.8])
    weight = _bump(v, mouth, 2.0)
    v[:, 0:1] += weight * v[:, 0:1] * 0.16 * s["mouth_width"]
    v[:, 1:2] += _bump(v, mouth, 2.4) * 0.45 * s["mouth_height"]
    line = v[[13, 14], 1].mean()
    lips = np.zeros((len(v), 1))
    lips[[*UPPER_LIP, *LOWER_LIP]] = 1
    v[:, 1:2] += lips * (v[:, 1:2] - line) * 0.4 * s["lip_fullness"]
    return v


def _close_mouth(v: Array) -> Array:
    """The canonical mouth is ajar by half a centimetre; bring the inner lips together. [468, 3] -> [468, 3]."""
    v = v.copy()
    for upper, lower in zip(INNER_UPPER, INNER_LOWER, strict=True):
        middle = (v[upper] + v[lower]) / 2
        v[upper], v[lower] = middle + (v[upper] - middle) * 0.06, middle + (v[lower] - middle) * 0.06
    return v


def _lower_weight(v: Array) -> Array:
    """How far each vertex follows the jaw. [468, 3] -> [468, 1] in [0, 1]."""
    line = v[[78, 308], 1].mean()
    weight = _smoothstep((line + 0.1 - v[:, 1]) / 2.6) * (1 - 0.35 * _smoothstep((np.abs(v[:, 0]) - 2.5) / 3))
    corner = np.abs(v[[61, 291], 0]).mean()
    profile = 1 - 0.72 * np.clip(np.abs(v[:, 0]) / corner, 0, 1) ** 2.2
    lower, upper, corners = list(LOWER_LIP), list(UPPER_LIP), list(MOUTH_CORNERS)
    weight[lower] = profile[lower]
    weight[upper] = -0.02
    weight[corners] = 0.26
    return weight[:, None]


def _blink(v: Array, upper: tuple[int, ...], lower: tuple[int, ...], rings: tuple[tuple[int, ...], ...]) -> Array:
    """The upper lid comes down on the lower one, its fold follows. -> [468, 3]."""
    d = np.zeros_like(v)
    up, low = list(upper), list(lower)
    gap = v[low] - v[up]
    d[up] = 0.9 * gap
    d[low] = -0.08 * gap
    d[up, 2] += 0.12
    for ring, share in zip(rings, (0.5, 0.18), strict=True):
        d[list(ring)] = share * gap
    return d


def _expression_basis(v: Array) -> Array:
    """Displacements at full strength. [468, 3] -> [E, 468, 3]."""
    b = {name: np.zeros_like(v) for name in EXPRESSIONS}
    b["eyeBlinkRight"] = _blink(v, RIGHT_EYE_UPPER, RIGHT_EYE_LOWER, (RIGHT_LID_FOLD, RIGHT_LID_OUTER))
    b["eyeBlinkLeft"] = _blink(v, LEFT_EYE_UPPER, LEFT_EYE_LOWER, (LEFT_LID_FOLD, LEFT_LID_OUTER))
    b["eyeWideRight"] = -0.33 * b["eyeBlinkRight"]
    b["eyeWideLeft"] = -0.33 * b["eyeBlinkLeft"]
    for name, side in (("Right", -1), ("Left", 1)):
        inner, outer = np.array([side * 1.6, 4.7, 4.9]), np.array([side * 4.6, 5.0, 4.0])
        middle = np.array([side * 3.0, 5.0, 4.6])
        b["browDown" + name] = _bump(v, inner, 1.3) * np.array([-side * 0.35, -0.75, 0]) + _bump(
            v, middle, 1.2
        ) * np.array([0, -0.35, 0])
        b["browOuterUp" + name] = _bump(v, outer, 1.3) * np.array([0, 0.95, 0])
        b["browInnerUp"] += _bump(v, inner, 1.3) * np.array([side * 0.05, 0.95, 0])
        corner = v[[61, 76, 78] if side < 0 else [291, 306, 308]].mean(0)
        cheek = np.array([side * 4.4, -1.2, 3.6])
        b["mouthSmile" + name] = _bump(v, corner, 1.5) * np.array([side * 1.05, 0.85, -0.5]) + _bump(
            v, cheek, 1.4
        ) * np.array([side * 0.2, 0.45, 0.3])
        b["mouthFrown" + name] = _bump(v, corner, 1.3) * np.array([-side * 0.05, -0.85, -0.1])
        raised = _bump(v, np.array([side * 1.1, v[0, 1], v[0, 2]]), 1.0)
        raised[[*LOWER_LIP, *MOUTH_CORNERS]] = 0
        b["mouthUpperUp" + name] = raised * np.array([0, 0.55, 0.1])
        b["cheekPuff"] += _bump(v, np.array([side * 4.2, -4.2, 3.0]), 1.7) * np.array([side * 0.8, 0, 0.7])
        b["noseSneerLeft"] += _bump(v, np.array([side * 1.1, 0.2, 5.0]), 0.9) * np.array([0, 0.35, 0.1])
    weight = _lower_weight(v)
    y, z = v[:, 1:2] - JAW_HINGE[0], v[:, 2:3] - JAW_HINGE[1]
    angle = 0.44
    turned_y, turned_z = y * np.cos(angle) - z * np.sin(angle), y * np.sin(angle) + z * np.cos(angle)
    b["jawOpen"] = weight * np.concatenate([np.zeros_like(y), turned_y - y, (turned_z - z) * 0.6], 1)
    b["jawOpen"] += _bump(v, v[[61, 291]].mean(0), 2.4) * np.array([-0.07, 0, 0]) * v[:, :1]
    b["jawLeft"] = weight * np.array([0.8, 0, 0])
    mouth = v[[0, 17]].mean(0)
    pucker = _bump(v, mouth, 1.9)
    b["mouthPucker"] = pucker * np.concatenate(
        [-0.42 * v[:, :1], 0.10 * (v[:, 1:2] - mouth[1]), np.full_like(y, 0.9)], 1
    )
    return np.stack([b[name] for name in EXPRESSIONS])

"""Five points placed by hand, where no detector finds a face: the canonical face is fitted to them.

First a rigid pose before the camera, then a smooth bend of the mesh, so that the five points are met exactly. What
comes out is a face as a detector gives one: 478 landmarks, metric mesh, pose; the expression is a neutral one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Face, make_face
from fye_pipeline.landmarks.geometry import HALF_FIELD, Array, CanonicalFace, project, transform
from fye_pipeline.landmarks.topology import LEFT_EYE_POINTS, N_BLENDSHAPES, RIGHT_EYE_POINTS
from fye_pipeline.storage.files import existing_file

# Left and right as they are seen in the picture: the subject's own right eye stands on its left.
NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
# The points of the mesh whose mean each of them is.
_ANCHORS: tuple[tuple[int, ...], ...] = (RIGHT_EYE_POINTS, LEFT_EYE_POINTS, (1,), (61,), (291,))
_IRIS = 0.585  # cm, half the width of an iris
_IRIS_RING = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))  # centre, the picture's right, up, left, down
_LEAST_SINE = math.sin(math.radians(20))  # of the angle between the eyes' line and the face's axis
_LEAST_PIXELS = 8.0  # between the eyes, and from them to the mouth
# The prior of the pose, which five points of an animal's face leave open: standard deviations.
_YAW, _PITCH = math.radians(20), math.radians(10)
_MISFIT = 0.1  # of the distance between the eyes
_ROUNDS = 50  # of the bend; each leaves about a tenth of what it was to mend

Points = Mapping[str, Sequence[float]]


def read_points(path: Path) -> dict[str, tuple[float, float]]:
    """The five points in a JSON file, as they stand there. Raises `UserError` for any other content."""
    content = _read_json(path)
    try:
        return check_points(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_points_of_several(path: Path) -> list[dict[str, tuple[float, float]]]:
    """The five points of every face in a JSON list, or of one face. Raises `UserError` for any other content."""
    content = _read_json(path)
    faces = content if isinstance(content, list) and content else [content]
    found = []
    for number, points in enumerate(faces, 1):
        try:
            found.append(check_points(points))
        except UserError as error:
            raise UserError(f"{path}, face {number}: {error}") from None
    return found


def _read_json(path: Path) -> Any:
    path = existing_file(path, "the points")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); it must name the points {', '.join(NAMES)}.") from None


def check_points(points: Any) -> dict[str, tuple[float, float]]:
    """Exactly the five names, each with two numbers. Raises `UserError` that says which does not fit."""
    if not isinstance(points, Mapping):
        raise UserError(f"the points must be an object with {', '.join(NAMES)}, each [x, y].")
    missing = [name for name in NAMES if name not in points]
    unknown = sorted(set(map(str, points)) - set(NAMES))
    if missing or unknown:
        what = [f"{word} {', '.join(names)}" for word, names in (("without", missing), ("with", unknown)) if names]
        raise UserError(f"the points must be {', '.join(NAMES)} and no others, got them {' and '.join(what)}.")
    return {name: _pair(name, points[name]) for name in NAMES}


def _pair(name: str, value: Any) -> tuple[float, float]:
    numbers = list(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else []
    plain = all(isinstance(each, int | float | np.number) and not isinstance(each, bool) for each in numbers)
    if len(numbers) != 2 or not plain or not all(map(math.isfinite, numbers)):
        raise UserError(f"{name} must be two numbers [x, y], got {value!r}.")
    return float(numbers[0]), float(numbers[1])


def fit_points(points: Points, width: int, height: int) -> Face:
    """The face that five hand-placed points of a picture of `width` x `height` pixels tell of.

    points: `left_eye`, `right_eye` (the middle of each), `nose` (its tip), `left_mouth`, `right_mouth` (its corners),
    left and right as seen in the picture with the head upright. In pixels from the top left corner; where no number is
    above 1, in shares of the width and the height.

    Raises:
        UserError: a point is missing or outside of the picture, left and right are exchanged, the points lie on a line
            or too close together, or no face can be bent to them without a fold.
    """
    placed = _in_pixels(check_points(points), width, height)
    _check_places(placed, width, height)
    canonical = CanonicalFace.load()
    pose = _fit_pose(placed, canonical.vertices, width, height)
    mesh = _bend(canonical.vertices, pose, placed, width, height)
    _check_folds(mesh, canonical)
    camera = transform(mesh, pose)
    size = np.array([width, height])
    irises = [
        _iris(camera[list(eye)], target / size, width, height)
        for eye, target in ((RIGHT_EYE_POINTS, placed[0]), (LEFT_EYE_POINTS, placed[1]))
    ]
    flat = project(camera, width, height)
    eyes = [flat[list(eye), 2].mean() for eye in (RIGHT_EYE_POINTS, LEFT_EYE_POINTS)]
    rings = [np.column_stack([ring, np.full(len(ring), depth)]) for ring, depth in zip(irises, eyes, strict=True)]
    landmarks = np.concatenate([flat, *rings])
    return make_face(landmarks, np.zeros(N_BLENDSHAPES, np.float32), width, height, canonical)


def _in_pixels(points: dict[str, tuple[float, float]], width: int, height: int) -> Array:
    """[5, 2] in the order of `NAMES`."""
    placed = np.array([points[name] for name in NAMES], np.float64)
    return placed * (width, height) if placed.max() <= 1 else placed


def _check_places(placed: Array, width: int, height: int) -> None:
    """Raise `UserError` where the points cannot be those of a face."""
    for name, (x, y) in zip(NAMES, placed, strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"{name} at {x:g},{y:g} lies outside of the picture of {width} x {height} pixels.")
    left_eye, right_eye, nose, left_mouth, right_mouth = placed
    across, down = right_eye - left_eye, (left_mouth + right_mouth - left_eye - right_eye) / 2
    least = min(np.linalg.norm(across), np.linalg.norm(down))
    if least < _LEAST_PIXELS:
        raise UserError(f"the points lie {least:.1f} pixels apart, at least {_LEAST_PIXELS:g} are needed.")
    sine = (across[0] * down[1] - across[1] * down[0]) / (np.linalg.norm(across) * np.linalg.norm(down))
    if abs(sine) < _LEAST_SINE:
        raise UserError("eyes and mouth lie almost on one line: no face can be told from that.")
    if sine < 0 or (right_mouth - left_mouth) @ across <= 0:
        raise UserError(
            "left and right are exchanged: left_eye and left_mouth are those on the left of the picture, with the "
            "head upright."
        )
    along = np.linalg.lstsq(np.column_stack([across, down]), nose - (left_eye + right_eye) / 2, rcond=None)[0]
    if not 0 < along[1] < 1 or abs(along[0]) > 0.5:
        raise UserError("the nose must lie between the eyes and the mouth.")


def _fit_pose(placed: Array, vertices: Array, width: int, height: int) -> Array:
    """The pose [4, 4] in which the canonical face comes nearest to the points; straight ahead where they leave it open.

    Minimises the squared distances (in standard deviations of `_MISFIT`) plus those of yaw and pitch from zero.
    """
    anchors = np.stack([vertices[list(group)].mean(axis=0) for group in _ANCHORS])
    across, size = placed[1] - placed[0], np.array([width, height])
    eyes = float(np.linalg.norm(across))
    pixels = height / (2 * HALF_FIELD)  # of 1 cm at a distance of 1 cm
    down = placed[3:].mean(axis=0) - placed[:2].mean(axis=0)
    axis = anchors[3:].mean(axis=0) - anchors[:2].mean(axis=0)
    # As far away as makes the mean of breadth and length right.
    shares = np.linalg.norm(anchors[1] - anchors[0]) / eyes, np.linalg.norm(axis) / np.linalg.norm(down)
    distance = pixels * math.sqrt(shares[0] * shares[1])
    centre = (placed.mean(axis=0) - size / 2) / pixels * distance * (1, -1) - anchors.mean(axis=0)[:2]
    start = np.array([0.0, 0.0, -math.atan2(across[1], across[0]), *centre, math.log(distance)])

    def misfit(values: Array) -> Array:
        seen = project(transform(anchors, _pose(values)), width, height)[:, :2] * size
        return np.concatenate([((seen - placed) / eyes / _MISFIT).ravel(), values[:2] / (_YAW, _PITCH)])

    return _pose(least_squares(misfit, start).x)


def _pose(values: Array) -> Array:
    """Yaw, pitch, roll, x, y, and the logarithm of the distance -> [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("ZYX", (values[2], values[0], values[1])).as_matrix()
    matrix[:3, 3] = values[3], values[4], -math.exp(values[5])
    return matrix


def _bend(vertices: Array, pose: Array, placed: Array, width: int, height: int) -> Array:
    """The mesh [468, 3] bent by a thin-plate spline over the face's front, so that it is seen at the points [5, 2]."""
    anchors = np.stack([vertices[list(group)].mean(axis=0) for group in _ANCHORS])[:, :2]
    spline = _spline(anchors, vertices[:, :2])
    size, inverse, mesh = np.array([width, height]), pose[:3, :3].T, vertices
    for _ in range(_ROUNDS):
        camera = transform(mesh, pose)
        flat = project(camera, width, height)[:, :2] * size
        missing = placed - np.stack([flat[list(group)].mean(axis=0) for group in _ANCHORS])
        depth = -np.array([camera[list(group), 2].mean() for group in _ANCHORS])
        step = missing * (1, -1) * (depth * 2 * HALF_FIELD / height)[:, None]
        mesh = mesh + spline @ (np.column_stack([step, np.zeros(len(step))]) @ inverse.T)
    return mesh


def _spline(anchors: Array, places: Array) -> Array:
    """The weights [P, 5] that give a thin-plate spline's values at `places` [P, 2] from those at `anchors` [5, 2]."""

    def kernel(points: Array) -> Array:
        squared = ((points[:, None] - anchors[None]) ** 2).sum(axis=-1)
        return squared * np.log(np.maximum(squared, 1e-12))

    def affine(points: Array) -> Array:
        return np.column_stack([np.ones(len(points)), points])

    count = len(anchors)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count], system[:count, count:] = kernel(anchors), affine(anchors)
    system[count:, :count] = affine(anchors).T
    return np.hstack([kernel(places), affine(places)]) @ np.linalg.inv(system)[:, :count]


def _check_folds(mesh: Array, canonical: CanonicalFace) -> None:
    """Raise `UserError` where a triangle of the face's front has been turned over."""

    def areas(vertices: Array) -> NDArray[np.float64]:
        a, b, c = (vertices[canonical.triangles[:, corner], :2] for corner in range(3))
        return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])

    before = areas(canonical.vertices)
    front = before > np.median(before) / 10
    if (areas(mesh)[front] <= 0).any():
        raise UserError("no face can be bent to these points without a fold: place them anew.")


def _iris(eye: Array, centre: Array, width: int, height: int) -> Array:
    """The five points [5, 2] of an iris seen at `centre`, as large as it is in this eye [16, 3] before the camera."""
    radius = _IRIS / (-eye[:, 2].mean() * 2 * HALF_FIELD)  # of the picture's height
    return centre + np.array(_IRIS_RING) * (1, -1) * (radius * height / width, radius)

"""The canonical face mesh, the metric mesh and pose re-derived from landmarks, and projection back to the picture.

Camera: 63 degrees vertical field of view, centimetres, y up, looking along -z (MediaPipe's face geometry).
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.topology import N_MESH

METADATA = "geometry_pipeline_metadata_landmarks.binarypb"
HALF_FIELD = math.tan(math.radians(63.0) / 2)  # half the picture's height at distance 1
NEAR, FAR = 1.0, 10000.0
DEPTH_FACTOR = FAR / (FAR - NEAR)  # the official code uses its projection matrix transposed, which scales depth by this

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CanonicalFace:
    """MediaPipe's canonical face and the basis that fits it to a detected one.

    vertices [468, 3] in cm, uv [468, 2], triangles [898, 3] 0-based, basis_ids [33] vertex numbers with
    basis_weights [33] of the weighted Procrustes fit.
    """

    vertices: Array
    uv: Array
    triangles: NDArray[np.int64]
    basis_ids: NDArray[np.int64]
    basis_weights: Array

    @classmethod
    def from_task(cls, path: str | os.PathLike[str]) -> CanonicalFace:
        """Read the face from MediaPipe's `face_landmarker.task`. Raises `UserError` if it is not such a file."""
        try:
            with zipfile.ZipFile(Path(path)) as task:
                metadata = _fields(task.read(METADATA))
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{path} is not MediaPipe's face_landmarker.task: {error}.") from error
        mesh = _fields(metadata[1][0])
        buffer = np.array(_packed(mesh[3], "f"), np.float64).reshape(-1, 5)
        basis = [_fields(entry) for entry in metadata[2]]
        return cls(
            vertices=buffer[:, :3],
            uv=buffer[:, 3:],
            triangles=np.array(_packed(mesh[4], "v"), np.int64).reshape(-1, 3),
            basis_ids=np.array([entry[1][0] for entry in basis], np.int64),
            basis_weights=np.array([struct.unpack("<f", entry[2][0])[0] for entry in basis], np.float64),
        )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> dict[int, list]:
    """One protobuf message -> field number -> its values (int, or bytes for the other wire types)."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            length, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = data[at : at + length], at + length
        fields.setdefault(number, []).append(value)
    return fields


def _packed(values: list, kind: str) -> list:
    """A repeated float ("f") or varint ("v") field, packed or one by one, as a flat list."""
    flat: list = []
    for value in values:
        if isinstance(value, int):
            flat.append(value)
        elif kind == "f":
            flat.extend(struct.unpack(f"<{len(value) // 4}f", value))
        else:
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                flat.append(number)
    return flat


def weighted_similarity(source: Array, target: Array, weights: Array) -> Array:
    """The [4, 4] similarity (rotation, one scale, translation) that best maps source [P, 3] onto target [P, 3].

    Weighted orthogonal Procrustes (Umeyama 1991): minimises sum_p w_p |M source_p - target_p|^2, without reflection.
    """
    share = weights / weights.sum()
    source_centre, target_centre = share @ source, share @ target
    centred = source - source_centre
    covariance = (share[:, None] * (target - target_centre)).T @ centred
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = (singular * signs).sum() / (share @ (centred**2).sum(1))
    matrix = np.eye(4)
    matrix[:3, :3] = scale * (u * signs) @ vt
    matrix[:3, 3] = target_centre - matrix[:3, :3] @ source_centre
    return matrix


def metric_mesh(landmarks: NDArray, width: int, height: int, canonical: CanonicalFace) -> tuple[Array, Array]:
    """Detected landmarks [>= 468, 3] -> (mesh [468, 3] in cm without the pose, pose matrix [4, 4] canonical -> camera).

    MediaPipe's own face geometry, from the landmarks alone. The picture's size (pixels) gives the aspect ratio.
    """
    ids, weights = canonical.basis_ids, canonical.basis_weights
    source = canonical.vertices[ids]
    plane_height = 2 * HALF_FIELD
    plane_width = plane_height * width / height
    points = np.asarray(landmarks, np.float64)[:N_MESH, :3]
    x = (points[:, 0] - 0.5) * plane_width
    y = (0.5 - points[:, 1]) * plane_height
    z = points[:, 2] * plane_width
    mean_depth = z.mean()

    def unproject(scale: float) -> Array:
        depth = (z - mean_depth + 1) / scale
        return np.stack([x * depth, y * depth, -depth], axis=1)

    def fit(target: Array) -> Array:
        return weighted_similarity(source, target[ids], weights)

    def scale_of(matrix: Array) -> float:
        return float(np.linalg.norm(matrix[:3, 0]))

    first = scale_of(fit(np.stack([x, y, -z], axis=1)))
    second = scale_of(fit(unproject(first)))
    camera = unproject(first * second)
    matrix = fit(camera)
    inverse = np.linalg.inv(matrix)
    return camera @ inverse[:3, :3].T + inverse[:3, 3], matrix


def project(vertices: NDArray, width: int, height: int) -> Array:
    """Camera coordinates [..., P, 3] in cm -> landmarks [..., P, 3]: x, y in 0..1 of the picture, z on x's scale.

    z is the distance beyond the mean distance of the P points, in picture widths: nearer points are negative.
    """
    vertices = np.asarray(vertices, np.float64)
    focal = 1 / HALF_FIELD
    depth = -vertices[..., 2] * DEPTH_FACTOR
    mean_depth = depth.mean(axis=-1, keepdims=True)
    x = (vertices[..., 0] * focal / (width / height) / depth + 1) / 2
    y = (-vertices[..., 1] * focal / depth + 1) / 2
    z = (depth - mean_depth) * focal / (width / height) / (2 * mean_depth)
    return np.stack([x, y, z], axis=-1)


def transform(vertices: NDArray, matrix: NDArray) -> Array:
    """Apply [..., 4, 4] matrices (translation in the last column) to vertices [..., P, 3]."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(vertices, np.float64) @ np.swapaxes(matrix[..., :3, :3], -1, -2) + matrix[..., None, :3, 3]

"""The person in front of a picture's background, and what may lie behind: so that a head can move and a wall rests.

Cut out by colour alone (GrabCut, Rother et al. 2004, in OpenCV), from what the landmarks say of the face. Where it is
wrong towards the person, background moves with the head; towards the background, hair stays behind. So it is rather a
little too large.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fye_pipeline.landmarks.topology import FACE_OVAL, N_MESH
from fye_pipeline.media.image import resized

Picture = NDArray[np.uint8]
Map = NDArray[np.float32]
Mask = NDArray[np.uint8]
Bits = NDArray[np.bool_]

SIZE = 256  # pixels a side at which a person is cut out, where nothing else is asked
_ROUNDS = 4
_CHIN = 152
_STRIP = 0.08  # of the face's width: what is thinner is no part of the person
_NOTCH = 0.25  # of the face's width: narrower gaps in hair or a hat are a badge or a highlight, not the wall
# Half axes of ellipses, of the face's width and height: what hair may be, so wide that all of it is in, and so narrow
# that little else is. Beyond the third, which most hair does not leave, only what both of them find is hair.
_WIDE, _NARROW, _NEAR = (0.8, 0.95), (0.62, 0.85), (0.8, 1.05)
_RIM = 2 / 256  # of the picture: how much wider than found the person is taken to be
_HOLE = 1 / 256  # and how much further out the background is known again
_SOFT = 0.015  # of the picture: the blur of what is guessed, at twice as far from what is known
_FEW = 64  # pixels of the face, or of what is certainly background, that are too few to learn colours from
_FILLS = 0.97  # of the picture: a person who covers more has no background that could be told apart


def person_in_front(picture: Picture, landmarks: NDArray[np.floating], size: int = SIZE) -> Map | None:
    """Where the person is whose face has these landmarks [478, >= 2], normalised. uint8 [H, H, 3] -> [size, size].

    1 within, 0 outside, soft between. None where person and background cannot be told apart.
    """
    small = resized(picture, size)
    points = np.asarray(landmarks, np.float64)[:N_MESH, :2]
    wide, near = _cut_out(small, points, _WIDE)
    narrow, _ = _cut_out(small, points, _NARROW)
    found = (wide & (near | narrow)).astype(np.uint8)
    width = float(np.ptp(points[list(FACE_OVAL), 0])) * size
    person = _whole(np.asarray(cv2.morphologyEx(found, cv2.MORPH_OPEN, _disc(_STRIP * width / 2)), np.uint8), points)
    if person is None or person.mean() > _FILLS:
        return None
    above = int(np.clip(points[:, 1].mean(), 0, 1) * size)
    person[:above] = _without_notches(person, _disc(_NOTCH * width / 2))[:above]
    wider = cv2.dilate(person, _disc(_RIM * size))
    return np.asarray(cv2.GaussianBlur(wider.astype(np.float32), (0, 0), 1.0), np.float32)


def behind(picture: Picture, front: Map) -> Picture:
    """A picture without the person in front: what is next to them, mirrored at their outline, and softer further in.

    picture: uint8 [H, H, 3]. front: as `person_in_front` gives it. -> as `picture`.
    """
    side = len(picture)
    hole = hole_of(front, side)
    if hole.all():
        return picture
    distance, found = cv2.distanceTransformWithLabels(hole, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    label = np.asarray(found, np.int64)
    outside = np.flatnonzero(hole.ravel() == 0)
    place = np.zeros(int(label.max()) + 1, np.int64)
    place[label.ravel()[outside]] = outside
    rows, columns = np.nonzero(hole)
    near_row, near_column = np.divmod(place[label[rows, columns]], side)
    row, column = (np.clip(2 * near - at, 0, side - 1) for near, at in ((near_row, rows), (near_column, columns)))
    again = hole[row, column] > 0  # mirrored into the person: the nearest place itself
    filled = picture.copy()
    filled[rows, columns] = picture[np.where(again, near_row, row), np.where(again, near_column, column)]
    soft = np.asarray(cv2.GaussianBlur(filled, (0, 0), max(side * _SOFT, 1.0)), np.uint8)
    share = np.clip(np.asarray(distance, np.float32) / (side * 2 * _SOFT), 0, 1)
    return np.asarray(cv2.blendLinear(soft, filled, share, 1 - share), np.uint8)


def hole_of(front: Map, side: int) -> Mask:
    """Where nothing is known of what lies behind, for `side` pixels a side. -> uint8 [side, side], 0 or 1."""
    wide = cv2.dilate((front > 0.02).astype(np.uint8), _disc(_HOLE * len(front)))
    return np.asarray(cv2.resize(wide, (side, side), interpolation=cv2.INTER_NEAREST), np.uint8)


def reach_of(front: Map, centre: NDArray[np.floating], outline: NDArray[np.floating], limit: float) -> NDArray:
    """How far the person reaches beyond each point of an outline [P, 2], seen from a centre [2], all normalised.

    -> [P]: shares of the point's own distance, from 1 to `limit`.
    """
    shares = np.linspace(1, limit, 64)
    ray = centre + (outline - centre)[:, None] * shares[:, None]  # [P, 64, 2]
    place = np.floor(ray * len(front)).astype(int)
    inside = ((place >= 0) & (place < len(front))).all(-1)
    column, row = place.clip(0, len(front) - 1).transpose(2, 0, 1)
    within = np.logical_and.accumulate(inside & (front[row, column] > 0.5), axis=1)
    return np.where(within, shares, 1.0).max(1)


def _cut_out(picture: Picture, points: NDArray[np.float64], hair: tuple[float, float]) -> tuple[Bits, Bits]:
    """Where GrabCut finds the person, and where most people end. hair: half axes of the ellipse that it begins with."""
    guess, near = _first_guess(points, hair, len(picture))
    if (guess == cv2.GC_FGD).sum() < _FEW or (~near).sum() < _FEW:
        return np.zeros_like(near), near
    colours = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its colours are found from a random start
    # First all that is not near is background: its colours are learnt. Then hair may be anywhere.
    certain = np.where(near, guess, cv2.GC_BGD).astype(np.uint8)
    cv2.grabCut(picture, certain, (0, 0, 1, 1), *colours, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    guess = np.where(near, certain, guess).astype(np.uint8)
    cv2.grabCut(picture, guess, (0, 0, 1, 1), *colours, 1, cv2.GC_EVAL_FREEZE_MODEL)
    return (guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD), near


def _first_guess(points: NDArray[np.float64], hair: tuple[float, float], size: int) -> tuple[Mask, Bits]:
    """What GrabCut begins with, and where most people end.

    The face and the neck for certain, hair and shoulders perhaps, not what is far.
    """
    oval = points[list(FACE_OVAL)]
    centre, (width, height) = (oval.min(0) + oval.max(0)) / 2, np.ptp(oval, axis=0)
    chin = points[_CHIN]
    x, y = (np.arange(size) + 0.5)[None, :] / size, (np.arange(size) + 0.5)[:, None] / size

    def ellipse(above: float, across: float, down: float) -> Bits:
        upright = (y - centre[1] + above * height) / (down * height)
        return ((x - centre[0]) / (across * width)) ** 2 + upright**2 < 1

    def area(outline: NDArray[np.floating]) -> Bits:
        mask = np.zeros((size, size), np.uint8)
        cv2.fillPoly(mask, [np.round(np.clip(outline, -4, 4) * size).astype(np.int32)], 1)
        return mask > 0

    def below_chin(*corners: tuple[float, float]) -> Bits:
        right = [chin + np.array([across * width, down * height]) for across, down in corners]
        left = [chin + np.array([-across * width, down * height]) for across, down in reversed(corners)]
        return area(np.array(right + left))

    guess = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    guess[below_chin((0.35, -0.1), (0.45, 0.25), (1.2, 0.7), (1.3, 4.0))] = cv2.GC_PR_FGD
    guess[ellipse(0.12, *hair)] = cv2.GC_PR_FGD
    guess[~ellipse(0.15, 1.45, 1.55) & (y < chin[1] + 0.1 * height)] = cv2.GC_BGD
    guess[area(np.asarray(cv2.convexHull(points.astype(np.float32)), np.float64)[:, 0])] = cv2.GC_FGD
    guess[below_chin((0.22, -0.1), (0.25, 0.3))] = cv2.GC_FGD
    return guess, ellipse(0.15, *_NEAR) | (y > chin[1] - 0.1 * height)


def _whole(found: Mask, points: NDArray[np.float64]) -> Mask | None:
    """What hangs together with the face, without small holes; None where the face is not in it."""
    _, part = cv2.connectedComponents(found)
    column, row = np.clip(np.floor(points.mean(0) * len(found)), 0, len(found) - 1).astype(int)
    if not found[row, column]:
        return None
    person = (part == part[row, column]).astype(np.uint8)
    count, part, sizes, _ = cv2.connectedComponentsWithStats(1 - person)
    small = [n for n in range(1, count) if sizes[n, cv2.CC_STAT_AREA] < 0.01 * found.size]
    person[np.isin(part, small)] = 1
    return person


def _without_notches(person: Mask, disc: Mask) -> Mask:
    """Filled where the disc does not fit in from outside; the picture's border is no wall that it could lean on."""
    reach = len(disc)
    framed = cv2.copyMakeBorder(person, *(reach,) * 4, borderType=cv2.BORDER_CONSTANT, value=0)
    return np.asarray(cv2.morphologyEx(framed, cv2.MORPH_CLOSE, disc), np.uint8)[reach:-reach, reach:-reach]


def _disc(radius: float) -> Mask:
    reach = max(round(radius), 1)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)), np.uint8)

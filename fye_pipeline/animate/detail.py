"""Detail that no model has to make: the bent portrait at its full resolution, and over it what the model changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fye_pipeline.landmarks.bend import Bend, Bender
from fye_pipeline.landmarks.drawing import Landmarks, facial_mask
from fye_pipeline.landmarks.topology import LEFT_EYE, RIGHT_EYE
from fye_pipeline.media.image import resized
from fye_pipeline.sampling.denoise import encode_reference

Picture = NDArray[np.uint8]
Frame = NDArray[np.float32]

# Of what the model changed where the portrait can be trusted. On three real videos none of it gave the highest PSNR
# within the face, on rendered heads all of it did; half loses little on either. Changes of less than `SLIGHT` (of 1)
# are the autoencoder's and the model's own error: without them PSNR rises on each of the three videos. A portrait that
# the autoencoder gives back is one that the model was trained on: there its changes count whole, and everywhere, and
# where it changes much (from `LARGE` on, in part; 1 is white on black), its own pixels are shown, which leave no ghost.
CHANGE_SHARE, KNOWN_SHARE = 0.5, 1.0
SLIGHT, SLIGHT_KNOWN = 0.04, 0.02
LARGE = 0.03, 0.10
# Of a portrait's finest detail, what survives the autoencoder: 0.19 to 0.60 of photographs and paintings (nine), 0.49
# to 0.84 of rendered heads (48, four of them under 0.61). Below the first a portrait is strange to the model, from the
# second on it is known.
STRANGE, KNOWN = 0.61, 0.66
FINE = 1.0  # pixels: standard deviation of the blur without which a picture is its fine detail
HINT_SCALE = 2  # the hint is bent at this many times the model's size and reduced, which keeps it sharp


@dataclass(frozen=True)
class BentPortraits:
    """The bent portraits of a sequence, worked out when they are asked for.

    portrait: the square that the model sees, at any size. landmarks: of every frame. size: pixels a side that the model
    works at. layered: let the background rest behind the person, where the two can be told apart.
    """

    portrait: Picture
    face: NDArray[np.floating]  # the portrait's own landmarks [478, >= 3] in the square
    landmarks: Landmarks
    size: int
    layered: bool = True
    brightest: Frame = field(init=False, repr=False)  # [3] in [0, 1]: how bright teeth may be in this light
    _bender: Bender = field(init=False, repr=False)
    _behind: dict[int, Picture | None] = field(init=False, repr=False, default_factory=dict)  # by pixels a side
    _known: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        bender = Bender.of(self.portrait, self.face) if self.layered else Bender(self.face)
        object.__setattr__(self, "_bender", bender)
        object.__setattr__(self, "brightest", brightest_of(self.portrait, self.face))

    def __getitem__(self, frame: int) -> Picture:
        """One frame's, as the UNet takes it. -> uint8 RGBA [size, size, 4]."""
        wide = self.bend(frame, self.size * HINT_SCALE).rgba(self.portrait, self.behind(self.portrait))
        return resized(wide, self.size)

    def bend(self, frame: int, side: int) -> Bend:
        """Where a frame's pixels come from, for `side` pixels a side."""
        return self._bender.to(self.at(frame), side)

    def behind(self, portrait: Picture) -> Picture | None:
        """What lies behind the person of the portrait, which is given at any size, the same one each time."""
        if len(portrait) not in self._behind:
            self._behind[len(portrait)] = self._bender.behind(portrait)
        return self._behind[len(portrait)]

    def known_to(self, pipe: Any) -> float:
        """How far a model can be believed about this portrait, by what its autoencoder gives back of it: 0 to 1."""
        if not self._known:
            small = resized(self.portrait, self.size)
            kept = detail_kept(small, reconstruct(pipe, small))
            self._known["portrait"] = float(np.clip((kept - STRANGE) / (KNOWN - STRANGE), 0, 1))
        return self._known["portrait"]

    def at(self, frame: int) -> NDArray[np.floating]:
        """One frame's landmarks [478, >= 2]."""
        return self.landmarks[frame : frame + 1][0]

    def stack(self, start: int, stop: int) -> Picture:
        """Some frames'. -> uint8 RGBA [n, size, size, 4]."""
        return np.stack([self[frame] for frame in range(start, stop)])


def with_detail(pipe: Any, made: Frame, bent: BentPortraits, frame: int, portrait: Picture) -> Frame:
    """A frame that the model made, [size, size, 3] in [0, 1], at the resolution of `portrait`, uint8 [S, S, 3].

    What the portrait cannot show of the person is the model's own; within the face, half of what the model changed of
    the hint is added to the bent portrait; where nothing moved, the portrait stays as it is. Of a portrait like those
    that the model was trained on, everything that it changed is added. -> [S, S, 3].
    """
    side = len(portrait)
    bend = bent.bend(frame, side)
    known = reconstruct(pipe, bent[frame][..., :3])
    painted = np.minimum(made, np.maximum(bent.brightest, known))
    painted = in_its_light(painted, bent.brightest, resized(bend.mouth, bent.size))
    sharp = bend.apply(portrait, bent.behind(portrait))
    face = soft_face(bent.at(frame), side)
    return compose(sharp, bend.shown, bend.moved, face, painted, known, belief=bent.known_to(pipe))


def compose(
    sharp: Picture, trust: Frame, moved: Frame, face: Frame, made: Frame, known: Frame, *, belief: float = 0.0
) -> Frame:
    """A bent portrait with what a model changed of it. -> [S, S, 3] in [0, 1].

    sharp [S, S, 3], trust and moved [S, S]: the bent portrait. face [S, S]: where the face is. made, known [s, s, 3]:
    the model's frame, and what the autoencoder makes of the hint. belief: 0 for a portrait that is strange to the
    model, 1 for one that it knows.
    """
    side = len(sharp)
    base = sharp.astype(np.float32) / 255
    own = resized(made, side)
    change = made - known
    if belief:
        much = cv2.GaussianBlur(np.abs(change).max(-1), (0, 0), 1)
        large = belief * np.clip((much - LARGE[0]) / (LARGE[1] - LARGE[0]), 0, 1).astype(np.float32)
        trust = trust * (1 - resized(large, side))
        face = np.maximum(face, belief)
        moved = np.maximum(moved, belief * moved.max())  # a frame in which nothing moved is the portrait
    slight = SLIGHT + belief * (SLIGHT_KNOWN - SLIGHT)
    share = CHANGE_SHARE + belief * (KNOWN_SHARE - CHANGE_SHARE)
    change = resized(change, side)
    change = share * np.sign(change) * np.maximum(np.abs(change) - slight, 0)
    changed = base + face[..., None] * change
    mixed = own + trust[..., None] * (changed - own)
    return np.clip(base + moved[..., None] * (mixed - base), 0, 1).astype(np.float32)


def detail_kept(picture: Picture, again: Frame) -> float:
    """How much of a picture's fine detail there is in a copy of it: 1 is all, 0 none. [S, S, 3], the copy in [0, 1]."""
    first, second = (each - cv2.GaussianBlur(each, (0, 0), FINE) for each in (picture.astype(np.float32) / 255, again))
    return 1 - float(((first - second) ** 2).sum() / max(float((first**2).sum()), 1e-9))


def brightest_of(portrait: Picture, face: NDArray[np.floating]) -> Frame:
    """The brightest colour that may be painted into a face: how bright white would be in this light. -> [3].

    Halfway between the skin's highlights and their grey, or a little above the whites of the eyes, whichever is more.
    A model that was trained on rendered heads would paint teeth white in candlelight.
    """
    side = len(portrait)
    skin = _brightest(portrait, facial_mask(face, side, side), 0.02)
    eyes = np.zeros((side, side), np.uint8)
    for lower, upper in (LEFT_EYE, RIGHT_EYE):
        outline = face[[*lower, *upper[::-1][1:-1]], :2] * side
        cv2.fillPoly(eyes, [np.round(outline).clip(-(2**15), 2**15).astype(np.int32)], 1)
    whites = _brightest(portrait, eyes, 0.15)
    if skin is None:
        return np.ones(3, np.float32)
    seen = (skin + skin.mean()) / 2
    return np.asarray(np.minimum(seen if whites is None else np.maximum(seen, 1.1 * whites), 1), np.float32)


def _brightest(picture: Picture, mask: NDArray, share: float) -> Frame | None:
    """The mean colour of the brightest pixels within a mask; None where it holds too few. -> [3]."""
    inside = picture[mask > 0].astype(np.float32) / 255
    if len(inside) < 8:
        return None
    grey = inside.mean(-1)
    return np.asarray(inside[grey >= np.quantile(grey, 1 - share)].mean(0), np.float32)


def in_its_light(made: Frame, brightest: Frame, mouth: Frame) -> Frame:
    """A frame [s, s, 3] whose mouth [s, s] is no colder than the light on the face; in training, teeth are white."""
    mouth = np.asarray(cv2.dilate(mouth, np.ones((3, 3), np.uint8)), np.float32)
    warm = np.minimum(made, made[..., :1] * brightest / max(float(brightest[0]), 1e-3))
    return np.asarray(made + mouth[..., None] * (warm - made), np.float32)


def soft_face(landmarks: NDArray[np.floating], side: int) -> Frame:
    """The face of one frame's landmarks [478, >= 2] without a hard edge. -> [side, side] in [0, 1]."""
    mask = facial_mask(landmarks, side, side)
    reach = max(side // 56, 1)
    grown = cv2.dilate(mask, np.ones((reach, reach), np.uint8))
    return np.asarray(cv2.GaussianBlur(grown, (0, 0), max(side / 85, 0.5)), np.float32)


@torch.no_grad()
def reconstruct(pipe: Any, picture: Picture) -> Frame:
    """What the autoencoder makes of a picture, uint8 [s, s, 3] -> [s, s, 3] in [0, 1]."""
    latents = encode_reference(pipe, picture)
    decoded = pipe.vae.decode(latents / pipe.vae.config["scaling_factor"], return_dict=False)[0]
    return (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()

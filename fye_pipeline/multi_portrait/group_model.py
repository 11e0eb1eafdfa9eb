"""Several people in one picture moved together: landmarks tell each head's pose, features what its face does.

Head pose through six numbers is a weak signal for a small UNet, so both drivers are used: the landmark picture and the
bent portrait show everybody's own face in the driver's pose, and eyes, emotion and lips come through the masked
cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.animate.portrait import Crop
from fye_pipeline.landmarks.drawing import draw_sequence, expression_mask, reduce_mask
from fye_pipeline.landmarks.faces import box_of
from fye_pipeline.landmarks.geometry import project, transform
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.multi_portrait.adapter import ExpressionAdapter
from fye_pipeline.multi_portrait.attention import Isolation
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.expression_encoder import ExpressionEncoder
from fye_pipeline.multi_portrait.ownership import face_masks, nearest_heads
from fye_pipeline.multi_portrait.rendered_features import DIMS

Picture = NDArray[np.uint8]
Features = Mapping[str, NDArray[np.float32]]
Rule = Literal["exclusive", "equation", "no_masks"]

ENCODER = "encoder"
WIDTH = 128  # of the tokens
UNSURE = 0.035  # of the side: around points that tell the expression, the bent portrait is not to be trusted
SHIPPED = Path(__file__).parent.parent / "assets" / "people" / "adapter"


@dataclass(frozen=True)
class DrivenFace:
    """Somebody in a picture and what moves them; landmarks are in 0..1 of a square of the picture.

    square: left, top, side in pixels; it may reach beyond the picture. face: their own, one frame. driver: F frames.
    features: of the driver, [F, d] each.
    """

    square: tuple[int, int, int]
    face: LandmarkSequence
    driver: LandmarkSequence
    features: Features


@dataclass(frozen=True)
class GroupConditions:
    """What the model is given of a group. drawn: landmark pictures uint8 [F, H, W, 3]; bent: RGBA [F, H, W, 4];
    masks: everybody's face, bool [P, F, H, W].
    """

    drawn: Picture
    bent: Picture
    masks: NDArray[np.bool_]


def posed_landmarks(face: LandmarkSequence, transforms: NDArray[np.floating]) -> NDArray[np.float64]:
    """A face as it is, in other poses [F, 4, 4]. -> landmarks [F, 478, 3]."""
    mesh, pose = np.asarray(face.mesh[0], np.float64), np.asarray(face.transforms[0], np.float64)
    camera = transform(mesh, pose)
    projected = project(camera, 1, 1)[:, :2]
    irises = []
    for start, eye in ((468, [33, 133]), (473, [263, 362])):
        # An iris has no place in the mesh: it lies as deep as the corners of its eye.
        width = np.linalg.norm(np.diff(projected[eye], axis=0))
        scale = np.linalg.norm(np.diff(camera[eye, :2], axis=0)) / max(width, 1e-9)
        points = np.asarray(face.landmarks[0], np.float64)[start : start + 5, :2]
        away = (points - projected[eye].mean(0)) * scale * (1, -1)
        middle = camera[eye].mean(0)
        seen = np.column_stack([middle[:2] + away, np.full(5, middle[2])])
        irises.append(transform(seen, np.linalg.inv(pose)))
    whole = np.concatenate([mesh, *irises])
    return project(transform(whole, np.asarray(transforms, np.float64)), 1, 1)


def conditions_of(picture: Picture, people: Sequence[DrivenFace], *, pose_only: bool = True) -> GroupConditions:
    """Landmark pictures, bent portraits and masks for a picture [H, W, 3] and its driven faces, left to right.

    pose_only: everybody's own face in the driver's pose, and eyes and mouth of the bent portrait not to be trusted;
    else the driver's whole landmarks.
    """
    height, width = picture.shape[:2]
    frames = len(people[0].driver)
    drawn = np.zeros((frames, height, width, 3), np.uint8)
    bent = np.repeat(np.dstack([picture, np.full((height, width), 255, np.uint8)])[None], frames, 0)
    marks = [
        posed_landmarks(one.face, one.driver.transforms[:]) if pose_only else np.asarray(one.driver.landmarks[:])
        for one in people
    ]
    boxes = [box_of(_in_picture(one.face.landmarks[0], one.square, width, height)) for one in people]
    owners = nearest_heads(boxes, width, height)
    for number, (one, points) in enumerate(zip(people, marks, strict=True), 1):
        crop, side = crop_of(picture, one.square), one.square[2]
        inside, within = crop.inside(), crop.inner()
        pictures = draw_sequence(points, side)
        portraits = BentPortraits(crop.cut(picture, side), one.face.landmarks[0], points, side, layered=False)
        unsure = (
            expression_mask(points, side, side, radius=UNSURE)
            if pose_only
            else np.zeros((frames, side, side), np.float32)
        )
        own = (owners[inside] == number)[..., None]
        for k in range(frames):
            drawn[k][inside] = np.maximum(drawn[k][inside], pictures[k][within])
            square = portraits[k].copy()
            square[..., 3] = np.uint8(square[..., 3] * (1 - unsure[k]))
            bent[k][inside] = np.where(own, square[within], bent[k][inside])
    whole = [_in_picture(points, one.square, width, height) for one, points in zip(people, marks, strict=True)]
    masks = np.stack([face_masks([each[k] for each in whole], width, height) for k in range(frames)], axis=1)
    return GroupConditions(drawn, bent, masks)


def crop_of(picture: Picture, square: tuple[int, int, int]) -> Crop:
    """A square (left, top, side in pixels) of a picture [H, W, 3]; it may reach beyond it."""
    height, width = picture.shape[:2]
    return Crop(*square, width, height)


def _in_picture(
    points: NDArray[np.floating], square: tuple[int, int, int], width: int, height: int
) -> NDArray[np.float64]:
    """Landmarks [..., >= 2] in 0..1 of a square -> [..., 2] in 0..1 of the picture."""
    left, top, side = square
    return (np.asarray(points, np.float64)[..., :2] * side + (left, top)) / (width, height)


class ExpressionBranch(nn.Module):
    """The encoder of features and its attention on a UNet, which is frozen; `remove()` takes it off again."""

    def __init__(self, unet: nn.Module, *, augment: tuple[str, ...] = ("lip", "emotion"), deep: bool = True) -> None:
        super().__init__()
        queries = {"lip": 4, "emotion": 2, "eye": 2, "head": 2}
        self.encoder = ExpressionEncoder(
            **{f"{name}_dim": DIMS[name] for name in FACTORS},
            width=WIDTH,
            augment=augment,
            queries=tuple(queries[name] for name in augment),
            resampler_dim=WIDTH,
            resampler_depth=2,
            resampler_heads=4,
            resampler_head_dim=WIDTH // 4,
        )
        self.adapter = ExpressionAdapter(unet, WIDTH, deep=deep)
        self.layers = nn.ModuleList(self.adapter.processors.values())  # so that an optimiser sees them

    def save(self, folder: Path) -> None:
        """Write encoder and attention in float16."""
        half = ExpressionEncoder.from_config(self.encoder.config)
        assert isinstance(half, ExpressionEncoder)
        half.load_state_dict(self.encoder.state_dict())
        half.half().save_pretrained(folder / ENCODER)
        self.adapter.save(folder, torch.float16)

    @classmethod
    def load(cls, folder: Path, unet: nn.Module) -> ExpressionBranch:
        """Hang a saved branch on its UNet. Raises `UserError` where it is absent or of another model."""
        encoder = ExpressionEncoder.from_pretrained(folder / ENCODER, torch_dtype=torch.float32)
        branch = cls(unet, augment=tuple(encoder.config["augment"]), deep=ExpressionAdapter.is_deep(folder))
        branch.encoder.load_state_dict(encoder.state_dict())
        branch.adapter.load(folder)
        return branch.requires_grad_(False).eval()

    def remove(self) -> None:
        """Leave the UNet as it was."""
        self.adapter.remove()

    def given(self, features: Mapping[str, Tensor], masks: Tensor, rule: Rule = "exclusive") -> Any:
        """Hold people's features [B, P, F, d] and masks [B, P, F, h, w], at the latents' size, for a block.

        no_masks: everybody's tokens reach every place.
        """
        tokens = self.encoder(features)
        if rule == "no_masks":
            everybody = tokens.transpose(1, 2).flatten(2, 3)[:, None]  # [B, 1, F, P * N, c]
            return self.adapter.inputs.given(everybody, torch.ones_like(masks[:, :1]))
        isolation: Isolation = "equation" if rule == "equation" else "exclusive"
        return self.adapter.inputs.given(tokens, masks, isolation=isolation)


@torch.no_grad()
def generate_group(
    pipe: Any,
    picture: Picture,
    people: Sequence[DrivenFace],
    branch: ExpressionBranch | None,
    *,
    rule: Rule = "exclusive",
    steps: int = 30,
    guidance: float = 1.0,
    seed: int = 0,
) -> NDArray[np.float32]:
    """The video of a picture [H, W, 3] whose faces are driven. -> [F, H, W, 3] in [0, 1].

    branch None: landmarks alone move the faces. Drivers must have one length; at most 24 frames.
    """
    given = conditions_of(picture, people, pose_only=branch is not None)
    holding: Any = nullcontext()
    if branch is not None:
        features = {name: torch.from_numpy(np.stack([one.features[name] for one in people]))[None] for name in FACTORS}
        factor = pipe.vae_scale_factor
        masks = reduced(given.masks, factor)[None]
        holding = branch.given(features, masks, rule)
    with holding:
        result = pipe(
            picture,
            given.drawn,
            bent=given.bent,
            num_inference_steps=steps,
            guidance_scale=guidance,
            dilation="none",
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )
    return np.asarray(result.frames[0], np.float32)


def reduced(masks: NDArray[np.bool_], factor: int) -> Tensor:
    """Masks [..., H, W] area-averaged to the latents' grid."""
    height, width = masks.shape[-2:]
    return reduce_mask(torch.from_numpy(masks.astype(np.float32)), height // factor, width // factor)


def enlarged(frames: NDArray[Any], square: tuple[int, int, int], side: int) -> Picture:
    """A person's square of frames uint8 [F, H, W, 3] at `side` pixels, as a face detector sees it best."""
    return np.stack([crop_of(frame, square).cut(frame, side) for frame in frames])

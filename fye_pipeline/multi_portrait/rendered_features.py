"""The extractor `rendered`: four vectors of what a face does, seen by a small network trained on the rendered world.

PD-FGC's idea in small: an upright crop of the face, one convolutional trunk, a head for each factor. How it is trained
is `training.expression_features`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import box_of
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.multi_portrait.expression import (
    FACTORS,
    FIVE_POINTS,
    TEMPLATE,
    ExpressionSequence,
    aligned_face,
    similarity,
)
from fye_pipeline.storage.files import atomic_target, existing_file

SIZE = 112  # pixels a side of the crop
DIMS: Mapping[str, int] = {"head": 6, "eye": 6, "emotion": 16, "lip": 64}
SHIPPED = Path(__file__).parent.parent / "assets" / "people" / "features.safetensors"
_MIDDLE = (0.5, 0.4)  # of the crop: the place between the eyes and the nose whose way in the picture is told
_TOGETHER = 32  # faces that the network sees at once


class _Block(nn.Module):
    """Two convolutions beside a shortcut; half the side."""

    def __init__(self, wide: int, wider: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(wide, wider, 3, 2, 1)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, wider), nn.GroupNorm(8, wider)])
        self.shortcut = nn.Conv2d(wide, wider, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.norms[0](self.first(x)))
        return F.silu(self.shortcut(x) + self.norms[1](self.second(inner)))


class FeatureNet(nn.Module):
    """Upright faces and where they were in their pictures -> four vectors.

    The crop takes turn, size and place of the head away, so these go to the head's vector beside it.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128), hidden: int = 160) -> None:
        super().__init__()
        self.widths, self.hidden = widths, hidden
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.neck = nn.Linear(widths[-1] * (SIZE >> len(widths)) ** 2, hidden)
        self.placed = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, hidden))
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, width) for name, width in DIMS.items()})

    def forward(self, faces: Tensor, places: Tensor) -> dict[str, Tensor]:
        """faces [B, 3, 112, 112] in [0, 1], places [B, 4] (see `aligned_faces`) -> a vector [B, d] of each factor."""
        seen = self.neck(self.blocks(F.silu(self.stem(faces * 2 - 1))).flatten(1))
        inner = F.silu(seen)
        return {
            name: head(F.silu(seen + self.placed(places)) if name == "head" else inner)
            for name, head in self.heads.items()
        }

    def save(self, path: Path) -> None:
        """Weights in float16, and what the network is built from."""
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        settings = {"widths": ",".join(map(str, self.widths)), "hidden": str(self.hidden)}
        with atomic_target(path) as temporary:
            save_file(weights, temporary, metadata=settings)

    @classmethod
    def load(cls, path: Path) -> FeatureNet:
        """A saved network in float32, without gradients. Raises `UserError` where there is none."""
        with safe_open(existing_file(path, "the weights of the expression features"), "pt") as file:
            told = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        network = cls(tuple(int(n) for n in told["widths"].split(",")), int(told["hidden"]))
        network.load_state_dict(weights)
        return network.requires_grad_(False).eval()


class RenderedExtractor:
    """See the module; `weights`: a file that `FeatureNet.save` wrote, by default the one that ships."""

    name = "rendered"
    version = 1
    dims: Mapping[str, int] = DIMS

    def __init__(self, weights: Path = SHIPPED, *, network: FeatureNet | None = None) -> None:
        self.network = FeatureNet.load(weights) if network is None else network

    def __call__(self, frames: Iterable[NDArray[np.uint8]], landmarks: LandmarkSequence, /) -> ExpressionSequence:
        points = np.asarray(landmarks.landmarks[:])
        pictures = list(islice(frames, len(points)))
        if len(pictures) < len(points):
            raise UserError(
                f"The extractor rendered looks at pixels, and {len(points) - len(pictures)} frames have none."
            )
        faces, places = aligned_faces(pictures, points)
        made = features_of(self.network, faces, places)
        boxes = np.array([box_of(each) for each in points], np.float32)
        return ExpressionSequence(made, boxes, self.name, self.version, landmarks.fps)


@torch.no_grad()
def features_of(
    network: FeatureNet, faces: NDArray[np.uint8], places: NDArray[np.floating]
) -> dict[str, NDArray[np.float32]]:
    """The vectors of many faces, as `aligned_faces` gives them. -> [T, d] each."""
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(faces), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        parts.append(network(as_pictures(faces[part]), torch.from_numpy(np.asarray(places[part], np.float32))))
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in FACTORS}


def as_pictures(faces: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
    return torch.from_numpy(np.array(faces)).permute(0, 3, 1, 2).float() / 255


def aligned_faces(
    frames: list[NDArray[np.uint8]], landmarks: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Every frame's face upright, and where it was. frames [H, W, 3], landmarks [T, 478, >= 2] in 0..1 of them.

    -> faces [T, 112, 112, 3], places [T, 4]: the logarithm of the crop's side in heights of the picture, its turn in
    radians, and the way of its middle from the picture's, to the right and down, in heights.
    """
    faces = np.stack([aligned_face(frame, points, SIZE) for frame, points in zip(frames, landmarks, strict=True)])
    height, width = frames[0].shape[:2]
    aspect = width / height
    places = np.empty((len(frames), 4), np.float32)
    for place, points in zip(places, landmarks, strict=True):
        five = np.asarray(points)[list(FIVE_POINTS), :2] * (aspect, 1)
        back = similarity(np.array(TEMPLATE), five)  # from the crop to the picture
        side = float(np.hypot(back[0, 0], back[1, 0]))
        across, down = back[:, :2] @ _MIDDLE + back[:, 2]
        place[:] = np.log(side), np.arctan2(back[1, 0], back[0, 0]), across - aspect / 2, down - 0.5
    return faces, places

"""The extractor `pdfgc`: the motion network of PD-FGC (Wang et al., CVPR 2023), whose features FantasyPortrait takes.

Written from the network's description; the weights are the user's file. A face alignment network with one hourglass
sees an upright face of 224 pixels, its 68 maps become one vector of 512, and four heads part that into head, eye,
emotion and lip. The names of the layers are those of the published file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import box_of
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.models.layouts import describe_difference, read_weights, without_shared_prefix
from fye_pipeline.multi_portrait.expression import FACTORS, ExpressionSequence, aligned_face
from fye_pipeline.storage.files import existing_file

SIDE = 224  # pixels of the face
DIMS: Mapping[str, int] = {"head": 6, "eye": 6, "emotion": 30, "lip": 512}
_DEPTH = 4  # of the hourglass: how often its maps are halved
_TOGETHER = 16  # faces that the network sees at once
# The published heads by factor. The lip's features are those before its last layer.
_HEADS = {"head": "headpose", "eye": "eye", "emotion": "emo", "lip": "mouth"}
# Layers of the published file that serve its training alone.
_OF_TRAINING = ("mouth_fc", "headpose_fc", "classifier", "to_feature", "to_embed")


class _Block(nn.Module):
    """Three convolutions, each of the one before; their results side by side are added to the input."""

    def __init__(self, wide: int, wider: int) -> None:
        super().__init__()
        widths = (wide, wider // 2, wider // 4, wider // 4)
        for number, (before, after) in enumerate(pairwise(widths), 1):
            self.add_module(f"bn{number}", nn.BatchNorm2d(before))
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False))
        self.downsample = None
        if wide != wider:
            self.downsample = nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, wider, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        parts, inner = [], x
        for number in (1, 2, 3):
            norm, convolution = self.get_submodule(f"bn{number}"), self.get_submodule(f"conv{number}")
            inner = convolution(functional.relu(norm(inner)))
            parts.append(inner)
        return torch.cat(parts, dim=1) + (x if self.downsample is None else self.downsample(x))


class _Hourglass(nn.Module):
    """Maps at `depth` halvings and back, each level with a way past the smaller ones."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.depth = depth
        for level in range(1, depth + 1):
            for part in ("b1", "b2", "b3"):
                self.add_module(f"{part}_{level}", _Block(width, width))
        self.add_module("b2_plus_1", _Block(width, width))

    def forward(self, x: Tensor, level: int | None = None) -> Tensor:
        level = self.depth if level is None else level
        past = self.get_submodule(f"b1_{level}")(x)
        low = self.get_submodule(f"b2_{level}")(functional.max_pool2d(x, 2))
        low = self.get_submodule("b2_plus_1")(low) if level == 1 else self.forward(low, level - 1)
        low = self.get_submodule(f"b3_{level}")(low)
        return past + functional.interpolate(low, size=past.shape[-2:], mode="bilinear")


class _Alignment(nn.Module):
    """A face [B, 3, S, S] -> one vector [B, hidden]."""

    def __init__(self, width: int, points: int, hidden: int, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 4, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width // 4)
        self.conv2 = _Block(width // 4, width // 2)
        self.conv3 = _Block(width // 2, width // 2)
        self.conv4 = _Block(width // 2, width)
        self.m0 = _Hourglass(_DEPTH, width)
        self.top_m_0 = _Block(width, width)
        self.conv_last0 = nn.Conv2d(width, width, 1)
        self.bn_end0 = nn.BatchNorm2d(width)
        self.l0 = nn.Conv2d(width, points, 1)
        self.bn5 = nn.BatchNorm2d(points)
        self.conv6 = nn.Conv2d(points, 1, 3, stride=2, padding=1)
        self.fc = nn.Linear((side // 8) ** 2, hidden)

    def forward(self, faces: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(faces)))
        x = self.conv4(self.conv3(functional.max_pool2d(self.conv2(x), 2)))
        x = self.bn_end0(self.conv_last0(self.top_m_0(self.m0(x))))
        maps = functional.relu(self.bn5(self.l0(functional.relu(x))))
        return self.fc(functional.relu(self.conv6(maps)).flatten(1))


class MotionNet(nn.Module):
    """Upright faces [B, 3, 224, 224] in [-1, 1] -> a vector [B, d] of each factor; the defaults are published sizes."""

    def __init__(
        self, dims: Mapping[str, int] = DIMS, *, width: int = 256, points: int = 68, hidden: int = 512, side: int = SIDE
    ) -> None:
        super().__init__()
        self.side = side
        self.model = _Alignment(width, points, hidden, side)
        for factor, name in _HEADS.items():
            # The lip's embedding is what head and eye leave of the vector; its features are taken before it.
            size = hidden - dims["head"] - dims["eye"] if factor == "lip" else dims[factor]
            layers = nn.Linear(hidden, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, hidden)
            self.add_module(f"to_{name}", nn.Sequential(*layers))
            self.add_module(f"{name}_embed", nn.Sequential(nn.ReLU(), nn.Linear(hidden, size)))

    def forward(self, faces: Tensor) -> dict[str, Tensor]:
        x = self.model(faces)
        made = {factor: self.get_submodule(f"to_{name}")(x) for factor, name in _HEADS.items()}
        return {
            factor: inner if factor == "lip" else self.get_submodule(f"{_HEADS[factor]}_embed")(inner)
            for factor, inner in made.items()
        }


class PdFgcExtractor:
    """See the module. weights: the user's file (`.pth` or `.safetensors`); nothing in it is run.

    Raises `UserError` where it is no file of weights, or a key is missing, too many, or of another shape.
    """

    name = "pdfgc"
    version = 1
    dims: Mapping[str, int] = DIMS

    def __init__(self, weights: Path, *, device: torch.device | str = "cpu") -> None:
        self.network = load_motion_net(weights).to(device)
        self._device = device

    def __call__(self, frames: Iterable[NDArray[np.uint8]], landmarks: LandmarkSequence, /) -> ExpressionSequence:
        points = np.asarray(landmarks.landmarks[:])
        made = features_of(self.network, faces_in(frames, points, self.network.side), self._device)
        if len(made["head"]) != len(points):
            raise UserError(f"The extractor pdfgc looks at pixels, and {len(points)} frames have none.")
        boxes = np.array([box_of(each) for each in points], np.float32)
        return ExpressionSequence(made, boxes, self.name, self.version, landmarks.fps)


def faces_in(
    frames: Iterable[NDArray[np.uint8]], landmarks: NDArray[np.floating], side: int
) -> Iterator[NDArray[np.uint8]]:
    """Every frame's face upright, [side, side, 3]; ends with the frames or the landmarks [T, 478, >= 2]."""
    for frame, points in zip(frames, landmarks, strict=False):
        yield aligned_face(frame, points, side)


@torch.no_grad()
def features_of(
    network: MotionNet, faces: Iterable[NDArray[np.uint8]], device: torch.device | str = "cpu"
) -> dict[str, NDArray[np.float32]]:
    """The vectors of faces [S, S, 3], as many as there are. -> [T, d] each."""
    faces, parts = iter(faces), []
    while group := list(islice(faces, _TOGETHER)):
        pictures = torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        parts.append(network(pictures))
    if not parts:
        return {factor: np.zeros((0, 0), np.float32) for factor in FACTORS}
    return {factor: torch.cat([part[factor] for part in parts]).cpu().numpy() for factor in FACTORS}


def load_motion_net(path: Path, network: MotionNet | None = None) -> MotionNet:
    """A network with the weights of a file; layers that serve training alone are left out.

    network: of which sizes, by default the published ones. Raises `UserError` as `PdFgcExtractor`.
    """
    network = MotionNet() if network is None else network
    state = without_shared_prefix(read_weights(existing_file(path, "the weights of pdfgc")))
    state = {key: value for key, value in state.items() if not any(part in key for part in _OF_TRAINING)}
    fault = describe_difference(str(path), "PD-FGC's motion network", network.state_dict(), state, state)
    if fault is not None:
        raise UserError(f"{fault}.")
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()

"""Metrics whose networks come from a file that the user names: LPIPS, FID, FVD, ArcFace and HyperIQA.

None of them is fetched. State dicts are read without unpickling code; ONNX files are graphs that OpenCV runs;
TorchScript archives are programs, so only files from a source you trust should be given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchmetrics.functional.image as torchmetrics_image
from numpy.typing import NDArray
from torch import Tensor, nn

from fye_pipeline.errors import UserError
from fye_pipeline.evaluation.distances import cosine
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.multi_portrait.expression import similarity
from fye_pipeline.storage.files import existing_file

Picture = NDArray[np.uint8]
Network = Callable[..., Tensor]

FVD_FRAMES = 10  # the fewest that I3D's strides leave something of


@dataclass(frozen=True)
class Weights:
    """Files of the networks; None: the metric has no figure.

    lpips: torchvision's AlexNet, a state dict. fid: Inception of StyleGAN's metrics, TorchScript. fvd: I3D of the FVD
    comparison by the authors of StyleGAN-V, TorchScript. arcface: ONNX or TorchScript. hyperiqa: TorchScript or ONNX.
    """

    lpips: Path | None = None
    fid: Path | None = None
    fvd: Path | None = None
    arcface: Path | None = None
    hyperiqa: Path | None = None

    def needs(self) -> dict[str, str]:
        """What the metrics without a file need."""
        return {field.name: f"--{field.name}" for field in fields(self) if getattr(self, field.name) is None}

    def to_dict(self) -> dict[str, str | None]:
        """Plain values for JSON."""
        return {
            field.name: None if (path := getattr(self, field.name)) is None else str(path) for field in fields(self)
        }


class Lpips:
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018): distance of what a network sees in two pictures; 0 is equal.

    path: torchvision's `alexnet` state dict (.pth or .safetensors). The linear weights are those in torchmetrics.
    Raises `UserError` where the file is another one.
    """

    # (channels in, out, kernel, stride, padding), and whether a pooling stands before it
    LAYERS = (
        ((3, 64, 11, 4, 2), False),
        ((64, 192, 5, 1, 2), True),
        ((192, 384, 3, 1, 1), True),
        ((384, 256, 3, 1, 1), False),
        ((256, 256, 3, 1, 1), False),
    )
    NUMBERS = (0, 3, 6, 8, 10)  # of the convolutions in torchvision's `features`

    def __init__(self, path: Path) -> None:
        state = read_state(path, "LPIPS' AlexNet")
        self._layers = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for (i, o, k, s, p), _ in self.LAYERS)
        for layer, number in zip(self._layers, self.NUMBERS, strict=True):
            try:
                own = {name: state[f"features.{number}.{name}"] for name in ("weight", "bias")}
                layer.load_state_dict(own)
            except (KeyError, RuntimeError) as error:
                raise UserError(
                    f"{path} is not torchvision's AlexNet: features.{number} is absent or has another shape."
                ) from error
        file = Path(torchmetrics_image.__file__).parent / "lpips_models" / "alex.pth"
        linear = torch.load(file, map_location="cpu", weights_only=True)
        self._linear = [linear[f"lin{number}.model.1.weight"] for number in range(len(self.LAYERS))]
        self._shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]  # ImageNet's, for pictures in -1..1
        self._scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    @torch.inference_mode()
    def __call__(self, video: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
        """Mean over frames; videos [F, H, W, 3] in [0, 1]."""
        frames = zip(video, truth, strict=True)
        return float(np.mean([self._frame(one, two) for one, two in frames]))

    def _frame(self, one: NDArray[np.floating], two: NDArray[np.floating]) -> float:
        pair = torch.from_numpy(np.stack([one, two])).float().permute(0, 3, 1, 2)
        x, total = (pair * 2 - 1 - self._shift) / self._scale, 0.0
        for layer, (_, pooled), linear in zip(self._layers, self.LAYERS, self._linear, strict=True):
            x = nn.functional.relu(layer(nn.functional.max_pool2d(x, 3, 2) if pooled else x))
            unit = x / torch.sqrt(1e-8 + (x**2).sum(1, keepdim=True))
            total += float(((unit[0] - unit[1]) ** 2 * linear[0]).sum(0).mean())  # Eq. 1
        return total


class FrameFeatures:
    """Inception features of frames for FID, and of videos for FVD: uint8 [F, H, W, 3] -> [F, D], and [1, D]."""

    def __init__(self, weights: Weights) -> None:
        self._inception = None if weights.fid is None else read_network(weights.fid, "FID's Inception")
        self._i3d = None if weights.fvd is None else read_network(weights.fvd, "FVD's I3D")

    @torch.inference_mode()
    def __call__(self, video: Picture) -> dict[str, NDArray[np.floating]]:
        """What can be computed, as `fid` and `fvd`."""
        found: dict[str, NDArray[np.floating]] = {}
        if self._inception is not None:
            # StyleGAN's archive takes pixels in 0..255 and resizes them itself, as the original network did.
            rows = [self._inception(_batch(frame[None]), return_features=True).flatten(1) for frame in video]
            found["fid"] = torch.cat(rows).numpy()
        if self._i3d is not None and len(video) >= FVD_FRAMES:
            frames = nn.functional.interpolate(_batch(video), (224, 224), mode="bilinear", align_corners=False)
            clip = (frames / 127.5 - 1).permute(1, 0, 2, 3)[None]  # [1, 3, F, 224, 224] in -1..1
            options = {"rescale": False, "resize": False, "return_features": True}
            found["fvd"] = self._i3d(clip, **options).flatten(1).numpy()
        return found


class ArcFace:
    """Identity as the cosine of ArcFace embeddings (Deng et al. 2019); 1 is the same direction.

    path: an ONNX file or TorchScript archive, [1, 3, 112, 112] RGB in -1..1 -> [1, D].
    """

    # Where the released aligner puts eyes, nose tip and mouth corners in a picture of 112 x 112.
    TEMPLATE = np.array(
        [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
    )
    POINTS = (468, 473, 4, 61, 291)

    def __init__(self, path: Path) -> None:
        self._network = read_network(path, "ArcFace's network")

    @torch.inference_mode()
    def embed(self, picture: Picture, landmarks: NDArray[np.floating]) -> NDArray[np.floating]:
        """The embedding of a face. uint8 RGB [H, W, 3] and its landmarks [478, >= 2] in 0..1 -> [D]."""
        face = self.align(picture, landmarks)
        return self._network(_batch(face[None]) / 127.5 - 1).flatten().numpy()

    def align(self, picture: Picture, landmarks: NDArray[np.floating]) -> Picture:
        """Turn, scale and shift a face onto the template, by least squares. -> uint8 [112, 112, 3]."""
        height, width = picture.shape[:2]
        points = np.asarray(landmarks, np.float64)[list(self.POINTS), :2] * (width, height)
        matrix = similarity(points, self.TEMPLATE)
        return np.asarray(cv2.warpAffine(picture, matrix, (112, 112), flags=cv2.INTER_LINEAR), np.uint8)

    def similarity(self, video: Picture, track: LandmarkSequence, portrait: NDArray[np.floating]) -> float:
        """Mean cosine between the portrait's embedding and those of the frames with a face; nan without any."""
        frames = [k for k in range(len(video)) if track.found[k]]
        values = [cosine(self.embed(video[k], track.landmarks[k]), portrait) for k in frames]
        return float(np.mean(values)) if values else float("nan")


class HyperIqa:
    """Picture quality without a truth (Su et al. 2020), 0 to 100; higher is better.

    path: TorchScript or ONNX, [1, 3, 224, 224] with ImageNet's mean and deviation -> a score. Each frame is scored
    once, resized to 224 x 224 (the authors average 25 random crops, which is not repeatable).
    """

    MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, path: Path) -> None:
        self._network = read_network(path, "HyperIQA's network")

    @torch.inference_mode()
    def __call__(self, video: Picture) -> float:
        """Mean over frames, uint8 [F, H, W, 3]."""
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (self.MEAN, self.DEVIATION))
        scores = []
        for frame in video:
            small = nn.functional.interpolate(_batch(frame[None]), (224, 224), mode="bilinear", antialias=True)
            scores.append(float(self._network((small / 255 - mean) / deviation).flatten()[0]))
        return float(np.mean(scores))


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that were given."""

    lpips: Lpips | None = None
    arcface: ArcFace | None = None
    hyperiqa: HyperIqa | None = None
    features: FrameFeatures | None = None

    @classmethod
    def load(cls, weights: Weights) -> MetricNetworks:
        """Read every file. Raises `UserError` as the metrics do."""
        return cls(
            lpips=None if weights.lpips is None else Lpips(weights.lpips),
            arcface=None if weights.arcface is None else ArcFace(weights.arcface),
            hyperiqa=None if weights.hyperiqa is None else HyperIqa(weights.hyperiqa),
            features=FrameFeatures(weights) if weights.fid or weights.fvd else None,
        )


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a .pth without running anything in it. Raises `UserError`."""
    path = existing_file(path, what)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file fails in whatever way its bytes lead to
        raise UserError(f"{path} cannot be read as {what} ({type(error).__name__}): give a state dict.") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict ({what}).")
    return state


def read_network(path: Path, what: str) -> Network:
    """A network from an ONNX file or a TorchScript archive, on the CPU. Raises `UserError`.

    A TorchScript archive is a program that runs when it is called: it is loaded only from a path that the user gave.
    Options that its `forward` does not name are left out of the call.
    """
    path = existing_file(path, what)
    try:
        if path.suffix.lower() == ".onnx":
            return _Onnx(path)
        return _Script(path)
    except Exception as error:  # as `read_state`
        raise UserError(
            f"{path} cannot be read as {what} ({type(error).__name__}): give a TorchScript archive or an .onnx file."
        ) from error


class _Onnx:
    """An ONNX graph, run by OpenCV."""

    def __init__(self, path: Path) -> None:
        self._net = cv2.dnn.readNetFromONNX(str(path))

    def __call__(self, batch: Tensor, **_: Any) -> Tensor:
        self._net.setInput(np.ascontiguousarray(batch.numpy(), np.float32))
        return torch.from_numpy(np.array(self._net.forward()))


class _Script:
    """A TorchScript archive."""

    def __init__(self, path: Path) -> None:
        self._net: Any = torch.jit.load(str(path), map_location="cpu").eval()
        self._known = {argument.name for argument in self._net.forward.schema.arguments}

    def __call__(self, batch: Tensor, **options: Any) -> Tensor:
        return self._net(batch, **{name: value for name, value in options.items() if name in self._known})


def _batch(pictures: Picture) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..255."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()

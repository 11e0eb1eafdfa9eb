"""Metrics with networks from files, on tiny networks written here; what is no network is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as torchmetrics_lpips
from safetensors.torch import save_file
from torch import nn

from fye_pipeline.errors import UserError
from fye_pipeline.evaluation.metric_networks import ArcFace, FrameFeatures, HyperIqa, Lpips, Weights, read_network


class MeanColour(nn.Module):
    """The mean colour as an embedding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


class Inception(nn.Module):
    """Feature and logits as StyleGAN's archive gives them."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        feature = img.mean(dim=[2, 3])
        return feature if return_features else feature * 0


class I3d(nn.Module):
    """Takes a clip in -1..1 and the options of the published archive."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert not rescale
        assert not resize
        assert return_features
        return torch.stack([x.mean(dim=[1, 2, 3, 4]), torch.full([1], float(x.shape[2]))], 1)


def script(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value: int) -> bytes:
    rest, low = divmod(value, 128)
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def onnx_mean_colour(path: Path, side: int) -> Path:
    """An ONNX graph [1, 3, side, side] -> [1, 3]: global average pool, flatten."""

    def tensor(name: str, *sizes: int) -> bytes:
        shape = b"".join(field(1, field(1, size)) for size in sizes)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    def node(kind: str, given: str, made: str) -> bytes:
        return field(1, given) + field(2, made) + field(3, kind) + field(4, kind)

    nodes = field(1, node("GlobalAveragePool", "x", "y")) + field(1, node("Flatten", "y", "z"))
    graph = nodes + field(2, "mean") + field(11, tensor("x", 1, 3, side, side)) + field(12, tensor("z", 1, 3))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 72, 64, 3), np.uint8)


def test_lpips_is_that_of_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for (i, o, k, s, p), pooled in Lpips.LAYERS:
        layers += [nn.MaxPool2d(3, 2)] * pooled + [nn.Conv2d(i, o, k, s, p), nn.ReLU()]
    features = nn.Sequential(*layers, nn.MaxPool2d(3, 2))
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    assert "features.10.weight" in state
    save_file(state | {"classifier.1.bias": torch.zeros(2)}, tmp_path / "alexnet.safetensors")
    torch.save(state, tmp_path / "alexnet.pth")
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: features)
    theirs = torchmetrics_lpips._LPIPS(net="alex")
    one, two = np.random.default_rng(1).random((2, 2, 64, 80, 3)).astype(np.float32)
    tensors = [torch.from_numpy(v).permute(0, 3, 1, 2) for v in (one, two)]
    expected = float(theirs(*tensors, normalize=True).mean())
    assert expected > 1e-4
    for name in ("alexnet.safetensors", "alexnet.pth"):
        assert Lpips(tmp_path / name)(one, two) == pytest.approx(expected, rel=1e-4)
    assert Lpips(tmp_path / "alexnet.pth")(one, one) == 0


def test_another_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2, 2), "features.0.bias": torch.zeros(2)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"is not torchvision's AlexNet: features\.0"):
        Lpips(tmp_path / "vgg.pth")


class Evil:
    def __reduce__(self) -> Any:
        return print, ("planted",)


def test_no_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evil.pth", "evil.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="cannot be read as LPIPS' AlexNet"):
        Lpips(tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"cannot be read as a net .* give a TorchScript archive or an \.onnx file"):
        read_network(tmp_path / "evil.pt", "a net")
    assert "planted" not in capsys.readouterr().out


def test_features_of_frames_and_of_the_video(video: np.ndarray, tmp_path: Path) -> None:
    weights = Weights(fid=script(Inception(), tmp_path / "inception.pt"), fvd=script(I3d(), tmp_path / "i3d.pt"))
    found = FrameFeatures(weights)(video)
    np.testing.assert_allclose(found["fid"], video.mean((1, 2)), rtol=1e-5)  # 0..255, features rather than logits
    assert found["fvd"].shape == (1, 2)
    assert found["fvd"][0, 0] == pytest.approx(video.mean() / 127.5 - 1, abs=0.02)
    assert found["fvd"][0, 1] == 12
    assert set(FrameFeatures(weights)(video[:9])) == {"fid"}  # too short for I3D
    assert FrameFeatures(Weights())(video) == {}


def landmarks_at(points: np.ndarray, width: int, height: int) -> np.ndarray:
    marks = np.zeros((478, 3))
    marks[list(ArcFace.POINTS), :2] = points / (width, height)
    return marks


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_a_face_is_turned_onto_the_template(kind: str, tmp_path: Path) -> None:
    path = onnx_mean_colour(tmp_path / "a.onnx", 112) if kind == "onnx" else script(MeanColour(), tmp_path / "a.pt")
    arcface = ArcFace(path)
    picture = np.zeros((300, 400, 3), np.uint8)
    # The template, turned a quarter, twice as large, shifted; a red spot is on the nose tip.
    turned = ArcFace.TEMPLATE @ np.array([[0, 2.0], [-2.0, 0]]) + (300, 40)
    x, y = np.round(turned[2]).astype(int)
    picture[y - 5 : y + 6, x - 5 : x + 6, 0] = 255
    marks = landmarks_at(turned, 400, 300)
    face = arcface.align(picture, marks)
    assert face.shape == (112, 112, 3)
    spot = np.argwhere(face[..., 0] > 127)
    assert spot.mean(0)[::-1] == pytest.approx(ArcFace.TEMPLATE[2], abs=0.6)
    expected = face.reshape(-1, 3).mean(0) / 127.5 - 1
    assert arcface.embed(picture, marks) == pytest.approx(expected, abs=1e-4)


def test_quality_is_scored_frame_by_frame(video: np.ndarray, tmp_path: Path) -> None:
    score = HyperIqa(script(MeanColour(), tmp_path / "iqa.pt"))(video)
    red = video[..., 0].mean() / 255
    assert score == pytest.approx((red - 0.485) / 0.229, abs=0.02)


def test_weights_say_what_is_missing() -> None:
    assert Weights(fid=Path("a.pt")).needs() == {
        "lpips": "--lpips", "fvd": "--fvd", "arcface": "--arcface", "hyperiqa": "--hyperiqa",
    }  # fmt: skip

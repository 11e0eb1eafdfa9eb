"""Several people, and one, animated by a folder with Wan's pipeline, as a user asks for it; random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fye_command import Fye, keep_frames, make_video
from PIL import Image
from test_multi_wan import release_of
from wan_parts import save_wan, trained, transformer

from fye_pipeline.animate import output as written
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.media.video import read_comment
from fye_pipeline.multi_portrait import pdfgc, wan_run
from fye_pipeline.multi_portrait.wan import WanExpression
from fye_pipeline.multi_portrait.wan_model import choose_dtype
from fye_pipeline.multi_portrait.wan_settings import window_starts
from fye_pipeline.world import World

SIDE = 128
FRAMES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, face_landmarker_path: Path) -> Path:
    """group.png (two heads), the landmarks of two drivers, a video of one, and `wan`, the model."""
    del face_landmarker_path  # the tests need it
    made = tmp_path_factory.mktemp("wan")
    world = World(CanonicalFace.load(), size=SIDE)
    heads = [world.portrait("held", index).frames[0] for index in (0, 1)]
    Image.fromarray(np.concatenate(heads, axis=1)).save(made / "group.png")
    for number in (0, 1):
        clip = world.clip("held", number, take=1, frames=FRAMES)
        clip.sequence.save(made / f"{number}.npz")
        if number:
            make_video(made / "1.mp4", list(clip.frames), sound="aac", seconds=0.2)
    save_wan(made / "wan")
    return made


Animate = Callable[..., tuple[dict[str, Any], np.ndarray]]


@pytest.fixture
def animate(fye: Fye, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Animate:
    """Run `fye animate` -> its JSON, and the frames [F, H, W, 3] as they were before they were encoded."""
    kept = keep_frames(monkeypatch, written)

    def run(*drivers: str, more: tuple[Any, ...] = ()) -> tuple[dict[str, Any], np.ndarray]:
        kept.clear()
        code, out, err = fye("animate", *arguments(folder, *drivers), "--output", tmp_path / "out.mp4", "--json", *more)
        assert code == 0, err
        return json.loads(out), np.stack(kept)

    return run


def arguments(folder: Path, *drivers: str) -> tuple[Any, ...]:
    files = [part for driver in drivers for part in ("--driving", folder / driver)]
    fast = ("--steps", 2, "--size", 64, "--min-face", 24, "--quiet", "--overwrite")
    return ("--reference", folder / "group.png", *files, "--model", folder / "wan", *fast)


def change(one: np.ndarray, other: np.ndarray) -> float:
    """How much frames differ, in levels of 255."""
    return float(np.abs(one.astype(float) - other).mean())


def test_windows_begin_with_the_last_frame_of_the_one_before() -> None:
    assert window_starts(81, 240) == [(0, 81)]
    assert window_starts(82, 81) == [(0, 81), (80, 5)]
    assert window_starts(6, 81) == [(0, 9)]
    assert window_starts(10, 8) == [(0, 5), (4, 5), (8, 5)]
    assert window_starts(1, 81) == [(0, 1)]


def test_two_drivers_move_two_faces(animate: Animate, tmp_path: Path) -> None:
    result, frames = animate("0.npz", "1.npz")
    assert (result["frames"], result["size"], result["faces"]) == (FRAMES, [128, 64], 2)
    assert [(each["face"], each["driver"]) for each in result["people"]] == [(1, 0), (2, 1)]
    assert frames.shape == (FRAMES, 64, 128, 3)
    note = json.loads(read_comment(tmp_path / "out.mp4"))
    assert note["settings"] == result["settings"]
    _, exchanged = animate("0.npz", "1.npz", more=("--assign", "1,0"))
    assert change(frames, exchanged) > 0.1
    _, still = animate("0.npz", "1.npz", more=("--guidance", 1))
    assert change(frames, still) > 0.1


def test_people_with_their_drivers_may_come_in_any_order(animate: Animate) -> None:
    _, frames = animate("0.npz", "1.npz")
    _, others = animate("1.npz", "0.npz", more=("--assign", "1,0"))
    assert change(frames, others) < 0.05


def test_one_driver_moves_one_face(animate: Animate) -> None:
    result, frames = animate("1.mp4", more=("--face", 2))
    assert [(each["face"], each["driver"]) for each in result["people"]] == [(2, 0)]
    assert result["sound"]
    _, others = animate("1.mp4", more=("--face", 1))
    assert change(frames, others) > 0.1


def test_a_longer_video_is_made_in_windows_and_goes_on_where_it_broke_off(
    animate: Animate, fye: Fye, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, frames = animate("0.npz", "1.npz", more=("--chunk", 5))
    assert len(frames) == FRAMES
    made: list[int] = []
    original = wan_run._window

    def window(*given: Any) -> Any:
        made.append(given[4])
        if len(made) == 2:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(wan_run, "_window", window)
    command = ("animate", *arguments(folder, "0.npz", "1.npz")[:-1], "--chunk", 5, "--output", tmp_path / "again.mp4")
    assert fye(*command)[0] == 130
    code, out, err = fye(*command, "--resume", "--json")
    assert code == 0, err
    assert made == [0, 4, 4], "the finished window was made again"
    assert json.loads(out)["frames"] == FRAMES


def test_a_published_checkpoint_is_named_beside_the_folder(
    animate: Animate, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, frames = animate("0.npz", "1.npz")
    torch.save(release_of(WanExpression.load(folder / "wan", transformer())), tmp_path / "release.pt")
    small = partial(WanExpression.from_release, head_dim=4)
    monkeypatch.setattr(WanExpression, "from_release", staticmethod(small))
    result, others = animate("0.npz", "1.npz", more=("--expression-adapter", tmp_path / "release.pt"))
    assert result["settings"]["expression_adapter"] == str(tmp_path / "release.pt")
    assert change(frames, others) < 0.05


def test_the_features_of_pd_fgc_need_its_weights_and_the_drivers_pixels(
    animate: Animate, fye: Fye, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of the published features, with fewer maps."""
    monkeypatch.setattr(pdfgc, "MotionNet", partial(pdfgc.MotionNet, width=16, points=6))
    torch.save(pdfgc.MotionNet().state_dict(), tmp_path / "motion.pth")
    wan = shutil.copytree(folder / "wan", tmp_path / "wan")
    trained(transformer(), pdfgc.DIMS).save(wan)
    weights = ("--expression-weights", tmp_path / "motion.pth")
    _, frames = animate("1.mp4", "1.mp4", more=("--model", wan, *weights))
    assert len(frames) == FRAMES
    two = ("animate", *arguments(folder, "1.mp4", "0.npz"), "--output", tmp_path / "no.mp4", "--model", wan)
    assert "--expression-weights" in fye.refused(*two)
    assert "looks at pixels" in fye.refused(*two, *weights)


def test_folders_without_an_adapter_that_fits_end_in_one_sentence(fye: Fye, folder: Path, tmp_path: Path) -> None:
    two = ("animate", *arguments(folder, "0.npz", "1.npz"), "--output", tmp_path / "out.mp4", "--model")
    bare = shutil.copytree(folder / "wan", tmp_path / "bare")
    (bare / "expression_adapter.safetensors").unlink()
    assert "holds no expression_adapter.safetensors" in fye.refused(*two, bare)
    headless = shutil.copytree(folder / "wan", tmp_path / "headless")
    shutil.rmtree(headless / "encoder")
    assert "no encoder" in fye.refused(*two, headless)
    other = save_wan(tmp_path / "other", layers=3)
    shutil.copy(folder / "wan" / "expression_adapter.safetensors", other)
    assert "does not fit this model" in fye.refused(*two, other)
    foreign = shutil.copytree(folder / "wan", tmp_path / "foreign")
    trained(transformer()).save(foreign)
    assert "that no extractor makes" in fye.refused(*two, foreign)
    broken = shutil.copytree(folder / "wan", tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    assert "cannot be loaded" in fye.refused(*two, broken)
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "headless", "other", "foreign", "broken"}


def test_what_wan_has_not_ends_in_one_sentence(fye: Fye, folder: Path, tmp_path: Path, random_model: Path) -> None:
    two = ("animate", *arguments(folder, "0.npz", "1.npz"), "--output", tmp_path / "out.mp4")
    for flags in (("--compare",), ("--N", 3), ("--face", 2), ("--pose", "relative"), ("--alpha",)):
        assert f"{flags[0]}" in fye.refused(*two, *flags)
    refused = fye.refused(*two, "--model", random_model, "--expression-adapter", "a.pt")
    assert "--expression-adapter is for a folder with a WanImageToVideoPipeline" in refused


def test_numbers_are_bfloat16_on_a_gpu_and_float32_elsewhere() -> None:
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_it_runs_in_bfloat16(animate: Animate) -> None:
    _, frames = animate("0.npz", "1.npz", more=("--dtype", "bfloat16", "--frames", 2))
    assert len(frames) == 2

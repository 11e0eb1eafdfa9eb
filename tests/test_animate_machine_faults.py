"""What fails in disks, devices and model files, each as one sentence. Numbers name rows of the table of inputs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from fye_command import Fye, grey_frames

from fye_pipeline.animate.config import DEMO_DRIVING, AnimationSettings
from fye_pipeline.animate.run import animate
from fye_pipeline.errors import UserError
from fye_pipeline.media.video import read_frames
from fye_pipeline.media.writer import VideoWriter
from fye_pipeline.models.denoising_unet import DenoisingUNet
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.storage.files import atomic_target

FAST = ("--steps", 2, "--frames", 2, "--quiet")


def test_row_28_what_is_there_is_replaced_only_when_told(fye: Fye, tmp_path: Path, random_model: Path) -> None:
    output = tmp_path / "a.mp4"
    arguments = ("animate", "--model", random_model, "--output", output, *FAST)
    assert fye(*arguments)[0] == 0
    made = output.read_bytes(), output.stat().st_mtime_ns
    assert "--overwrite" in fye.refused(*arguments)
    assert fye(*arguments, "--resume")[0] == 0  # the same settings: it is done
    assert "--overwrite" in fye.refused(*arguments, "--resume", "--seed", 5)
    assert (output.read_bytes(), output.stat().st_mtime_ns) == made
    assert fye(*arguments, "--seed", 5, "--overwrite")[0] == 0
    assert output.read_bytes() != made[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_row_29_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from fye_pipeline.errors import UserError
from fye_pipeline.media.writer import write_video
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
noise = [np.random.default_rng(i).integers(0, 255, (128, 128, 3)).astype(np.uint8) for i in range(12)]
try:
    write_video(Path(sys.argv[1]), noise, Fraction(25))
except UserError as error:
    print(error)
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "out.mp4")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert "disk is full" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_row_29_a_read_only_folder_is_refused_at_once(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and original(path, mode))
    assert "read-only" in fye.refused("animate", "--output", tmp_path / "a.mp4", *FAST)


def test_row_30_two_runs_with_one_output_never_mix(tmp_path: Path) -> None:
    target, ready = tmp_path / "out.mp4", threading.Barrier(2)
    outcome: list[str] = []

    def write(level: int) -> None:
        try:
            with VideoWriter(target, Fraction(25), overwrite=False) as writer:
                writer.write(np.full((64, 64, 3), level, np.uint8))
                ready.wait(60)
                writer.write(np.full((64, 64, 3), level, np.uint8))
            outcome.append("written")
        except UserError as error:
            outcome.append(str(error))

    threads = [threading.Thread(target=write, args=(level,)) for level in (50, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome.count("written") == 1
    assert any("another program" in text for text in outcome)
    assert len({round(float(frame.mean()), -1) for frame in read_frames(target)}) == 1
    assert list(tmp_path.iterdir()) == [target]


def demo(model: Path, **changes: Any) -> AnimationSettings:
    return AnimationSettings.from_dict(
        {"reference_landmarks": "shipped:demo/portrait_landmarks.npz", "model": str(model), "steps": 2, "frames": 2}
        | changes
    )


def scarce(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, failures: int) -> None:
    """Let a network's method run out of GPU memory so many times, as CUDA's allocator does."""
    original, left = getattr(kind, method), [failures]

    def scarce(self: Any, *arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *arguments, **options)

    monkeypatch.setattr(kind, method, scarce)


@pytest.mark.parametrize(("kind", "method"), [(DenoisingUNet, "forward"), (AutoencoderKL, "decode")])
def test_row_32_out_of_memory_is_tried_once_more_and_then_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> None:
    settings = demo(SHIPPED_MODEL, frames=1, cache=None)
    with monkeypatch.context() as patch:
        scarce(patch, kind, method, failures=2)
        with pytest.raises(UserError, match=r"Out of GPU memory.* --offload \w+, a smaller --size"):
            animate(settings, tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()
    with monkeypatch.context() as patch:
        scarce(patch, kind, method, failures=1)
        notes = animate(settings, tmp_path / "b.mp4").notes
    assert "out of GPU memory" in notes[0]
    assert ("once more" in notes[0]) == (method == "forward")
    assert ("in tiles" in notes[0]) == (method == "decode")
    animate(settings, tmp_path / "plain.mp4")
    frames = [np.stack(list(read_frames(tmp_path / name))).astype(int) for name in ("b.mp4", "plain.mp4")]
    assert np.abs(frames[0] - frames[1]).mean() < (0.01 if method == "forward" else 12), "tiles differ at their seams"


@pytest.mark.parametrize(
    ("kind", "method", "said"),
    [(DenoisingUNet, "forward", "overflowed: this is done again"), (AutoencoderKL, "decode", "overflowed in decoding")],
)
def test_row_33_half_precision_that_overflows_is_done_again_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_model: Path, kind: type, method: str, said: str
) -> None:
    original = getattr(kind, method)

    def overflowing(self: Any, *arguments: Any, **options: Any) -> Any:
        """Half precision ends in values that are no numbers, as the attention of some GPUs does."""
        (made,) = original(self, *arguments, **options)
        return (made * torch.nan if self.dtype != torch.float32 else made,)

    plain = animate(demo(random_model, frames=1, cache=None), tmp_path / "plain.mp4")
    monkeypatch.setattr(kind, method, overflowing)
    result = animate(demo(random_model, frames=1, cache=None, dtype="bfloat16"), tmp_path / "half.mp4")
    assert any(said in note and "float32" in note for note in result.notes)
    assert plain.notes == []
    frames = np.stack(list(read_frames(tmp_path / "half.mp4"))).astype(int)
    assert np.abs(frames - np.stack(list(read_frames(tmp_path / "plain.mp4")))).mean() < 6


def test_row_34_a_device_that_is_not_there_names_those_that_are(fye: Fye, tmp_path: Path) -> None:
    for name in ("cuda:99", "quantum"):
        sentence = fye.refused("animate", "--device", name, "--output", tmp_path / "a.mp4", *FAST)
        assert f"--device {name} is not there" in sentence
        assert "cpu" in sentence


def test_row_35_row_36_and_row_37_a_model_that_is_absent_a_pointer_or_another_kind(
    fye: Fye, tmp_path: Path, random_model: Path
) -> None:
    def sentence(folder: Path) -> str:
        return fye.refused("animate", "--model", folder, "--output", tmp_path / "a.mp4", *FAST)

    assert "the model that ships" in sentence(tmp_path / "absent")
    cut = Path(shutil.copytree(random_model, tmp_path / "cut"))
    weights = next((cut / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in sentence(cut)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "Git-LFS pointer" in sentence(cut)
    other = tmp_path / "sd"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "holds a StableDiffusionPipeline" in sentence(other)


class Trap:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def test_row_38_and_row_39_templates_with_code_or_of_another_version_are_refused(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    Path("bare.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.npy", "bare.npy"):
        assert name in fye.refused("animate", "--driving", name, "--output", "a.mp4", *FAST)
    assert not Path("trapped").exists()
    with np.load(DEMO_DRIVING) as archive:
        content = {name: archive[name] for name in archive.files}
    header = json.loads(str(content["header"]))
    for change, reason in (({"version": 9}, "version 9"), ({"points": 68}, "68 landmarks")):
        arrays: dict[str, Any] = content | {"header": np.array(json.dumps(header | change))}
        np.savez("other.npz", **arrays)
        assert reason in fye.refused("animate", "--driving", "other.npz", "--output", "a.mp4", *FAST)


def test_an_error_without_a_code_passes_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_target(tmp_path / "a") as temporary:
        temporary.write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert grey_frames(1)[0].shape == (64, 80, 3)

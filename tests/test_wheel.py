"""The wheel as people install it: what is in it, and what runs from it in an environment of its own, far from here.

Installing takes two minutes and the package index; without the index these tests skip. The temporary folders are
deleted at once: PyTorch and its company take 3 GB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fye_pipeline.animate.config import DEMO_PORTRAIT
from fye_pipeline.media.video import read_frames

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = "Scripts" if os.name == "nt" else "bin"

ACCELERATE = """
import importlib.util, sys
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
import ticache

assert importlib.util.find_spec("mediapipe") is None and importlib.util.find_spec("pytest") is None
assert "fye_pipeline" not in sys.modules
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
    attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
).eval()
scheduler = DDIMScheduler()
scheduler.set_timesteps(9)
latents, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
with ticache.apply(unet, N=3, order=2, scheduler=scheduler) as session, torch.no_grad():
    for timestep in scheduler.timesteps:
        noise = unet(latents, timestep, encoder_hidden_states=tokens).sample
        latents = scheduler.step(noise, timestep, latents).prev_sample
assert session.report().to_dict()["full_calls"] == 3, str(session.report())
print(ticache.__file__)
"""


def run(*words: object, cwd: Path) -> str:
    """Run a program that knows nothing of this checkout -> what it printed; its last lines where it fails."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    command = list(map(str, words))
    done = subprocess.run(command, cwd=cwd, env=own, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-20:])
    return done.stdout


@pytest.fixture(scope="session")
def index() -> None:
    """Skips where pip reaches no package index, whichever it was told of."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["typing_extensions", "--no-deps", "--no-cache-dir", "--retries", "0", "--timeout", "20", "-d", folder]
        tried = subprocess.run([sys.executable, "-m", "pip", "download", *small], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"pip reaches no package index: {(tried.stderr.strip() or 'no reason given').splitlines()[-1]}")


@pytest.fixture(scope="session")
def wheel(index: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as from a fresh clone: what earlier builds left in a checkout may not end up in it."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out", "runs")
    shutil.copytree(ROOT, folder / "source", ignore=leave)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, folder / "source", cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def environment(wheel: Path) -> Iterator[Path]:
    """A folder with a space and an umlaut, in it an empty environment with the wheel and no extras."""
    with tempfile.TemporaryDirectory(prefix="Ein Büro ", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        install(folder, wheel)
        yield folder


@pytest.fixture(scope="session")
def animator(environment: Path, wheel: Path) -> Path:
    """The same environment, later, with the animator's packages."""
    install(environment, f"ticache[portrait] @ {wheel.as_uri()}")
    return environment


def install(folder: Path, what: object) -> None:
    pip = [folder / "venv" / PROGRAMS / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    run(*pip, "--disable-pip-version-check", "-c", ROOT / "constraints.txt", what, cwd=folder)


def test_the_wheel_holds_the_packages_their_models_and_types_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = {"ticache": ROOT, "ticache_kernels": ROOT / "kernels", "fye_pipeline": ROOT}
    expected = {
        path.relative_to(root).as_posix()
        for package, root in packages.items()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"{package}/py.typed" for package in packages} <= names
    assert "fye_pipeline/assets/tiny/unet/diffusion_pytorch_model.safetensors" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_without_extras_it_imports_and_accelerates(environment: Path) -> None:
    said = run(
        environment / "venv" / PROGRAMS / "python", "-W", "error::UserWarning", "-c", ACCELERATE, cwd=environment
    )
    assert Path(said.strip()).is_relative_to(environment)


def test_without_extras_the_command_says_what_it_can(environment: Path) -> None:
    fye = environment / "venv" / PROGRAMS / "fye"
    assert "ticache " in run(fye, "--version", cwd=environment)
    told = run(fye, "doctor", cwd=environment)
    assert 'pip install "ticache[portrait]"' in told
    assert len(told.splitlines()) <= 10


def test_with_the_animators_packages_the_demo_is_animated_from_any_folder(animator: Path) -> None:
    fye = animator / "venv" / PROGRAMS / "fye"
    said = run(fye, "animate", "--frames", 3, "--steps", 2, "--output", "größe.mp4", cwd=animator)
    assert "größe.mp4: 3 frames" in said
    assert len(list(read_frames(animator / "größe.mp4"))) == 3


def test_with_the_animators_packages_a_face_is_found_in_a_picture(animator: Path, face_landmarker_path: Path) -> None:
    """MediaPipe's libraries, the largest of the packages, work from there too."""
    shutil.copyfile(DEMO_PORTRAIT, animator / "Frau Müller.png")
    finder = ["--face-landmarker", face_landmarker_path]
    fye = animator / "venv" / PROGRAMS / "fye"
    run(fye, "landmarks", "Frau Müller.png", "--output", "Müller.npz", *finder, cwd=animator)
    assert (animator / "Müller.npz").is_file()

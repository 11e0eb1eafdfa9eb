"""Shared fixtures: real pictures, videos and parity files are found by variables, else beside the checkout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

pytest_plugins = ["warm_processes"]

if TYPE_CHECKING:
    from fye_command import Fye

ROOT = Path(__file__).resolve().parent.parent


# The files that take longest, longest first: two workers that begin with them end together.
LONGEST_FIRST = (
    "test_cli.py",
    "test_training_loop.py",
    "test_multi_animate.py",
    "test_animate_long_video.py",
    "test_training_resume.py",
    "test_compile.py",
    "test_pipelines.py",
    "test_training_prepare.py",
    "test_step_path.py",
    "test_multi_wan_animate.py",
    "test_acceleration.py",
    "test_animate_machine_faults.py",
    "test_animate_faults.py",
    "test_parity.py",
    "test_find_unet.py",
    "test_sampling_progressive.py",
    "test_documents.py",
    "test_evaluation_exprbench.py",
    "test_imports.py",
    "test_tune.py",
    "test_multi_group_model.py",
    "test_pipeline.py",
    "test_kernels_compile.py",
    "test_training_light.py",
    "test_batch_workers.py",
    "test_landmarks_detector.py",
    "test_training_steps.py",
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start: a core each
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        # An older CPU is asked for. oneDNN must not see more than torch does: attention in bfloat16 would fail.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "SSE41")
    shared: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}
    hypothesis.settings.register_profile("cpu", max_examples=30, **shared)
    hypothesis.settings.register_profile("gpu", max_examples=100, **shared)
    compiled = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
    hypothesis.settings.load_profile("gpu" if compiled else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files: those that take longest first, the others as they were."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def _folder(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.exists():
        pytest.skip(f"{path} is absent; set {variable}")
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with test data that is not part of the project (`FYE_SHARED_DIR`)."""
    return _folder("FYE_SHARED_DIR", ROOT.parent / "shared")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Fixtures made by running the official model (`FYE_PARITY_DIR`)."""
    return _folder("FYE_PARITY_DIR", ROOT.parent / "shared" / "data" / "parity")


@pytest.fixture(scope="session")
def portraits_dir(shared_dir: Path) -> Path:
    return _folder("FYE_PORTRAITS_DIR", shared_dir / "data" / "portraits")


@pytest.fixture(scope="session")
def driving_dir(shared_dir: Path) -> Path:
    return _folder("FYE_DRIVING_DIR", shared_dir / "data" / "driving")


@pytest.fixture(scope="session")
def face_landmarker_path() -> Path:
    """MediaPipe's task file: the variable, the shared folder, or the user's cache."""
    shared = ROOT.parent / "shared" / "models" / "face_landmarker.task"
    if "FYE_FACE_LANDMARKER" not in os.environ and shared.exists():
        return shared
    from fye_pipeline.errors import UserError
    from fye_pipeline.landmarks.model_file import find_face_landmarker

    try:
        return find_face_landmarker()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model whose weights are random: it makes noise, and reads and writes as a trained one."""
    from training_parts import save_small

    return save_small(tmp_path_factory.mktemp("random_model"))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let the model's run of this number end as by Ctrl-C. -> a list that grows by one with every run."""

    def patch(number: int) -> list[int]:
        from fye_pipeline.animate.renderer import RenderContext

        original, runs = RenderContext.run, []

        def run(self: RenderContext, *arguments: Any, **options: Any) -> Any:
            runs.append(len(runs))
            if len(runs) == number:
                raise KeyboardInterrupt
            return original(self, *arguments, **options)

        monkeypatch.setattr(RenderContext, "run", run)
        return runs

    return patch


@pytest.fixture
def fye(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Fye:
    """The command line, run in this process."""
    from fye_command import Fye

    return Fye(monkeypatch, capfd)

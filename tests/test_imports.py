"""Who may import whom, and that our `kernels/` folder never stands in for Hugging Face's package of that name."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from diffusers.utils import import_utils

ROOT = Path(__file__).resolve().parent.parent
STANDARD = set(sys.stdlib_module_names)
# package -> what its modules may import at all, beyond the standard library and itself
ALLOWED = {
    "kernels/ticache_kernels": {"torch", "triton", "numpy"},
    "ticache": {"torch", "diffusers", "numpy", "ticache_kernels"},
}


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(top-level package, is it imported when the module is) of every import in a file."""
    nodes, found = nodes_of(path), []
    lazy = {id(node) for f in nodes if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        found += [(name.split(".")[0], id(node) not in lazy) for name in names]
    return found


# Top to bottom: each module, or room of modules, may import itself and what stands below it.
LAYERS = {
    "ticache": (
        *("__init__", "deepcache", "tuning", "api", "session", "report", "controller", "probe"),
        "cache_maker",
        *(
            "prediction_error",
            "records",
            "flops",
            "controlnet",
            "hooks",
            "processors",
            "streams",
            "inputs",
            "timesteps",
        ),
        *("forward_context", "cut_plan", "feature_cache", "config", "calibration", "best_steps", "provenance"),
        *("schedule", "forecast", "region", "ops", "reference"),
    ),
    "fye_pipeline": (
        *(
            "cli",
            "app",
            "__init__",
            "emoji",
            "evaluation",
            "training",
            "world",
            "batch",
            "multi_portrait",
            "animate",
            "pipeline",
            "presets",
            "sampling",
        ),
        *("models", "landmarks", "media", "storage", "progress", "errors"),
    ),
}


@cache
def inner_imports(package: str) -> dict[str, set[str]]:
    """Every module of a package -> the modules of it that it imports: in functions and for typing too."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources(package)
    }
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set()
        for node in nodes_of(path):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} imports relatively"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= (inner & modules.keys()) or {node.module or ""}
        found[module] = names & modules.keys()
    return found


def layer(module: str) -> int:
    """How far down its package's list a module stands."""
    package, *inside = module.split(".")
    return LAYERS[package].index([*inside, "__init__"][0])


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, or none."""
    clear: set[str] = set()

    def walk(trail: list[str]) -> list[str]:
        if trail[-1] in trail[:-1]:
            return trail[trail.index(trail[-1]) :]
        for name in sorted(arrows[trail[-1]] - clear):
            if ring := walk([*trail, name]):
                return ring
        clear.add(trail[-1])
        return []

    return next((ring for name in arrows if (ring := walk([name]))), [])


@cache
def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", ALLOWED)
def test_packages_import_only_what_they_may(folder: str) -> None:
    own = Path(folder).name
    for path in sources(folder):
        foreign = {name for name, _ in imports(path)} - STANDARD - {own, "__future__"}
        assert foreign <= ALLOWED[folder], f"{path.relative_to(ROOT)} imports {sorted(foreign - ALLOWED[folder])}"


def test_kernels_are_reached_from_ops_only_and_lazily() -> None:
    for path in sources("ticache"):
        for name, at_import in imports(path):
            if name == "ticache_kernels":
                assert path.name == "ops.py"
                assert not at_import


def test_diffusers_is_known_to_the_attaching_modules_only() -> None:
    for path in sources("ticache"):
        if path.name not in ("api.py", "cut_plan.py", "hooks.py"):
            assert "diffusers" not in {name for name, _ in imports(path)}, path.name


def test_the_portrait_model_reaches_the_cache_at_two_doors() -> None:
    for path in sources("fye_pipeline"):
        names = {name for name, _ in imports(path)}
        if "ticache" in names:
            door = path.relative_to(ROOT / "fye_pipeline").as_posix()
            assert door in ("pipeline.py", "emoji/pipeline.py") or door.startswith("cli/"), door


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    up = [f"{a} -> {b}" for a, names in inner_imports(package).items() for b in names if layer(b) < layer(a)]
    assert not up, f"these imports point up: {sorted(up)}"


@pytest.mark.parametrize("package", LAYERS)
def test_no_modules_import_each_other(package: str) -> None:
    assert not circle(inner_imports(package))


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_nobody_imports_benchmarks_or_tests() -> None:
    for folder in ("ticache", "fye_pipeline", "kernels"):
        for path in sources(folder):
            assert not {"benchmarks", "tests"} & {name for name, _ in imports(path)}, path.name


def test_no_package_is_named_kernels() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels").exists()
    for folder in ("ticache", "fye_pipeline", "kernels", "benchmarks", "tests"):
        for path in sources(folder):
            assert "kernels" not in {name for name, _ in imports(path)}, path


def test_diffusers_answer_for_kernels_is_the_same_inside_and_outside_the_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = [entry for entry in sys.path if not Path(entry or ".").resolve().is_relative_to(ROOT)]
    answers = []
    for path in ([str(ROOT), *elsewhere], elsewhere):
        monkeypatch.setattr(sys, "path", path)
        importlib.invalidate_caches()
        answers.append(import_utils._is_package_available("kernels"))
    assert answers[0] == answers[1]


def test_importing_ticache_needs_little(tmp_path: Path) -> None:
    """Only torch and numpy; diffusers comes with the pipeline."""
    question = (
        "import sys, ticache; "
        "print([n for n in ('diffusers', 'transformers', 'ticache_kernels', 'scipy', 'cv2') if n in sys.modules])"
    )
    command = [sys.executable, "-W", "ignore", "-c", question]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip() == "[]"

"""What the documents show works: Python blocks run, commands and their flags exist, links lead somewhere.

Where a block needs weights, files or a GPU, a small stand-in of the same kind is given under the name in the text;
a block that is not run says why in a comment before it: `<!-- not run: reason -->`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from fye_command import Fye
from PIL import Image
from ticache_models import ddim, denoise, make_inputs, make_unet

import ticache
from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.animate.config import DEMO_DRIVING
from fye_pipeline.cli.main import app
from fye_pipeline.landmarks.points import NAMES
from fye_pipeline.landmarks.sequence import LandmarkSequence

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "benchmarks", "kernels")
    for path in (ROOT / folder).glob("*.md")
    if path.name != "CHANGELOG.md"
)
LANGUAGES = ("python", "sh", "json", "toml", "diff", "text")
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
INLINE = re.compile(r"`(fye [^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
COMMANDS: Any = typer.main.get_command(app)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document. line: of its fence, from 1. why: what its mark says, where it is not run."""

    document: Path
    line: int
    language: str
    text: str
    why: str | None

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in blocks_of(document) if block.language in languages]


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text[: found.start("language")].count("\n") + 1
        yield Block(document, line, found["language"], found["text"], found["why"])


def test_every_block_is_seen_and_says_its_language() -> None:
    for document in DOCUMENTS:
        fences = len(re.findall(r"^```", document.read_text(encoding="utf-8"), re.M))
        assert fences == 2 * len(list(blocks_of(document))), document
    unnamed = [str(block) for block in (*blocks(""), *blocks("bash", "shell", "console", "py"))]
    assert unnamed == []
    assert {block.language for document in DOCUMENTS for block in blocks_of(document)} <= set(LANGUAGES)


# Python


def stable_diffusion(kind: str = "StableDiffusionPipeline") -> Any:
    """A pipeline of tiny random parts that takes a prompt; pictures of 16 pixels, four steps unless told otherwise."""
    import diffusers
    from every_pipeline_parts import Builder

    pipe: Any = Builder(getattr(diffusers, kind)).pipeline()
    return pipe


class Downloaded:
    """In place of a pipeline class: `from_pretrained` gives tiny random parts, which stay where they are."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def from_pretrained(self, *_names: Any, **_options: Any) -> Any:
        pipe = stable_diffusion(self._kind)
        pipe.to = lambda *_place: pipe
        return pipe


def sample(seed: int) -> torch.Tensor:
    """What a loop of one's own over the stand-in UNet gives."""
    inputs, conditions = make_inputs(seed=seed)
    return denoise(STAND_INS_OF_A_LOOP["unet"], STAND_INS_OF_A_LOOP["scheduler"], inputs, conditions, steps=8)


def loop() -> dict[str, Any]:
    """A bare UNet, its scheduler set for eight steps, and what its loop begins with."""
    scheduler = ddim()
    scheduler.set_timesteps(8)
    latents, conditions = make_inputs()
    tokens = conditions["encoder_hidden_states"]
    return {"unet": make_unet(), "scheduler": scheduler, "latents": latents, "tokens": tokens}


STAND_INS_OF_A_LOOP = loop()

# What the text speaks of and a reader has: made only where a document's code uses the name.
STAND_INS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch,
    "Path": lambda: Path,
    "ticache": lambda: ticache,
    "pipe": stable_diffusion,
    "svd_pipe": lambda: stable_diffusion("StableVideoDiffusionPipeline"),
    "mask": lambda: torch.ones(1, 16, 16),
    "prompt": lambda: "a lighthouse at dusk",
    "other_prompt": lambda: "a harbour in the morning",
    "prompts": lambda: ["a lighthouse", "a harbour"],
    "calls": lambda: [{"prompt": "a lighthouse", "num_inference_steps": 4, "generator": torch.Generator()}],
    "sample": lambda: sample,
    "adapter": lambda: None,
    "canny": lambda: None,
    "depth": lambda: None,
    **{name: (lambda name=name: STAND_INS_OF_A_LOOP[name]) for name in STAND_INS_OF_A_LOOP},
    **{
        name: (lambda name=name: Downloaded(name))
        for name in (
            "StableDiffusionXLPipeline",
            "StableDiffusionControlNetPipeline",
            "StableVideoDiffusionPipeline",
            "AnimateDiffPipeline",
        )
    },
}


def names_in(code: Any) -> set[str]:
    """Every name that code, and what is defined in it, reads."""
    inner = (names_in(each) for each in code.co_consts if hasattr(each, "co_names"))
    return set(code.co_names).union(*inner)


@pytest.mark.parametrize("document", sorted({block.document for block in blocks("python")}), ids=lambda path: path.name)
def test_python_blocks_run_in_their_order(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_runs: None
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("face.npy", np.zeros((478, 3), np.float32))
    namespace: dict[str, Any] = {}
    for block in blocks_of(document):
        if block.language != "python" or block.why is not None:
            continue
        code = compile("\n" * block.line + block.text, str(document), "exec")
        for name in sorted(names_in(code) & set(STAND_INS) - set(namespace)):
            namespace[name] = STAND_INS[name]()
        exec(code, namespace)  # our own documents


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps and three trials where the text leaves the numbers open; the published weights are random ones."""
    import diffusers
    from test_pipeline import build

    for kind in ("StableDiffusionPipeline", "AnimateDiffPipeline"):
        pipeline: Any = getattr(diffusers, kind)

        def brief(self: Any, *args: Any, _call: Any = pipeline.__call__, **options: Any) -> Any:
            small = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "np"}
            frames = {"num_frames": 2} if "num_frames" in options else {}
            return _call(self, *args, **small | options | frames)

        monkeypatch.setattr(pipeline, "__call__", brief)
    monkeypatch.setattr(ticache, "tune", partial(ticache.tune, trials=3))
    monkeypatch.setattr(FollowYourEmojiPipeline, "from_official", classmethod(lambda cls, folder: build()))


def test_a_mark_gives_its_reason_and_is_the_exception() -> None:
    marked = [block for block in blocks(*LANGUAGES) if block.why is not None]
    assert all(len(block.why or "") > 10 for block in marked)
    assert len(marked) <= 4


# Shell


def lines_of(block: Block) -> Iterator[str]:
    """Its command lines, continued ones joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if shlex.split(line, comments=True):
            yield line


def check_command(words: list[str]) -> None:
    """Fail where the command, or a flag or value of it, does not exist. Three dots stand for anything."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:2] == ["accelerate", "launch"] and "-m" in words:
        words = ["python", *words[words.index("-m") :]]
    if words[:3] == ["python", "-m", "fye_pipeline.cli"]:
        words = ["fye", *words[3:]]
    match words:
        case ["fye", *arguments]:
            parse(COMMANDS, [each for each in arguments if each != "..."])
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert set(targets) <= set(known), targets
        case ["python", "-m", module, *_] if module.startswith("benchmarks"):
            assert importlib.util.find_spec(module) is not None, module
        case ["python", "-m", "pytest", *rest]:
            assert all((ROOT / each.partition("::")[0]).exists() for each in rest if each.startswith("tests/")), rest
        case [("pip" | "git" | "cd" | "python" | "docker" | "nsys" | "ncu"), *_]:
            pass  # not ours
        case _:
            raise AssertionError(f"nobody knows the command {words}")


def parse(command: Any, arguments: list[str]) -> None:
    """Let the command line read its arguments down to the last subcommand, without running it."""
    while hasattr(command, "commands"):
        if arguments[:1] and arguments[0].startswith("-"):
            break
        if "manifest" in command.commands and not set(arguments[:1]) & set(command.commands):
            arguments = ["manifest", *arguments]  # `fye evaluate my.csv` is short for it
        assert set(arguments[:1]) & set(command.commands), f"fye has no command {arguments[:1]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if "--help" in arguments or "--version" in arguments:
        return
    command.make_context(command.name or "fye", list(arguments))


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_the_commands_of_shell_blocks_exist_with_their_flags(block: Block) -> None:
    for line in lines_of(block):
        check_command(shlex.split(line, comments=True))


def test_commands_within_the_text_exist_with_their_flags() -> None:
    seen = 0
    for document in DOCUMENTS:
        prose = FENCE.sub("", document.read_text(encoding="utf-8"))
        for command in INLINE.findall(prose):
            words = shlex.split(" ".join(command.split()))[1:]
            inner: Any = COMMANDS
            while hasattr(inner, "commands") and words and words[0] in inner.commands:
                inner, words = inner.commands[words[0]], words[1:]
            known = {name for parameter in inner.params for name in parameter.opts} | {"--help"}
            flags = {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
            assert flags <= known, f"{document.name}: {command}"
            assert inner is not COMMANDS or not words or words[0].startswith("--"), f"{document.name}: {command}"
            seen += 1
    assert seen > 20


def test_a_flag_that_is_gone_is_noticed() -> None:
    for wrong in (
        "fye animate --no-such-flag",
        "fye animat",
        "fye animate --long sideways",
        "make nothing",
        "frobnicate",
    ):
        with pytest.raises((type(typer.BadParameter("")).__mro__[1], AssertionError)):
            check_command(shlex.split(wrong))


def test_the_cheap_commands_run(fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The five points of docs/landmark-sequence.md, from the file and the command that stand there."""
    monkeypatch.chdir(tmp_path)
    document = ROOT / "docs" / "landmark-sequence.md"
    (points,) = [block.text for block in blocks_of(document) if block.language == "json" and "nose" in block.text]
    Path("points.json").write_text(points, encoding="utf-8")
    Image.new("RGB", (1080, 1439)).save("cat.jpg")
    commands = [line for block in blocks_of(document) if block.language == "sh" for line in lines_of(block)]
    (command,) = [shlex.split(line, comments=True)[1:] for line in commands if line.startswith("fye landmarks")]
    code, _, err = fye(*command)
    assert code == 0, err
    assert len(LandmarkSequence.load("cat.npz")) == 1
    for name in COMMANDS.commands:
        code, out, err = fye(name, "--help")
        assert code == 0, err
        assert "Usage" in out


# Data


@pytest.mark.parametrize("block", blocks("json", "toml"), ids=str)
def test_data_blocks_are_what_the_program_reads(block: Block) -> None:
    if block.language == "toml":
        from fye_pipeline.training.config import build_config

        build_config(tomllib.loads(block.text))
        return
    content = json.loads(block.text)
    if "schema" in content:
        with np.load(DEMO_DRIVING) as written:
            assert set(content) == set(json.loads(str(written["header"])))
    elif "nose" in content:
        assert tuple(content) == NAMES


# Links


def test_links_lead_to_files_and_headings_that_exist() -> None:
    for document in DOCUMENTS:
        text = FENCE.sub("", document.read_text(encoding="utf-8"))
        for target, heading in LINK.findall(text):
            path = (document.parent / target).resolve() if target else document
            assert path.exists(), f"{document.name}: {target}"
            if heading and path.suffix == ".md":
                assert heading in anchors(path), f"{document.name}: {target}#{heading}"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_start_page_names_every_document() -> None:
    start = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    targets = {target for target, _ in LINK.findall(start)}
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.name not in targets | {"README.md"}]
    assert missing == []

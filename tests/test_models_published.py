"""`fye models get follow-your-emoji` with the hub's own client, against a server in this process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fye_command import Fye
from hub_server import Hub, running
from huggingface_hub import constants
from official_files import SMALL, write_repositories
from test_models_official import Malicious

from fye_pipeline import FollowYourEmojiPipeline
from fye_pipeline.animate.config import AnimationSettings
from fye_pipeline.errors import UserError
from fye_pipeline.models import official
from fye_pipeline.models.published import published

NAME = "follow-your-emoji"
NETWORKS = "YueMafighting/FollowYourEmoji"
CHUNK = 1000  # bytes that the client writes at once
GET = ("models", "get", NAME)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_repositories(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def hub(repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server with all three repositories; this process's client asks it, with an empty cache."""
    with running(Hub()) as hub:
        for repository, folder in repositories.items():
            hub.add_folder(repository, folder)
        ask(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(official, "CONFIG", SMALL)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between attempts
        yield hub


def ask(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `HF_ENDPOINT` does, which the client reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def most_of(hub: Hub, name: str) -> int:
    """60 % of a file's bytes, in whole pieces as the client writes them."""
    return len(hub.files[NETWORKS, name]) * 6 // 10 // CHUNK * CHUNK


def nothing_made() -> bool:
    """Nothing lies under the model's name, and nothing half-made beside it."""
    folder = published(NAME).folder
    return not folder.parent.exists() or list(folder.parent.iterdir()) == []


def test_a_published_model_is_fetched_by_name_and_animates(fye: Fye, hub: Hub, tmp_path: Path) -> None:
    hub.licences[NETWORKS] = "a licence of theirs"
    output = tmp_path / "a.mp4"
    animate = ("animate", "--model", NAME, "--output", output, "--frames", 2, "--steps", 2, "--size", 64)
    assert f"run `fye models get {NAME}`" in fye.refused(*animate)

    code, out, err = fye(*GET, "--json")
    assert code == 0, err
    told = err.replace("\n", " ")
    assert "licence: a licence of theirs" in told
    assert "licence: mit" in told
    assert "free for" in told
    assert "to fetch" in told
    folder = Path(json.loads(out)["path"])
    assert folder == published(NAME).folder
    assert folder.is_dir()
    assert [entry.name for entry in folder.parent.iterdir()] == [NAME]
    pipe = FollowYourEmojiPipeline.from_pretrained(folder)
    given = torch.load(Path(hub_file(tmp_path, "unet.pth")), weights_only=True)["conv_in.weight"]
    assert torch.allclose(pipe.unet.state_dict()["conv_in.weight"], given, atol=1e-3)  # kept in float16

    code, _, err = fye(*animate)
    assert code == 0, err
    assert output.is_file()
    code, out, err = fye("models", "check", folder)
    assert code == 0, err
    assert out.count(".safetensors") == 5
    rows = {row["name"]: row for row in json.loads(fye("models", "list", "--json")[1])["models"]}
    assert rows[NAME]["state"] == "ok"

    hub.asked.clear()
    code, out, _ = fye(*GET)
    assert code == 0
    assert "is there" in out
    assert not hub.asked


def hub_file(tmp_path: Path, name: str) -> Path:
    (path,) = (tmp_path / "hub").rglob(f"snapshots/*/{name}")
    return path


def test_settings_name_the_published_model_on_every_machine(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"run `fye models get {NAME}`"):
        AnimationSettings.from_dict({"model": NAME})
    folder = published(NAME).folder
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    settings = AnimationSettings.from_dict({"model": NAME})
    assert settings.model == folder
    assert settings.to_dict()["model"] == NAME
    assert AnimationSettings.from_dict(settings.to_dict()) == settings


def test_a_missing_published_model_is_no_fault_of_the_models_there_are(
    fye: Fye, hub: Hub, face_landmarker_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FYE_FACE_LANDMARKER", str(face_landmarker_path))
    code, out, err = fye("models", "check")
    assert code == 0, err
    assert f"not fetched (`fye models get {NAME}`, about 10 GB)" in out
    assert "0.0 MB" not in out
    assert NAME in fye.refused("models", "get", "no-such-model")


def test_a_connection_that_breaks_is_taken_up_within_the_call(fye: Fye, hub: Hub) -> None:
    there = most_of(hub, "unet.pth")
    hub.cut["unet.pth"], hub.breaks = there, 1
    assert fye(*GET)[0] == 0
    assert hub.ranges("unet.pth") == [None, f"bytes={there}-"]


def test_a_download_cut_at_60_percent_goes_on_in_the_next_call(fye: Fye, hub: Hub, tmp_path: Path) -> None:
    there = most_of(hub, "unet.pth")
    hub.cut["unet.pth"], hub.breaks = there, 100
    sentence = fye.refused(*GET)
    assert "unet.pth of YueMafighting/FollowYourEmoji could not be fetched" in sentence
    assert "the same command goes on from there" in sentence
    assert nothing_made()
    (partial,) = (tmp_path / "hub").rglob("*.partial")
    assert partial.read_bytes() == hub.files[NETWORKS, "unet.pth"][:there]
    hub.breaks = 0
    hub.asked.clear()
    code, _, err = fye(*GET)
    assert code == 0, err
    assert hub.ranges("unet.pth") == [f"bytes={there}-"]
    assert hub.ranges("referencenet.pth") == []  # complete since the first call
    assert not list((tmp_path / "hub").rglob("*.partial*"))


def test_wrong_bytes_are_named_deleted_and_fetched_anew(fye: Fye, hub: Hub, tmp_path: Path) -> None:
    right = hub.etag(NETWORKS, "referencenet.pth")
    content = hub.files[NETWORKS, "referencenet.pth"]
    hub.stated[NETWORKS, "referencenet.pth"] = right
    hub.files[NETWORKS, "referencenet.pth"] = b"\0" * len(content)
    sentence = fye.refused(*GET)
    assert "referencenet.pth" in sentence
    assert f"(SHA-256 {right}, got " in sentence
    assert nothing_made()
    hub.files[NETWORKS, "referencenet.pth"] = content
    code, _, err = fye(*GET)
    assert code == 0, err


def test_no_network_is_one_sentence(fye: Fye, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    ask(nobody, monkeypatch)
    assert f"{nobody} is out of reach" in fye.refused(*GET)
    assert nothing_made()


def test_offline_everything_comes_from_the_cache(fye: Fye, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in fye.refused(*GET)
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fye(*GET)[0] == 0
    shutil.rmtree(published(NAME).folder)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = fye(*GET)
    assert code == 0, err
    assert not hub.asked
    assert published(NAME).is_there


def test_where_the_hub_is_down_the_cache_is_enough(fye: Fye, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fye(*GET)[0] == 0
    shutil.rmtree(published(NAME).folder)
    ask("http://127.0.0.1:9", monkeypatch)
    code, _, err = fye(*GET)
    assert code == 0, err
    assert "is taken from the cache" in err


def test_a_disk_too_small_is_told_before_anything_is_fetched(
    fye: Fye, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    sentence = fye.refused(*GET)
    assert "free space" in sentence
    assert "HF_HUB_CACHE" in sentence
    assert not [path for method, path, _, _ in hub.asked if method == "GET" and "/resolve/" in path]
    assert nothing_made()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize(("most", "where"), [(30_000, "hub"), (120_000, "models")])
def test_a_disk_that_fills_on_the_way_is_one_sentence(hub: Hub, tmp_path: Path, most: int, where: str) -> None:
    """The limit stands for the disk: the first is below what is fetched, the second below what is written then."""
    program = f"""
import resource
from official_files import SMALL
from fye_pipeline.animate.published import fetch_model, plan_fetch
from fye_pipeline.errors import UserError
from fye_pipeline.models import official
from fye_pipeline.models.published import published
official.CONFIG = SMALL
plan = plan_fetch(published("{NAME}"), "float32")
if "{where}" == "models":
    from fye_pipeline.storage.hub import fetch_all
    fetch_all(plan.files)
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))
try:
    fetch_model(plan)
except UserError as error:
    print(error)
"""
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | own | {"PYTHONPATH": path},
    )
    assert "disk" in done.stdout, done.stderr
    assert "full" in done.stdout
    assert str(tmp_path / ("hub" if where == "hub" else "cache")) in done.stdout
    assert nothing_made()


def test_a_pickle_with_code_is_refused_and_not_run(
    fye: Fye, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": Malicious()}, tmp_path / "unet.pth")
    hub.files[NETWORKS, "unet.pth"] = (tmp_path / "unet.pth").read_bytes()
    code, out, err = fye(*GET)
    assert code == 2
    assert "cannot be read as weights" in err
    assert "code ran" not in out + err
    assert nothing_made()


def test_a_gated_repository_and_an_absent_one_say_what_to_do(fye: Fye, hub: Hub) -> None:
    hub.gated.add(NETWORKS)
    assert "HF_TOKEN" in fye.refused(*GET)
    hub.gated.clear()
    for repository, name in [key for key in hub.files if key[0] == NETWORKS]:
        del hub.files[repository, name]
    assert "knows no such repository" in fye.refused(*GET)
    assert nothing_made()


def test_the_token_goes_to_the_hub_and_to_nobody_else(fye: Fye, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    with running(Hub()) as elsewhere:
        elsewhere.files = hub.files
        hub.elsewhere = elsewhere.url
        code, _, err = fye(*GET)
        assert code == 0, err
        assert {token for *_, token in hub.asked} == {"Bearer hf_of_a_test"}
        assert elsewhere.ranges("unet.pth") == [None]
        assert {token for *_, token in elsewhere.asked} == {None}


def test_somebody_at_a_terminal_is_asked(fye: Fye, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: next(answers))
    assert fye(*GET)[0] == 1
    assert nothing_made()
    assert not [path for _, path, _, _ in hub.asked if "/resolve/" in path]
    assert fye(*GET, "--yes")[0] == 0


@pytest.mark.parametrize(
    "command", [("evaluate", "rendered"), ("tune",), ("train", "--config", "tiny", "--init", NAME, "--output", "run")]
)
def test_every_command_takes_the_name(fye: Fye, hub: Hub, command: tuple[str, ...], tmp_path: Path) -> None:
    arguments = command if command[0] == "train" else (*command, "--model", NAME)
    assert f"run `fye models get {NAME}`" in fye.refused(
        *(str(tmp_path / "run") if a == "run" else a for a in arguments)
    )

"""The page in a real browser, as a person uses it: Chromium, headless, against `fye app` in a process of its own.

The model makes noise, quickly; what is looked at is the way through the page. `FYE_SCREENSHOTS=folder` keeps pictures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import make_video
from PIL import Image

from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.world import World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]

PATIENCE = 240_000  # milliseconds, as the browser counts
START = 600  # seconds, until the page is there
TABS = {"portrait": "One portrait", "people": "Several people", "emoji": "Still pictures"}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SMALL_PHONE = 320  # pixels across


@pytest.fixture(scope="module")
def chromium() -> str:
    found = os.environ.get("FYE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    for name, extra in (("gradio", "app"), ("playwright", "browser")):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'{name} is absent: pip install -c constraints-app.txt -e ".[app,browser]" ({extra})')
    if found is None:
        pytest.skip("Chromium is absent: apt-get install chromium, or set FYE_CHROMIUM")
    return found


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, a driver and a webcam's film of rendered heads; a picture of a wall; a file that is no picture."""
    folder = tmp_path_factory.mktemp("faces")
    world = World(CanonicalFace.load(), size=256)
    Image.fromarray(world.portrait("held", 2).frames[0]).save(folder / "my photo.png")
    clip = world.clip("held", 5, frames=8, strength=0.3).frames
    make_video(folder / "driver.mp4", list(clip), fps=Fraction(8))
    _write_y4m(folder / "webcam.y4m", clip[0])
    Image.fromarray(np.full((256, 256, 3), 120, np.uint8)).save(folder / "wall.png")
    (folder / "broken.png").write_text("this is no picture")
    return folder


def _write_y4m(path: Path, frame: np.ndarray) -> None:
    """A film of one picture, as Chromium's stand-in for a webcam reads it."""
    planes = np.asarray(Image.fromarray(frame).resize((640, 480)).convert("YCbCr"))
    luma, blue, red = planes[..., 0], planes[::2, ::2, 1], planes[::2, ::2, 2]
    with open(path, "wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F10:1 Ip A1:1 C420mpeg2\n")
        for _ in range(10):
            file.write(b"FRAME\n" + luma.tobytes() + blue.tobytes() + red.tobytes())


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=30).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def address(
    chromium: str, random_model: Path, face_landmarker_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The page's address, served by the command as a person starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = tmp_path_factory.mktemp("cache")
    log = cache / "log.txt"
    own = {"XDG_CACHE_HOME": str(cache), "FYE_FACE_LANDMARKER": str(face_landmarker_path), "PYTHONUNBUFFERED": "1"}
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "fye_pipeline.cli", "app", "--port", str(port), "--model", str(random_model)]
    with open(log, "w", encoding="utf-8") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | own | {"PYTHONPATH": paths}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        stop = time.monotonic() + START
        while not _answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < stop, f"the page did not start in time: {log.read_text()}"
            time.sleep(0.5)
        yield url
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def browser(chromium: str, faces: Path) -> Iterator[Any]:
    from playwright.sync_api import Error, sync_playwright  # pyright: ignore[reportMissingImports]

    webcam = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    film = f"--use-file-for-fake-video-capture={faces / 'webcam.y4m'}"
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *webcam, film])
        except Error as error:  # such as Ubuntu's, which stands for a snap
            pytest.skip(f"{chromium} does not start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


class Person:
    """Somebody at the page, in a tab of it, and what their browser asked for and complained of."""

    def __init__(self, browser: Any, address: str, size: dict[str, int], tab: str = "portrait") -> None:
        self.tab = tab
        self.context = browser.new_context(viewport=size, permissions=["camera", "microphone"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self._note(request.url, address))
        self.page.on("console", lambda text: self.complaints.append(text.text) if text.type == "error" else None)
        self.page.goto(address)
        self.page.wait_for_selector("#portrait-start")
        self.page.wait_for_selector("#portrait-picture img")
        if tab != "portrait":
            self.page.get_by_role("tab", name=TABS[tab]).click()
            self.page.wait_for_selector(self.at("start"))

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)

    def at(self, part: str) -> str:
        """The selector of a part of the tab."""
        return f"#{self.tab}-{part}"

    def agree(self) -> None:
        self.page.check("#accept input")

    def empty(self, part: str) -> None:
        """Take out what lies there."""
        remove = self.page.locator(f"{self.at(part)} button:is([aria-label^='Remove'], [aria-label='Clear'])")
        while count := remove.count():
            self.repeat(remove.first.click, lambda count=count: remove.count() < count)

    def upload(self, part: str, *paths: Path) -> None:
        """Put files where others may lie already."""
        self.empty(part)
        self.page.set_input_files(f"{self.at(part)} input[type=file]", [str(path) for path in paths])
        for path in paths:
            self.says("command", path.name)

    def film(self, part: str) -> None:
        """Turn the webcam on."""
        place = self.at(part)
        self.page.click(f"{place} button[aria-label='Capture from camera']")
        self.page.click(f"{place} button:has-text('Webcam')")
        self.page.wait_for_function("place => document.querySelector(place + ' video')?.videoWidth > 0", arg=place)

    def quick(self, frames: int | None = 2, steps: int = 2) -> None:
        if frames is not None:
            self.page.fill(f"{self.at('frames')} input", str(frames))
        number = self.page.locator(f"{self.at('steps')} input[type=number]")
        self.repeat(
            lambda: number.is_visible() or self.page.locator(self.at("more")).get_by_text("More settings").click(),
            number.is_visible,
        )
        number.fill(str(steps))
        number.press("Tab")
        self.says("command", f"--steps {steps}")

    def start(self) -> None:
        self.page.click(self.at("start"))

    def says(self, part: str, text: str) -> None:
        self.page.wait_for_function(
            "([place, text]) => document.querySelector(place)?.innerText.includes(text)", arg=[self.at(part), text]
        )

    def repeat(self, action: Callable[[], Any], reached: Callable[[], bool]) -> None:
        """Do it until it has worked: a slow page may have overlooked it, or be busy with what was before."""
        for _ in range(PATIENCE // 5000):
            action()
            for _ in range(50):
                if reached():
                    return
                self.page.wait_for_timeout(100)
        raise AssertionError("it never worked")

    def plays(self, part: str) -> None:
        """A video is there and its time advances."""
        place = self.at(part)
        self.page.wait_for_selector(f"{place} video")
        self.page.wait_for_function(
            """place => {
                const video = document.querySelector(place + ' video');
                if (video.paused) { video.muted = true; video.play(); }
                return video.readyState >= 2 && video.currentTime > 0 && video.videoWidth > 0;
            }""",
            arg=place,
        )

    def picture(self, name: str) -> None:
        """A screenshot, where somebody wants one."""
        folder = os.environ.get("FYE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    def leave(self) -> None:
        self.context.close()


@pytest.fixture
def person(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Person]:
    """At a wide screen, in the tab for one portrait or in that of the mark `parametrize`."""
    person = Person(browser, address, DESKTOP, getattr(request, "param", "portrait"))
    yield person
    person.leave()
    assert not person.foreign, "the page asks for nothing from elsewhere"
    assert not person.complaints


def test_a_portrait_is_uploaded_animated_and_played(person: Person, faces: Path) -> None:
    person.agree()
    person.upload("picture", faces / "my photo.png")
    person.quick(frames=3)
    person.page.check("#portrait-compare input")
    person.start()
    person.says("status", "3 frames of 256 x 256 at 24 fps")
    person.plays("video")
    person.plays("compared")
    person.says("command", "--reference 'my photo.png'")
    person.says("command", "--frames 3")
    person.page.get_by_text("Report of the cache").click()
    person.says("report", "ticache N=3")
    person.picture("desktop")
    assert person.page.is_enabled("#portrait-start")
    assert person.page.is_disabled("#portrait-cancel")


def test_a_driver_is_uploaded(person: Person, faces: Path) -> None:
    person.agree()
    person.page.get_by_label("A video of mine").check()
    person.start()
    person.says("status", "Choose a driving video first")
    person.upload("driver", faces / "driver.mp4")
    person.quick(frames=4)
    person.start()
    person.says("status", "4 frames of 512 x 512 at 8 fps")
    person.plays("video")
    person.says("command", "--driving driver.mp4")


def test_a_webcam_gives_the_portrait(person: Person) -> None:
    person.agree()
    person.page.click("#portrait-picture button[aria-label^='Remove']")
    person.film("picture")
    person.page.click("#portrait-picture button[aria-label='capture photo']")
    person.page.wait_for_selector("#portrait-picture img")
    person.quick()
    person.start()
    person.says("status", "2 frames of 640 x 480")


def test_a_webcam_gives_the_driver(person: Person) -> None:
    person.agree()
    person.page.get_by_label("A video of mine").check()
    video = person.page.locator("#portrait-driver video")
    state = "video => video.srcObject ? '' : video.readyState >= 1 ? 'readable' : video.error ? 'empty' : ''"
    for seconds in (2, 5, 10, 20):  # a slow machine's browser may have nothing to send after a short one
        person.film("driver")
        person.page.click("#portrait-driver .capture-button")
        person.page.wait_for_timeout(seconds * 1000)
        person.page.click("#portrait-driver .capture-button")
        person.says("command", "--driving")
        person.repeat(lambda: None, lambda: bool(video.evaluate(state)))
        if video.evaluate(state) == "readable":
            break
        person.empty("driver")
        person.complaints.clear()  # of a recording that was empty
    else:
        pytest.skip("the browser recorded nothing, in 20 seconds: this machine is too busy for it")
    person.complaints.clear()
    person.quick()
    person.start()
    person.says("status", "2 frames of 512 x 512")
    person.plays("video")


def test_another_example_is_chosen(person: Person) -> None:
    person.agree()
    person.page.locator("button.gallery-item").nth(2).click()
    person.says("command", "--reference head-5.png")
    person.quick()
    person.start()
    person.says("status", "2 frames of 512 x 512")


def test_a_job_is_cancelled(person: Person) -> None:
    person.agree()
    person.quick(frames=0, steps=60)
    person.start()
    person.says("status", "Making the frames")
    person.picture("working")
    person.page.click("#portrait-cancel")
    person.says("status", "Cancelled.")
    person.page.wait_for_function("!document.querySelector('#portrait-start').disabled")
    assert person.page.locator("#portrait-video video").count() == 0


def test_five_points_are_clicked_where_no_face_is_found(person: Person, faces: Path) -> None:
    person.agree()
    person.upload("picture", faces / "wall.png")
    page, told = person.page, person.page.locator("#points-told")

    def told_of(text: str) -> bool:
        return text in told.inner_text() if told.is_visible() else False

    # A new portrait folds the section, which may come after somebody has opened it.
    fold = page.locator("#points button").first
    person.repeat(lambda: told.is_visible() or fold.click(), lambda: told_of("1 of 5"))
    for number, (x, y) in enumerate(((0.4, 0.4), (0.6, 0.4), (0.5, 0.5), (0.43, 0.6), (0.57, 0.6)), 1):
        page.wait_for_function(  # the picture with the last dot is there
            """number => {
                const picture = document.querySelector('#points-picture img');
                const shown = picture?.complete && picture.naturalWidth > 0 && picture.src !== window.clicked;
                const told = document.querySelector('#points-told').innerText.includes(`${number} of 5`);
                return shown && told && ((window.clicked = picture.src), true);
            }""",
            arg=number,
        )
        picture = page.locator("#points-picture img")
        box = picture.bounding_box()
        assert box is not None
        picture.click(position={"x": x * box["width"], "y": y * box["height"]})
    person.repeat(lambda: None, lambda: told_of("All five are placed"))
    person.says("command", "--points points.json")
    person.picture("points")
    person.quick()
    person.start()
    person.says("status", "2 frames of 256 x 256")


@pytest.mark.parametrize("person", ["people"], indirect=True)
def test_several_people_are_moved_each_by_their_own_driver(person: Person, faces: Path) -> None:
    person.agree()
    person.quick()
    person.start()
    person.says("status", "2 frames of 1024 x 512 at 12 fps")
    person.says("status", "2 of 2 faces are moved")
    person.plays("video")
    person.says("command", "--reference two-people.png --driving left.npz --driving right.npz")
    person.picture("people")
    person.page.fill("#people-assign input", "1,-")
    person.says("command", "--assign 1,-")
    person.page.locator("#people-report").get_by_text("Who was moved").click()
    person.start()
    person.says("report", "face 1: driver 1")
    person.says("report", "face 2: left as it is")
    person.upload("drivers", faces / "driver.mp4")
    person.page.fill("#people-assign input", "")
    person.start()
    person.says("status", "A single driver needs to be told who is moved")
    person.upload("picture", faces / "my photo.png")
    person.page.fill("#people-assign input", "0,1")
    person.says("command", "--assign 0,1")
    person.start()
    person.says("status", "my photo.png")  # a single face
    person.empty("picture")
    person.start()
    person.says("status", "Choose a picture of several people first.")


@pytest.mark.parametrize("person", ["emoji"], indirect=True)
def test_a_person_is_drawn_with_other_expressions(person: Person, faces: Path) -> None:
    person.agree()
    person.quick(frames=None)
    person.start()
    person.says("status", "3 pictures, 384 x 128 pixels")
    person.page.wait_for_function("document.querySelector('#emoji-result img')?.naturalWidth === 384")
    person.picture("emoji")
    person.page.fill("#emoji-prompt textarea", "an ink painting of a man")
    person.upload("person", faces / "my photo.png")
    person.says("command", "fye emoji generate --prompt 'an ink painting of a man' --identity 'my photo.png'")
    person.page.locator("#emoji-number input[type=number]").fill("2")
    person.page.locator("#emoji-number input[type=number]").press("Tab")
    person.says("command", "--number 2")
    person.start()
    person.says("status", "6 pictures, 256 x 384 pixels")
    person.upload("person", faces / "wall.png")
    person.start()
    person.says("status", "wall.png, the identity picture, shows no face")
    person.page.fill("#emoji-prompt textarea", " ")
    person.start()
    person.says("status", "Write what to draw first")
    person.quick(frames=None, steps=60)
    person.page.fill("#emoji-prompt textarea", "a photo")
    person.upload("person", faces / "my photo.png")
    person.start()
    person.says("status", "Drawing")
    person.page.click("#emoji-cancel")
    person.says("status", "Cancelled.")


@pytest.mark.parametrize(("name", "sentence"), [("wall.png", "No face was found in"), ("broken.png", "broken.png")])
def test_a_picture_that_will_not_do_is_told_in_one_sentence(
    person: Person, faces: Path, name: str, sentence: str
) -> None:
    person.agree()
    person.upload("picture", faces / name)
    person.quick()
    person.start()
    person.says("status", sentence)
    text = person.page.inner_text("#portrait-status")
    assert "/" not in text, "no path of the server's"
    assert "\n" not in text.strip()
    person.complaints.clear()  # the browser cannot show the broken picture either


def test_nothing_is_made_before_the_terms_are_accepted(person: Person) -> None:
    person.quick()
    person.start()
    person.says("status", "tick the box")
    assert person.page.locator("#portrait-video video").count() == 0


def test_people_wait_for_each_other_and_those_who_leave_make_room(browser: Any, address: str) -> None:
    first, second = Person(browser, address, DESKTOP), Person(browser, address, DESKTOP)
    for person in (first, second):
        person.agree()
    second.quick()
    first.quick(frames=0, steps=60)
    first.start()
    first.says("status", "Making the frames")
    second.start()
    second.says("status", "Waiting: 1 job before yours")
    first.leave()
    second.says("status", "2 frames of")
    second.leave()


@pytest.mark.parametrize("tab", list(TABS))
def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, address: str, tab: str) -> None:
    person = Person(browser, address, PHONE, tab)
    assert [each.inner_text() for each in person.page.get_by_role("tab").all() if each.is_visible()] == [*TABS.values()]
    person.agree()
    person.quick(frames=None if tab == "emoji" else 2)
    person.start()
    person.says("status", "3 pictures" if tab == "emoji" else "2 frames of")
    if tab != "emoji":
        person.plays("video")
    person.picture(f"phone-{tab}")
    for width in (PHONE["width"], SMALL_PHONE):
        person.page.set_viewport_size(PHONE | {"width": width})
        assert person.page.evaluate("document.documentElement.scrollWidth") == width
    person.leave()
    assert not person.foreign


def test_the_server_tells_browsers_to_load_nothing_from_elsewhere(address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_one_event_keeps_each_command_true(address: str) -> None:
    """Events of several would answer at once, in any order: an older command could stay for good."""
    with urllib.request.urlopen(f"{address}/config", timeout=30) as answer:
        page = json.load(answer)
    of_elements = {each["id"]: each["props"].get("elem_id") for each in page["components"]}
    for tab in TABS:
        shows = [each for each in page["dependencies"] if f"{tab}-command" in map(of_elements.get, each["outputs"])]
        assert [each["trigger_mode"] for each in shows] == ["always_last"]
        assert len(shows[0]["targets"]) > 5

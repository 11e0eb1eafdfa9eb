"""The server behind the page: opens sessions and folders, serves until Ctrl-C, and cleans up."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fye_pipeline.animate.config import DEMO_PORTRAIT
from fye_pipeline.animate.session import AnimationSession
from fye_pipeline.app.jobs import JobFolder, JobQueue
from fye_pipeline.app.page import POLICY, STYLE, build_page, load_gradio
from fye_pipeline.app.parts import Examples, PageOptions
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.model_file import cache_folder
from fye_pipeline.models.published import model_folder
from fye_pipeline.progress import logger
from fye_pipeline.world import World

# Of the rendered world's "held" split: portraits, heads and takes with an expression, and the head that drives.
EXAMPLES = (2, 5, 8)
EXPRESSIONS = ((6, 1), (7, 5), (9, 3))
DRIVER = 11
_EXAMPLE_SIZE, _MOTION_SIZE, _MOTION_FRAMES = 512, 128, 24


def serve(
    host: str,
    port: int,
    *,
    share: bool = False,
    model: str | None = None,
    emoji_model: str | None = None,
    devices: Sequence[str] = ("auto",),
    face_landmarker: Path | None = None,
    most_megabytes: int = 500,
    accepted: bool = False,
) -> None:
    """Show the page until Ctrl-C.

    host: where it listens; 127.0.0.1 is this machine alone. emoji_model: the folder that makes still pictures.
    devices: a job at a time on each. most_megabytes: of an upload. accepted: the terms count as read.

    Raises:
        UserError: Gradio is absent, the port is taken, the model or a device is not there, no public link comes.
    """
    if model is not None and not model_folder(Path(model)).is_dir():
        raise UserError(f"The model folder {model} does not exist; leave out --model for the model that ships.")
    gradio = load_gradio()
    with ExitStack() as stack:
        folder = stack.enter_context(JobFolder(cache_folder() / "app"))
        os.environ["GRADIO_TEMP_DIR"] = str(folder.uploads)
        sessions = [stack.enter_context(AnimationSession(face_landmarker, device=device)) for device in devices]
        queue = JobQueue(sessions, folder)
        stack.callback(queue.close)
        examples = render_examples(folder.examples)
        gradio.set_static_paths([str(folder.examples)])
        page = build_page(gradio, PageOptions(queue, examples, model, emoji_model, accepted))
        _, local, public = _launch(gradio, page, host, port, share, most_megabytes, folder.results)
        stack.callback(page.close)
        if share and not public:
            raise UserError(
                "No public link: Gradio's server for --share is out of reach; leave --share out, or --host."
            )
        logger.info(f"The page is at {public or local} (Ctrl-C ends it)")
        while True:
            time.sleep(1)


def render_examples(folder: Path) -> Examples:
    """Pictures and movements of nobody in a folder: the portrait that ships, and what the rendered world gives."""
    canonical = CanonicalFace.load()
    world, small = World(canonical, size=_EXAMPLE_SIZE), World(canonical, size=_MOTION_SIZE)
    portraits = [folder / "portrait.png", *(folder / f"head-{index}.png" for index in EXAMPLES)]
    shutil.copyfile(DEMO_PORTRAIT, portraits[0])
    heads = [world.portrait("held", index).frames[0] for index in EXAMPLES]
    for path, head in zip(portraits[1:], heads, strict=True):
        Image.fromarray(head).save(path)
    expressions = [folder / f"expression-{number}.png" for number in range(1, len(EXPRESSIONS) + 1)]
    for path, (index, take) in zip(expressions, EXPRESSIONS, strict=True):
        clip = world.clip("held", index, take=take, frames=1, strength=1.2)
        Image.fromarray(clip.frames[0]).save(path)
    group = folder / "two-people.png"
    Image.fromarray(np.concatenate(heads[:2], axis=1)).save(group)
    drivers = [folder / "left.npz", folder / "right.npz"]
    for take, path in enumerate(drivers):
        small.clip("held", DRIVER, take=take, frames=_MOTION_FRAMES).sequence.save(path)
    return Examples(portraits, expressions, group, drivers)


def _launch(
    gradio: Any, page: Any, host: str, port: int, share: bool, most_megabytes: int, results: Path
) -> tuple[Any, str, str]:
    """Start serving. -> app, local and public address. Raises `UserError` where the port is taken."""
    middleware = import_module("starlette.middleware").Middleware
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(results)],
            max_file_size=f"{most_megabytes}mb",
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            theme=gradio.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono),
            css=STYLE,
            app_kwargs={"middleware": [middleware(_OnlyFromHere)]},
        )
    except OSError as error:
        raise UserError(f"Nothing can be served at {host}:{port}: is the port taken? Name another --port.") from error


class _OnlyFromHere:
    """Tells browsers, with every answer, to load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive, tell)

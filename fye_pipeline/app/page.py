"""The page: a header with the terms, and a tab for each thing that can be done. Nothing here leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fye_pipeline.app import words
from fye_pipeline.app.jobs import KEPT_SECONDS
from fye_pipeline.app.parts import OWN, PageOptions
from fye_pipeline.app.people_tab import people_tab
from fye_pipeline.app.pictures_tab import pictures_tab
from fye_pipeline.app.portrait_tab import portrait_tab
from fye_pipeline.errors import UserError

_SWEEP = 600  # seconds between two looks of Gradio's own at its uploads
# What a page may load: what this server sends, and what the browser holds itself.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:"
)
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


Tab = Callable[[Any, PageOptions, Any], None]
TABS: dict[str, Tab] = {"One portrait": portrait_tab, "Several people": people_tab, "Still pictures": pictures_tab}


def load_gradio() -> Any:
    """Gradio, told to measure nothing and to ask nobody. Raises `UserError` with the install line if it is absent."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return import_module("gradio")
    except ImportError as error:
        raise UserError(
            'The page needs Gradio, which is not installed: pip install "ticache[app]" '
            f"({type(error).__name__}: {error})."
        ) from error


def build_page(gradio: Any, options: PageOptions) -> Any:
    """The whole page: a header with the terms, then a tab for each thing that can be done."""
    with gradio.Blocks(
        title=words.TITLE, analytics_enabled=False, delete_cache=(_SWEEP, int(KEPT_SECONDS)), fill_width=False
    ) as page:
        gradio.Markdown(f"# {words.TITLE}\n{words.INTRODUCTION}", elem_id="intro")
        with gradio.Group(elem_id="terms"):
            with gradio.Accordion("Terms of use", open=not options.accepted) as terms:
                gradio.Markdown(words.TERMS, elem_id="terms-text")
            accepted = gradio.Checkbox(
                options.accepted, label=words.ACCEPT, container=False, elem_id="accept", interactive=True
            )
        accepted.change(lambda yes: gradio.Accordion(open=not yes), accepted, terms, queue=False, **OWN)
        with gradio.Tabs(overflow_behavior="wrap"):  # a phone shows every tab, in as many rows as it takes
            for name, tab in TABS.items():
                with gradio.Tab(name):
                    tab(gradio, options, accepted)
        gradio.Markdown(words.KEPT, elem_id="kept")
    page.queue(default_concurrency_limit=None)
    return page

"""The page: Gradio components around a queue of jobs, and the server that shows it. Nothing here leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fye_pipeline.app import points, words
from fye_pipeline.app.controls import CONTROLS, Control, Files, command_line, settings_of
from fye_pipeline.app.jobs import KEPT_SECONDS, Cancelled, Finished, JobQueue
from fye_pipeline.errors import UserError

DEMO, OWN = "The movement that ships", "A video of mine"
_OWN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # of every event: the page's alone
_SWEEP = 600  # seconds between two looks of Gradio's own at its uploads
# What a page may load: what this server sends, and what the browser holds itself.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:"
)
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class PageOptions:
    """What the command line says of the page.

    model: as it is named on the command line; None for the one that ships. examples: portraits to choose from.
    accepted: the terms count as read.
    """

    queue: JobQueue
    examples: Sequence[Path]
    model: str | None = None
    accepted: bool = False


Tab = Callable[[Any, PageOptions, Any], None]


def load_gradio() -> Any:
    """Gradio, told to measure nothing and to ask nobody. Raises `UserError` with the install line if it is absent."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return import_module("gradio")
    except ImportError as error:
        raise UserError(
            'The page needs Gradio, which is not installed: pip install "ticache[portrait,app]" '
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
        accepted.change(lambda yes: gradio.Accordion(open=not yes), accepted, terms, queue=False, **_OWN)
        if len(TABS) == 1:
            _portrait_tab(gradio, options, accepted)
        else:
            for name, tab in TABS.items():
                with gradio.Tab(name):
                    tab(gradio, options, accepted)
        gradio.Markdown(words.KEPT, elem_id="kept")
    page.queue(default_concurrency_limit=None)
    return page


def _portrait_tab(gradio: Any, options: PageOptions, accepted: Any) -> None:
    """One portrait and one driver: what goes in on the left, what comes out on the right."""
    first = str(options.examples[0]) if options.examples else None

    def show_command(
        reference: str | None, choice: str, driving: str | None, clicks: points.Clicks, *values: Any
    ) -> str:
        files = _files(reference, choice, driving, clicks)
        return command_line(files.names(), values, options.model)

    with gradio.Row(elem_id="columns", equal_height=False):
        with gradio.Column(min_width=320):
            if options.model is None:
                gradio.Markdown(words.SMALL_MODEL, elem_id="model-note")
            portrait = _portrait_input(gradio, options.examples)
            clicks, told = _points_input(gradio, portrait, options.queue.folder.uploads)
            source, driver = _driver_input(gradio)
            controls = _control_inputs(gradio, CONTROLS)
        with gradio.Column(min_width=320, elem_id="outcome"):
            with gradio.Row(elem_id="buttons"):
                start = gradio.Button("Animate", variant="primary", elem_id="animate", scale=3)
                cancel = gradio.Button("Cancel", elem_id="cancel", interactive=False, scale=1)
            status = gradio.HTML(words.message("The video will appear here."), elem_id="status", padding=False)
            video = gradio.Video(
                label="Animated portrait", interactive=False, autoplay=True, loop=True, elem_id="video"
            )
            compared = gradio.Video(
                label="Side by side: portrait, landmarks, with the cache, without it",
                interactive=False,
                loop=True,
                visible=False,
                elem_id="compared",
            )
            with gradio.Accordion("The same on the command line", open=True, elem_id="same"):
                command = gradio.Code(
                    show_command(first, DEMO, None, points.Clicks(), *(control.default for control in CONTROLS)),
                    language="shell",
                    interactive=False,
                    show_label=False,
                    wrap_lines=True,
                    show_line_numbers=False,
                    lines=1,
                    buttons=["copy"],
                    elem_id="command",
                )
            with gradio.Accordion("Report of the cache", open=False, elem_id="report"):
                report = gradio.Code(
                    "", language=None, interactive=False, show_label=False, show_line_numbers=False, buttons=["copy"]
                )
    ticket = gradio.State(None, time_to_live=KEPT_SECONDS)
    inputs = [portrait, source, driver, clicks, *controls]
    outputs = [status, start, cancel, video, compared, report]

    def show_driver(choice: str) -> Any:
        return gradio.Video(visible=choice == OWN)

    def take_ticket() -> str:
        return options.queue.ticket()

    def animate(name: str, agreed: bool, *given: Any) -> Any:
        """Drive the page through one job; it yields what changes."""
        yield {start: gradio.Button(interactive=False), cancel: gradio.Button(interactive=True)}
        try:
            for event in _job(options, name, agreed, *given):
                if not isinstance(event, Finished):
                    yield {status: words.progress(event)}
                    continue
                result = event.result
                yield {
                    status: words.message(words.outcome(result), "done"),
                    video: gradio.Video(str(result.output)),
                    compared: gradio.Video(
                        None if result.comparison is None else str(result.comparison),
                        visible=result.comparison is not None,
                    ),
                    report: words.report(result),
                }
        except Cancelled:
            yield {status: words.message(words.CANCELLED)}
        except UserError as error:
            yield {status: words.message(str(error), "fault")}
        yield {start: gradio.Button(interactive=True), cancel: gradio.Button(interactive=False)}

    source.change(show_driver, source, driver, queue=False, **_OWN)
    for each in (portrait, source, driver, told, *controls):  # what is told changes with every click
        each.change(show_command, inputs, command, queue=False, trigger_mode="always_last", **_OWN)
    asked = start.click(take_ticket, None, ticket, queue=False, **_OWN)
    asked.then(animate, [ticket, accepted, *inputs], outputs, concurrency_limit=None, **_OWN)
    cancel.click(options.queue.cancel, ticket, None, queue=False, **_OWN)


TABS: dict[str, Tab] = {"Portrait": _portrait_tab}


def _job(
    options: PageOptions,
    ticket: str,
    agreed: bool,
    reference: str | None,
    choice: str,
    driving: str | None,
    clicks: points.Clicks,
    *values: Any,
) -> Iterator[Any]:
    """The events of a job on the page's values. Raises `UserError` where something is not chosen yet."""
    files = _files(reference, choice, driving, clicks)
    for lacks, text in (
        (not agreed, words.NOT_ACCEPTED),
        (files.reference is None, words.NO_PORTRAIT),
        (choice == OWN and files.driving is None, words.NO_DRIVER),
        (bool(clicks.placed) and clicks.file is None, words.POINTS_MISSING),
    ):
        if lacks:
            raise UserError(text)
    base = {} if options.model is None else {"model": options.model}
    yield from options.queue.run(ticket, files, lambda copies: settings_of(copies, values, base))


def _files(reference: str | None, choice: str, driving: str | None, clicks: points.Clicks) -> Files:
    return Files(
        None if reference is None else Path(reference),
        Path(driving) if choice == OWN and driving is not None else None,
        clicks.file,
    )


def _portrait_input(gradio: Any, examples: Sequence[Path]) -> Any:
    portrait = gradio.Image(
        str(examples[0]) if examples else None,
        label="Portrait",
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=320,
        elem_id="portrait",
        buttons=[],
    )
    read = portrait.preprocess
    # As it was uploaded: the animator reads it itself, within its own limits, and says what is wrong with it.
    portrait.preprocess = lambda payload: payload.path if payload is not None and payload.path else read(payload)
    if examples:
        gradio.Examples([[str(path)] for path in examples], [portrait], label="Examples", api_name=False)
    return portrait


def _points_input(gradio: Any, portrait: Any, folder: Path) -> tuple[Any, Any]:
    """Where five points are clicked, folded away at first. -> the state that holds them, and what is told.

    folder: of the uploads, which are deleted after an hour.
    """
    clicks = gradio.State(points.Clicks(), time_to_live=KEPT_SECONDS)
    new_file = points.new_file_in(folder)
    with gradio.Accordion("No face is found? Click five points", open=False, elem_id="points") as place:
        gradio.Markdown(words.POINTS)
        told = gradio.Markdown("", elem_id="points-told")
        picture = gradio.Image(
            None, show_label=False, interactive=False, format="png", buttons=[], elem_id="points-picture"
        )
        with gradio.Row():
            back = gradio.Button("Take the last one back", size="sm", elem_id="points-back")
            clear = gradio.Button("Begin anew", size="sm", elem_id="points-clear")
            keep = gradio.DownloadButton("Keep them", size="sm", interactive=False, elem_id="points-keep")

    def show(now: points.Clicks) -> Any:
        file = None if now.file is None else str(now.file)
        return now, now.sentence, now.shown, gradio.DownloadButton(value=file, interactive=file is not None)

    def put(now: points.Clicks, event: Any) -> Any:
        return show(points.click(now, event.index, new_file))

    put.__annotations__["event"] = gradio.SelectData  # by which Gradio knows to hand over where it was
    shown = [clicks, told, picture, keep]
    picture.select(put, clicks, shown, queue=False, **_OWN)
    back.click(lambda now: show(points.take_back(now)), clicks, shown, queue=False, **_OWN)
    for event in (place.expand, clear.click):
        event(lambda path: show(points.begin(path)), portrait, shown, queue=False, **_OWN)
    portrait.change(lambda: show(points.Clicks()), None, shown, queue=False, **_OWN)
    portrait.change(lambda: gradio.Accordion(open=False), None, place, queue=False, **_OWN)
    return clicks, told


def _driver_input(gradio: Any) -> tuple[Any, Any]:
    source = gradio.Radio([DEMO, OWN], value=DEMO, label="What drives it", elem_id="source")
    driver = gradio.Video(
        label="Driving video",
        sources=["upload", "webcam"],
        include_audio=True,
        visible=False,
        height=280,
        elem_id="driver",
        buttons=[],
    )
    return source, driver


def _control_inputs(gradio: Any, controls: Sequence[Control]) -> list[Any]:
    """A component for each control, in their order; the advanced ones are folded away."""
    made: dict[str, Any] = {}
    with gradio.Group():
        for control in controls:
            if not control.advanced:
                made[control.name] = _control_input(gradio, control)
    with gradio.Accordion("More settings", open=False):
        for control in controls:
            if control.advanced:
                made[control.name] = _control_input(gradio, control)
    return [made[control.name] for control in controls]


def _control_input(gradio: Any, control: Control) -> Any:
    common = {"label": control.label, "info": control.info or None, "elem_id": f"setting-{control.name}"}
    if control.kind == "choice":
        choices = [(option.label, name) for name, option in control.options.items()]
        return gradio.Dropdown(choices, value=control.default, filterable=False, **common)
    if control.kind == "several":
        choices = [(name.capitalize(), name) for name in control.names]
        return gradio.CheckboxGroup(choices, value=list(control.default), **common)
    if control.kind == "range":
        return gradio.Slider(control.low, control.high, value=control.default, step=control.step, buttons=[], **common)
    if control.kind == "whole":
        return gradio.Number(
            control.default, precision=0, minimum=control.low, maximum=control.high, step=control.step, **common
        )
    return gradio.Checkbox(control.default, **common)

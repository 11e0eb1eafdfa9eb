"""The tab for one portrait and one driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fye_pipeline.app import points, words
from fye_pipeline.app.controls import CONTROLS, Files, command_line, settings_of
from fye_pipeline.app.jobs import KEPT_SECONDS, Event
from fye_pipeline.app.parts import (
    OWN,
    PageOptions,
    Panel,
    check_given,
    control_inputs,
    picture_input,
    show_videos,
    videos_output,
)

DEMO, MINE = "The movement that ships", "A video of mine"


def portrait_tab(gradio: Any, options: PageOptions, accepted: Any) -> None:
    """What goes in on the left, what comes out on the right."""
    examples = options.examples.portraits
    first = examples[0] if examples else None
    with gradio.Row(equal_height=False):
        with gradio.Column(min_width=320):
            if options.model is None:
                gradio.Markdown(words.SMALL_MODEL, elem_classes="fye-hint")
            portrait = picture_input(gradio, "portrait-picture", "Portrait", first, examples)
            clicks, told = _points_input(gradio, portrait, options.queue.folder.uploads)
            source = gradio.Radio([DEMO, MINE], value=DEMO, label="What drives it", elem_id="portrait-source")
            driver = gradio.Video(
                label="Driving video",
                sources=["upload", "webcam"],
                include_audio=True,
                visible=False,
                height=280,
                elem_id="portrait-driver",
                buttons=[],
            )
            controls = control_inputs(gradio, "portrait", CONTROLS)
        panel = Panel(
            gradio,
            "portrait",
            action="Animate",
            report="Report of the cache",
            place_result=lambda: videos_output(
                gradio,
                "portrait",
                "Animated portrait",
                "Side by side: portrait, landmarks, with the cache, without it",
            ),
        )

    def files_of(reference: str | None, choice: str, driving: str | None, clicked: points.Clicks) -> Files:
        return Files.of(reference=reference, driving=driving if choice == MINE else None, points=clicked.file)

    def command(*given: Any) -> str:
        return command_line(files_of(*given[:4]).names(), given[4:], options.model)

    def job(ticket: str, *given: Any) -> Iterator[Event]:
        reference, choice, driving, clicked, *values = given
        check_given(
            (reference is None, words.NO_PORTRAIT),
            (choice == MINE and driving is None, words.NO_DRIVER),
            (bool(clicked.placed) and clicked.file is None, words.POINTS_MISSING),
        )
        base = {} if options.model is None else {"model": options.model}
        files = files_of(reference, choice, driving, clicked)
        yield from options.queue.run(ticket, files, lambda copies: settings_of(copies, values, base))

    source.change(lambda choice: gradio.Video(visible=choice == MINE), source, driver, queue=False, **OWN)
    panel.connect(
        options.queue,
        accepted,
        [portrait, source, driver, clicks, *controls],
        job=job,
        command=command,
        show=lambda result: show_videos(gradio, result),
        first=[first, DEMO, None, points.Clicks(), *(control.default for control in CONTROLS)],
        watched=[told],  # it changes with every click
    )


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
    picture.select(put, clicks, shown, queue=False, trigger_mode="multiple", **OWN)  # a quick click is not lost
    back.click(lambda now: show(points.take_back(now)), clicks, shown, queue=False, **OWN)
    for event in (place.expand, clear.click):
        event(lambda path: show(points.begin(path)), portrait, shown, queue=False, **OWN)
    portrait.change(
        lambda: (*show(points.Clicks()), gradio.Accordion(open=False)), None, [*shown, place], queue=False, **OWN
    )
    return clicks, told
